//! Models on disk and in memory: the folder's layout, the configuration and its completion from the
//! model itself, loading aside and swapping in, and the registry that answers "which version of
//! which model is served".

mod complete;
mod config;
mod error;
mod files;
mod load;
mod parameters;
mod poll;
mod registry;
mod warmup;

pub use complete::{Completed, MAX_BATCH, complete};
pub use config::{parse_json, parse_text};
pub use error::{ConfigError, LoadError};
pub use load::{Loaded, Version};
pub use poll::follow;
pub use registry::{IndexEntry, Registry, Source};
