//! The server's process: read the flags, start, say where to reach it, and stop cleanly on a signal.

use std::{
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    thread::available_parallelism,
    time::Duration,
};

use anyhow::Context as _;
use requant_server::{
    engine::{self, EngineError},
    logging,
    options::{Options, Refusal},
    server::{Server, StartError},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often a followed repository is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let options = match Options::read(std::env::args_os()) {
        Ok(options) => options,
        Err(Refusal::Answer(text)) => {
            // Nobody is left to tell when stdout is closed.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Wrong(line)) => return refuse(&line),
    };
    logging::install(options.log_format);
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<StartError>() {
            Some(StartError::Listen { .. }) => refuse(&error.to_string()),
            None if matches!(
                error.downcast_ref(),
                Some(EngineError::NoDevice(_) | EngineError::Tuning(_))
            ) =>
            {
                refuse(&error.to_string())
            }
            Some(_) | None => {
                tracing::error!(error = format!("{error:#}"), "server failed");
                ExitCode::FAILURE
            }
        },
    }
}

fn refuse(line: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "requant-server: {line}");
    ExitCode::from(2)
}

fn run(options: &Options) -> anyhow::Result<()> {
    // One I/O thread for every four cores: I/O only parses, checks and copies, and every core it does
    // not take computes. At least two, so that a large message being parsed holds nobody else up.
    let cores = available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 4).max(2))
        .thread_name("io")
        .enable_all()
        .build()
        .context("starting the I/O threads")?;
    runtime.block_on(serve(options))?;
    runtime.shutdown_background();
    Ok(())
}

async fn serve(options: &Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let engine = engine::open(options.backend, options.cpu(), &options.tuning)?;
    let mut server = Server::start(options, Arc::clone(&engine)).await?;
    if let Some(reason) = engine.missing_device() {
        tracing::info!(%reason, "no GPU: the CPU computes");
    }
    let early = tokio::select! {
        loaded = server.load(options, POLL_INTERVAL) => {
            loaded?;
            false
        }
        () = stopped(&mut terminate, &mut interrupt) => true,
    };
    if !early {
        greet(&server);
        stopped(&mut terminate, &mut interrupt).await;
    }
    tracing::info!("stopping");
    let drained = server.drain().await;
    if !drained.complete {
        tracing::warn!("drain timeout: some requests were not answered");
    }
    tracing::info!(calls = drained.calls, "stopped");
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
async fn stopped(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Says where the server is and what to send it.
fn greet(server: &Server) {
    let registry = server.registry();
    let models = registry.served("").unwrap_or_default();
    let (grpc, metrics) = (
        reachable(server.grpc_address()),
        reachable(server.metrics_address()),
    );
    let mut text = format!("gRPC     {grpc}\nmetrics  http://{metrics}/metrics\n");
    for version in &models {
        let precision = version.network.precision();
        text += &format!(
            "model    {} version {} ({precision})\n",
            version.model, version.number
        );
    }
    if let Some(version) = models.first()
        && let Some(input) = version.signature().inputs.first()
    {
        // An image for the built-in model comes with the sources.
        let file = match registry.folder() {
            None => "model/builtin/example.npy",
            Some(_) => "FILE.npy",
        };
        text += &format!(
            "try      requant infer {} --input {}={file} --server {grpc}\n",
            version.model, input.name
        );
    }
    let state = if registry.ready() {
        "ready"
    } else {
        "not ready, see the log"
    };
    text += &format!("status   {state}\n");
    // A closed stdout must not stop a server.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() && ip.is_ipv4() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        ip if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}
