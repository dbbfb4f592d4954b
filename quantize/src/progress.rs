//! What a long job tells whoever started it, and how it is told to stop.

use std::fmt;

/// A listener to a job. All of it is optional: `()` listens to nothing and never stops.
pub trait Progress: Sync {
    /// A stage of `steps` steps begins.
    fn stage(&self, name: &str, steps: usize) {
        let _ = (name, steps);
    }

    /// Steps of the current stage are done.
    fn advance(&self, steps: usize) {
        let _ = steps;
    }

    /// Something that the user should know, although the job goes on.
    fn warn(&self, message: &dyn fmt::Display) {
        let _ = message;
    }

    /// Whether the job should stop; asked between steps.
    fn cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}
