//! The `requant` command: inference and repository calls from a shell. It exits with 0 when the
//! call succeeded, with 1 when the server refused it or was not there, and with 2 for a wrong flag
//! or file; a failure is one line on standard error.

mod admin;
mod args;
mod failure;
mod infer;
mod print;

use std::{
    io::{self, ErrorKind, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use requant_client::Client;

use crate::{
    args::{Args, Command},
    failure::Failure,
};

fn main() -> ExitCode {
    let outcome = match Args::try_parse() {
        Ok(args) => run(args),
        Err(error) if error.exit_code() == 0 => Ok(error.render().to_string()),
        Err(error) => Err(Failure::usage(&error)),
    };
    match outcome.and_then(|text| write(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to tell when standard error is closed too.
            let _ = writeln!(io::stderr(), "error: {}", failure.line());
            failure.exit_code()
        }
    }
}

fn run(args: Args) -> Result<String, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Local(format!("cannot start: {error}")))?;
    runtime.block_on(call(args))
}

/// Makes the call and gives back what goes to standard output.
async fn call(args: Args) -> Result<String, Failure> {
    let inputs = if let Command::Infer(infer) = &args.command {
        infer::read_inputs(infer)?
    } else {
        Vec::new()
    };
    let mut builder = Client::builder(&args.server);
    if let Some(timeout) = args.timeout {
        builder = builder.timeout(timeout).load_timeout(timeout);
    }
    let client = builder.build().await?;
    match args.command {
        Command::Infer(infer) => infer::run(&client, &infer, inputs).await,
        Command::Models => admin::models(&client).await,
        Command::Load { name } => admin::load(&client, &name).await,
        Command::Unload { name } => admin::unload(&client, &name).await,
        Command::Stats { name } => admin::stats(&client, name.as_deref()).await,
        Command::Health => admin::health(&client).await,
    }
}

fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // A reader that has seen enough, such as `head`, is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Local(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
