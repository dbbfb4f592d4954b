//! The optimiser (Kingma and Ba 2015).

/// Decay of the mean of gradients, and of the mean of their squares.
const DECAY: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

/// Adam's state for one parameter.
#[derive(Clone, Debug)]
pub struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    step: i32,
}

impl Adam {
    /// The state before the first step.
    pub fn new(elements: usize) -> Self {
        Self {
            mean: vec![0.0; elements],
            square: vec![0.0; elements],
            step: 0,
        }
    }

    /// One step downhill.
    pub fn step(&mut self, rate: f32, parameter: &mut [f32], gradient: &[f32]) {
        self.step = self.step.saturating_add(1);
        let debias = |decay: f32| 1.0 - libm::pow(f64::from(decay), f64::from(self.step)) as f32;
        let (first, second) = (debias(DECAY.0), debias(DECAY.1));
        let state = self.mean.iter_mut().zip(&mut self.square);
        for ((p, &g), (mean, square)) in parameter.iter_mut().zip(gradient).zip(state) {
            *mean = DECAY.0 * *mean + (1.0 - DECAY.0) * g;
            *square = DECAY.1 * *square + (1.0 - DECAY.1) * g * g;
            *p -= rate * (*mean / first) / ((*square / second).sqrt() + EPSILON);
        }
    }
}
