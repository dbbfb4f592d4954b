//! Whether a version of a model can be asked now: every instance of it is there, on whichever device. A compute
//! thread that lost its instance says so before it answers anybody, of all instances on the same device, so
//! that who hears of the loss and asks finds the version not ready, until they are made anew. The metric and
//! the health watches follow.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::metrics::ModelMeters;

/// Readiness of one version of a model.
#[derive(Debug)]
pub struct Readiness {
    meters: Arc<ModelMeters>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Instances that are being made anew, or cannot be, each as often as it was lost meanwhile.
    missing: usize,
    /// Who is told of changes; nobody before and after the version is served, when its metric may be
    /// another's that took its place.
    watchers: Option<watch::Sender<u64>>,
}

impl Readiness {
    /// Readiness of a version that is not served yet, all its instances there.
    pub fn new(meters: Arc<ModelMeters>) -> Readiness {
        Readiness {
            meters,
            state: Mutex::new(State {
                missing: 0,
                watchers: None,
            }),
        }
    }

    /// Whether every instance is there.
    pub fn is_ready(&self) -> bool {
        self.lock().missing == 0
    }

    /// The version is served from now on; `watchers` are told when its readiness changes.
    pub fn begin(&self, watchers: watch::Sender<u64>) {
        let mut state = self.lock();
        state.watchers = Some(watchers);
        self.announce(&state);
    }

    /// The version is not served any more; with `replaced`, one of the same number is from now on.
    pub fn end(&self, replaced: bool) {
        self.lock().watchers = None;
        if !replaced {
            self.meters.ready(false);
        }
    }

    /// So many instances are gone.
    pub(crate) fn lost(&self, instances: usize) {
        let mut state = self.lock();
        state.missing += instances;
        self.announce(&state);
    }

    /// An instance that was gone, so many times, was made anew.
    pub(crate) fn restored(&self, losses: usize) {
        let mut state = self.lock();
        state.missing = state.missing.saturating_sub(losses);
        self.announce(&state);
    }

    fn announce(&self, state: &State) {
        if let Some(watchers) = &state.watchers {
            self.meters.ready(state.missing == 0);
            watchers.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_with_every_instance_and_quiet_when_not_served() {
        let readiness = Readiness::new(ModelMeters::new("m", "1", "int8"));
        let (changes, seen) = watch::channel(0);
        readiness.lost(1);
        assert!(!readiness.is_ready());
        assert_eq!(*seen.borrow(), 0);
        readiness.begin(changes);
        readiness.lost(1);
        readiness.restored(1);
        assert!(!readiness.is_ready(), "the other one is missing still");
        readiness.restored(1);
        assert!(readiness.is_ready());
        assert_eq!(*seen.borrow(), 4);
        readiness.end(true);
        readiness.lost(1);
        assert_eq!(*seen.borrow(), 4);
    }
}
