//! The `requant-quantize` command: makes integer models of float ones, and looks at them, runs, compares
//! and times them offline. It
//! exits with 2 and one line on standard error when a flag, a file or its content is wrong, or when it is
//! interrupted; with 1 when the machine fails it otherwise.

mod bar;
mod compare;
mod device;
mod inspect;
mod print;
mod profile;
mod quantize;
mod run;
mod tune;

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use requant_quantize::files;

/// Makes an integer model of a float ONNX model; inspects, runs, compares and times integer models.
#[derive(Debug, Parser)]
#[command(
    name = "requant-quantize",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    quantize: Option<quantize::QuantizeArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a model's layers, costs and where it computes in floating point
    Inspect(inspect::Inspect),
    /// Run a model on arrays from .npy files
    Run(run::Run),
    /// Show two models layer by layer, and on data how far apart they are
    Compare(compare::Compare),
    /// Measure every layer of a model at every precision on this device
    Profile(profile::Profile),
    /// Measure every way of computing every layer on this machine's CPU, for the server's --tuning
    Tune(tune::Tune),
}

fn main() -> ExitCode {
    // A second handler cannot be there: this is the only one.
    let _ = ctrlc::set_handler(|| {
        files::remove_unfinished();
        let kept = quantize::kept().map(|kept| format!("; {kept}"));
        complain(&format!("interrupted{}", kept.unwrap_or_default()));
        std::process::exit(2);
    });
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.exit_code() == 0 => return answer(&error.render().to_string()),
        Err(error) => {
            // Clap adds its usage after an empty line.
            let text = error.render().to_string();
            let complaint = text.split("\n\n").next().unwrap_or_default();
            complain(complaint.strip_prefix("error: ").unwrap_or(complaint));
            return ExitCode::from(2);
        }
    };
    let outcome = match (&args.command, &args.quantize) {
        (Some(Command::Inspect(inspect)), _) => inspect.run(),
        (Some(Command::Run(run)), _) => run.run(),
        (Some(Command::Compare(compare)), _) => compare.run(),
        (Some(Command::Profile(profile)), _) => profile.run(),
        (Some(Command::Tune(tune)), _) => tune.run(),
        (None, Some(quantize)) => quantize.run(),
        (None, None) => {
            complain("no model given; see --help");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(text) => answer(&text),
        Err(error) => {
            complain(&causes(&error));
            ExitCode::from(2)
        }
    }
}

/// An error and its causes, without those that are part of what is said already.
fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text.push_str(separator);
            text.push_str(&cause);
        }
    }
    text
}

/// One line on standard error; nobody is left to tell when that is closed too.
fn complain(text: &str) {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(io::stderr(), "error: {line}");
}

fn answer(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        // A reader that has seen enough, such as `head`, is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("standard output: {error}"));
            ExitCode::from(1)
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
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
}
