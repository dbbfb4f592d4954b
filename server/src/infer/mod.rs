//! From an inference message to a job and back: everything that can be wrong with a request is found
//! here, before it enters the line, so that a bad request can never disturb its batch mates.

mod classify;
mod parameters;
mod request;
mod response;
mod typed;

pub use request::{Admitted, Spec, Wanted, admit};
pub use response::respond;
