//! The command line: what can be asked and how it is spelt.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand};

/// Talks to an inference server over gRPC.
#[derive(Debug, Parser)]
#[command(name = "requant", version, arg_required_else_help = false)]
pub(crate) struct Args {
    /// Address of the server
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "REQUANT_SERVER",
        default_value = "127.0.0.1:8001"
    )]
    pub(crate) server: String,
    /// Time for the call, its retries included [default: 30, or 300 to load or unload]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a model on arrays from .npy files
    Infer(Infer),
    /// List the repository's models with their states
    Models,
    /// Load a model, or load it again
    Load {
        /// Name of the model
        name: String,
    },
    /// Unload a model
    Unload {
        /// Name of the model
        name: String,
    },
    /// Show counters and mean times of a model, or of all
    Stats {
        /// Name of the model
        name: Option<String>,
    },
    /// Show whether the server is live and ready; fails when it is not ready
    Health,
}

/// One inference.
#[derive(Debug, clap::Args)]
pub(crate) struct Infer {
    /// Name of the model
    pub(crate) model: String,
    /// Array to send, the batch dimension included; once for each input
    #[arg(long, value_name = "NAME=FILE.npy", required = true)]
    pub(crate) input: Vec<NamedFile>,
    /// File to write an output to; outputs not named are then left out
    #[arg(long, value_name = "NAME=FILE.npy")]
    pub(crate) output: Vec<NamedFile>,
    /// Version of the model [default: the server chooses]
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) version: String,
    /// Text that the server repeats in its answer
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) id: String,
}

/// A tensor's name and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedFile {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
}

impl FromStr for NamedFile {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok(Self {
                name: name.to_owned(),
                file: file.into(),
            }),
            _ => Err("expected NAME=FILE.npy"),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let error = "expected a positive number of seconds";
    let duration = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match duration {
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn an_inference_is_read_whole() {
        let line = "requant infer m --input x=a.npy --input y=b=c.npy --output z=o.npy \
                    --version 2 --id 7 --server h:1 --timeout 1.5";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(args.server, "h:1");
        assert_eq!(args.timeout, Some(Duration::from_millis(1500)));
        let Command::Infer(infer) = args.command else {
            panic!("not an inference")
        };
        let named = |name: &str, file: &str| NamedFile {
            name: name.to_owned(),
            file: file.into(),
        };
        assert_eq!(infer.input, [named("x", "a.npy"), named("y", "b=c.npy")]);
        assert_eq!(infer.output, [named("z", "o.npy")]);
        assert_eq!((infer.version.as_str(), infer.id.as_str()), ("2", "7"));
    }

    #[test]
    fn times_must_be_positive_and_finite() {
        for text in ["0", "-1", "NaN", "inf", "1e30", "", "1s", "1e-12"] {
            assert!(seconds(text).is_err(), "{text:?}");
        }
        assert_eq!(seconds("0.001"), Ok(Duration::from_millis(1)));
    }
}
