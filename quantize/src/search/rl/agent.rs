//! Deep deterministic policy gradient (Lillicrap et al., ICLR 2016) with HAQ's settings scaled down: an actor
//! that maps a state to an action in [0, 1], a critic that predicts the reward, slow copies of both as
//! targets, a replay buffer, and noise that shrinks from episode to episode.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::mlp::{Adam, Mlp};

/// What the agent sees at a step; each number about in [0, 1].
pub(super) type State = [f64; 10];

/// A step that was made.
#[derive(Clone, Debug)]
pub(super) struct Transition {
    pub(super) state: State,
    pub(super) action: f64,
    pub(super) reward: f64,
    /// The state it led to; none at the end.
    pub(super) next: Option<State>,
}

const HIDDEN: [usize; 2] = [64, 32];
const BATCH: usize = 32;
const BUFFER: usize = 4096;
const ACTOR_RATE: f64 = 1e-3;
const CRITIC_RATE: f64 = 5e-3;
/// How fast the targets follow.
const FOLLOW: f64 = 0.01;
/// Standard deviation of the noise on actions, at first.
const NOISE: f64 = 0.5;

#[derive(Debug)]
pub(super) struct Agent {
    random: ChaCha8Rng,
    actor: Mlp,
    critic: Mlp,
    targets: (Mlp, Mlp),
    optimizers: (Adam, Adam),
    buffer: Vec<Transition>,
    /// Where the next transition goes once the buffer is full.
    oldest: usize,
    episode: usize,
    /// Episodes of random actions, before there is anything to learn from.
    warm_up: usize,
    noise: f64,
    decay: f64,
    /// Moving average of rewards, taken off what the critic learns.
    baseline: Option<f64>,
}

impl Agent {
    /// For so many episodes: a tenth of them is random, the noise falls to a fiftieth over the rest.
    pub(super) fn new(mut random: ChaCha8Rng, episodes: usize) -> Self {
        let actor = Mlp::new(&[10, HIDDEN[0], HIDDEN[1], 1], &mut random);
        let critic = Mlp::new(&[11, HIDDEN[0], HIDDEN[1], 1], &mut random);
        let warm_up = (episodes / 10).clamp(1, 20);
        let rest = episodes.saturating_sub(warm_up).max(1);
        Self {
            optimizers: (
                Adam::new(&actor, ACTOR_RATE),
                Adam::new(&critic, CRITIC_RATE),
            ),
            targets: (actor.clone(), critic.clone()),
            random,
            actor,
            critic,
            buffer: Vec::new(),
            oldest: 0,
            episode: 0,
            warm_up,
            noise: NOISE,
            decay: libm::pow(0.02, 1.0 / rest as f64),
            baseline: None,
        }
    }

    /// Counts the episode and lowers the noise.
    pub(super) fn start_episode(&mut self) {
        self.episode += 1;
        if self.episode > self.warm_up + 1 {
            self.noise *= self.decay;
        }
    }

    /// An action in [0, 1]: random at first, then the actor's with noise, drawn from a normal distribution
    /// that is cut off at the ends of the interval.
    pub(super) fn act(&mut self, state: &State) -> f64 {
        if self.episode <= self.warm_up {
            return self.random.random();
        }
        let mean = sigmoid(self.actor.scalar(state));
        // A draw outside is drawn again; the mean is inside, so that the limit is hardly ever met.
        for _ in 0..64 {
            let action = mean + self.noise * self.normal();
            if (0.0..=1.0).contains(&action) {
                return action;
            }
        }
        mean
    }

    /// Stores an episode and, after the warm-up, makes one update a step of it.
    pub(super) fn learn(&mut self, episode: &[Transition]) {
        if let Some(last) = episode.last() {
            let before = self.baseline.unwrap_or(last.reward);
            self.baseline = Some(0.95 * before + 0.05 * last.reward);
        }
        for transition in episode {
            match self.buffer.get_mut(self.oldest) {
                Some(slot) if self.oldest < BUFFER => *slot = transition.clone(),
                Some(_) | None => self.buffer.push(transition.clone()),
            }
            self.oldest = (self.oldest + 1) % BUFFER;
        }
        if self.episode >= self.warm_up {
            for _ in episode {
                self.update();
            }
        }
    }

    fn update(&mut self) {
        let batch: Vec<Transition> = (0..BATCH)
            .map(|_| self.random.random_range(0..self.buffer.len().max(1)))
            .filter_map(|index| self.buffer.get(index).cloned())
            .collect();
        let share = 1.0 / BATCH as f64;
        let baseline = self.baseline.unwrap_or(0.0);
        let mut gradients = self.critic.zeros();
        for transition in &batch {
            // HAQ's variant of Bellman's equation, undiscounted: the episode's reward stands at every step.
            let ahead = transition.next.as_ref().map_or(0.0, |next| {
                let action = sigmoid(self.targets.0.scalar(next));
                self.targets.1.scalar(&joined(next, action))
            });
            let target = transition.reward - baseline + ahead;
            let values = self
                .critic
                .forward(&joined(&transition.state, transition.action));
            let error = first(&values) - target;
            self.critic
                .backward(&values, &[2.0 * share * error], Some(&mut gradients));
        }
        self.optimizers.1.step(&mut self.critic, &gradients);

        let mut gradients = self.actor.zeros();
        for transition in &batch {
            let values = self.actor.forward(&transition.state);
            let action = sigmoid(first(&values));
            let judged = self.critic.forward(&joined(&transition.state, action));
            // Uphill along the critic's gradient with respect to the action.
            let slope = self.critic.backward(&judged, &[-share], None);
            let slope = slope.last().copied().unwrap_or(0.0) * action * (1.0 - action);
            self.actor.backward(&values, &[slope], Some(&mut gradients));
        }
        self.optimizers.0.step(&mut self.actor, &gradients);

        self.targets.0.follow(&self.actor, FOLLOW);
        self.targets.1.follow(&self.critic, FOLLOW);
    }

    /// A standard normal number, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let (u, v): (f64, f64) = (self.random.random(), self.random.random());
        // 1 − u is in (0, 1].
        (-2.0 * libm::log(1.0 - u)).sqrt() * libm::cos(core::f64::consts::TAU * v)
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn joined(state: &State, action: f64) -> [f64; 11] {
    let mut input = [action; 11];
    input[..10].copy_from_slice(state);
    input
}

fn first(values: &[Vec<f64>]) -> f64 {
    values
        .last()
        .and_then(|output| output.first())
        .copied()
        .unwrap_or(0.0)
}
