//! From a float graph and calibration samples to a quantized graph: observe → grids → round → search →
//! assemble, each step a function of what came before it.

mod candidates;
mod describe;
mod equalise;
mod error;
mod evaluate;
mod finish;
mod grids;
mod moments;
mod observe;
mod options;
mod problem;
mod quality;
mod round;
mod run;
mod samples;
mod seek;
mod sensitivity;
mod suspect;
mod wanted;

pub use describe::describe;
pub use equalise::{Equalise, UnknownEqualise, equalise};
pub use error::PipelineError;
pub use evaluate::{Evaluation, evaluate};
pub use options::{Device, Method, Options, UnknownMethod};
pub use quality::{Quality, quality};
pub use run::{LayerOutcome, Outcome, run};
pub use samples::{Samples, input_specs};
pub use suspect::Constant;

use crate::progress::Progress;

/// Asks whether the job should stop.
fn check(progress: &dyn Progress) -> Result<(), PipelineError> {
    if progress.cancelled() {
        return Err(PipelineError::Interrupted);
    }
    Ok(())
}
