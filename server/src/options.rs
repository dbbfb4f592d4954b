//! Command line and environment of the server: names, defaults and limits. Every flag here does
//! something; what does not exist yet is unknown and refused.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum, error::ErrorKind};
use requant_runtime::{CpuOptions, Isa, UnknownIsa};

/// What the command line or the environment asks for.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "requant-server",
    version,
    about = "Serves integer-only neural networks."
)]
pub struct Options {
    /// Folder with models in Triton's layout; without it the built-in model `fashion` is served.
    #[arg(long, env = "REQUANT_MODEL_REPOSITORY", value_name = "DIR")]
    pub model_repository: Option<PathBuf>,

    /// Address and port of the gRPC service.
    #[arg(
        long,
        env = "REQUANT_GRPC_ADDRESS",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8001"
    )]
    pub grpc_address: SocketAddr,

    /// Address and port where `GET /metrics` answers.
    #[arg(
        long,
        env = "REQUANT_METRICS_ADDRESS",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8002"
    )]
    pub metrics_address: SocketAddr,

    /// What computes.
    #[arg(long, env = "REQUANT_BACKEND", value_enum, default_value = "auto")]
    pub backend: BackendChoice,

    /// When models are loaded: all at start, following the folder's changes, or on request.
    #[arg(
        long,
        env = "REQUANT_MODEL_CONTROL",
        value_enum,
        default_value = "none"
    )]
    pub model_control: ModelControl,

    /// A model to load at start under `--model-control explicit`; may be repeated.
    #[arg(
        long,
        env = "REQUANT_LOAD_MODEL",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub load_model: Vec<String>,

    /// Threads of the CPU backend that compute at once, for all models together [default: the cores
    /// granted, a container's quota included].
    #[arg(
        long,
        env = "REQUANT_THREADS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub threads: Option<u32>,

    /// Pin each computing thread of the CPU backend to a core of its own.
    #[arg(long, env = "REQUANT_PIN_THREADS")]
    pub pin_threads: bool,

    /// Instruction set of the CPU backend: scalar, avx2, avx-vnni, avx512-vnni, neon-dotprod or
    /// neon-i8mm [default: the best one that this machine has]. Answers are the same bytes on each.
    #[arg(long, env = "REQUANT_ISA", value_name = "NAME", value_parser = available_isa)]
    pub isa: Option<Isa>,

    /// Table of the fastest way to compute each layer on the CPU or a GPU, measured by `requant-quantize tune`;
    /// may be repeated. One that was made on another machine is not used. Answers are the same bytes with and
    /// without.
    #[arg(
        long,
        env = "REQUANT_TUNING",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub tuning: Vec<PathBuf>,

    /// Largest request message in MiB.
    #[arg(
        long,
        env = "REQUANT_MAX_REQUEST_MIB",
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=2047)
    )]
    pub max_request_mib: u32,

    /// How long a stopping server waits for the requests in flight.
    #[arg(
        long,
        env = "REQUANT_DRAIN_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(0..=86_400)
    )]
    pub drain_timeout: u64,

    /// How log lines are written to stderr.
    #[arg(long, env = "REQUANT_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// Which backend computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The fastest one that this machine has.
    Auto,
    /// The vectorised CPU kernels.
    Cpu,
    /// The first CUDA device; the server does not start without one.
    Cuda,
    /// The plain scalar oracle.
    Reference,
}

/// When models are loaded and unloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelControl {
    /// Everything at start, nothing afterwards.
    None,
    /// Everything at start; the folder is looked at again every few seconds.
    Poll,
    /// Only `--load-model` at start; loads and unloads come as requests.
    Explicit,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do instead of serving.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Help or version was asked for: print and leave with 0.
    Answer(String),
    /// A wrong flag: this one line goes to stderr, and the exit code is 2.
    Wrong(String),
}

impl Options {
    /// Reads the arguments (the first is the program's name) and the environment.
    ///
    /// # Errors
    /// [`Refusal::Answer`] for `--help` and `--version`, [`Refusal::Wrong`] for anything unknown,
    /// malformed or contradictory, including a repository that is not a folder.
    pub fn read(
        arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
    ) -> Result<Options, Refusal> {
        let options = Options::try_parse_from(arguments).map_err(refusal)?;
        if let Some(folder) = &options.model_repository
            && !folder.is_dir()
        {
            return Err(Refusal::Wrong(format!(
                "--model-repository: '{}' is not a folder",
                folder.display()
            )));
        }
        if !options.load_model.is_empty() && options.model_control != ModelControl::Explicit {
            return Err(Refusal::Wrong(
                "--load-model needs --model-control explicit".to_owned(),
            ));
        }
        let has_isa = matches!(options.backend, BackendChoice::Auto | BackendChoice::Cpu);
        if options.isa.is_some() && !has_isa {
            return Err(Refusal::Wrong(
                "--isa needs --backend cpu: it chooses among the CPU's kernels".to_owned(),
            ));
        }
        if !options.tuning.is_empty() && options.backend == BackendChoice::Reference {
            return Err(Refusal::Wrong(
                "--tuning needs another backend than reference, which has one way to compute each layer"
                    .to_owned(),
            ));
        }
        Ok(options)
    }

    /// How the CPU backend runs.
    pub fn cpu(&self) -> CpuOptions {
        CpuOptions {
            isa: self.isa,
            threads: self.threads.map_or(0, |n| n as usize),
            pin: self.pin_threads,
            ..CpuOptions::default()
        }
    }

    /// Largest request message in bytes.
    pub fn max_request_bytes(&self) -> usize {
        self.max_request_mib as usize * (1 << 20)
    }

    /// How long a stopping server waits for the requests in flight.
    pub fn drain_limit(&self) -> Duration {
        Duration::from_secs(self.drain_timeout)
    }
}

/// An instruction set by name, if this machine can execute it.
fn available_isa(name: &str) -> Result<Isa, String> {
    let isa: Isa = name
        .parse()
        .map_err(|error: UnknownIsa| error.to_string())?;
    if isa.is_available() {
        return Ok(isa);
    }
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    Err(format!("this machine has {}", available.join(", ")))
}

fn refusal(error: clap::Error) -> Refusal {
    let text = error.render().to_string();
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return Refusal::Answer(text);
    }
    // clap explains over several lines; the first paragraph says what is wrong.
    let line = text
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ");
    Refusal::Wrong(line.trim_start_matches("error: ").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An instruction set that this machine cannot have.
    const FOREIGN: &str = if cfg!(target_arch = "aarch64") {
        "avx2"
    } else {
        "neon-dotprod"
    };

    fn read(arguments: &[&str]) -> Result<Options, Refusal> {
        let all: Vec<&str> = std::iter::once("requant-server")
            .chain(arguments.iter().copied())
            .collect();
        Options::read(all)
    }

    #[test]
    fn defaults_are_the_contract() {
        let options = read(&[]).unwrap();
        assert_eq!(options.grpc_address.to_string(), "0.0.0.0:8001");
        assert_eq!(options.metrics_address.to_string(), "0.0.0.0:8002");
        assert_eq!(options.backend, BackendChoice::Auto);
        assert_eq!(options.model_control, ModelControl::None);
        assert_eq!(options.max_request_bytes(), 64 << 20);
        assert_eq!(options.drain_limit(), Duration::from_secs(30));
    }

    #[test]
    fn wrong_flags_are_one_line() {
        for (arguments, needle) in [
            (&["--http-address", "0.0.0.0:8000"][..], "--http-address"),
            (&["--tls-key", "k"], "--tls-key"),
            (&["--otlp-endpoint", "x"], "--otlp-endpoint"),
            (&["--grpc-address", "nowhere"], "nowhere"),
            (&["--max-request-mib", "0"], "0"),
            (&["--max-request-mib", "2048"], "2048"),
            (&["--threads", "0"], "0"),
            (&["--threads", "1025"], "1025"),
            (&["--drain-timeout", "-1"], "-1"),
            (&["--isa", "sse2"], "sse2"),
            (&["--isa", FOREIGN], FOREIGN),
            (&["--isa", "scalar", "--backend", "reference"], "--isa"),
            (&["--tuning", "t", "--backend", "reference"], "--tuning"),
            (&["--log-format", "xml"], "xml"),
            (&["--load-model", "m"], "--model-control explicit"),
            (&["--model-repository", "/nonexistent"], "/nonexistent"),
            (&["stray"], "stray"),
        ] {
            match read(arguments) {
                Err(Refusal::Wrong(line)) => {
                    assert!(line.contains(needle), "{arguments:?}: {line}");
                    assert!(!line.contains('\n'), "{line}");
                    assert!(!line.is_empty());
                }
                other => panic!("{arguments:?} gave {other:?}"),
            }
        }
        assert!(matches!(read(&["--help"]), Err(Refusal::Answer(_))));
        assert!(matches!(read(&["--version"]), Err(Refusal::Answer(_))));
    }
}
