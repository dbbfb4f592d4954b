//! A running server: listeners, services, and the order in which they come up and go down.
//!
//! Up: both ports are bound before any model is loaded, so that a wrong address is an error at once
//! and liveness can be asked while models load. Down: readiness goes first and everything is still
//! served, then connections are told to go away while their calls are finished, then the lines are
//! emptied.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use requant_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::{
    codec::CompressionEncoding,
    transport::server::{Router, TcpIncoming},
};
use tonic_health::pb::health_server::HealthServer;
use tower::layer::util::{Identity, Stack};

use crate::{
    engine::Engine,
    grpc::{EdgeLayer, HealthService, InFlight, InferenceService},
    metrics::{self, Recorder},
    metrics_http,
    options::{ModelControl, Options},
    repository::{LoadError, Registry, Source, follow},
};

/// Frames of this size take a large tensor in a few reads; the default of 16 KiB halves throughput.
const FRAME_BYTES: u32 = 1 << 20;
/// Bytes under way on one call.
const STREAM_WINDOW: u32 = 4 << 20;
/// Bytes under way on one connection.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How often an idle connection is asked whether the other end is alive.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long readiness is seen to be false before connections are told to go away.
const ANNOUNCEMENT: Duration = Duration::from_millis(250);
/// How long connections may take to close when no call is left; a client that does not answer would
/// hold the server up for the whole drain timeout.
const PARTING: Duration = Duration::from_secs(1);
/// How many of the largest requests may be on their way in at once.
const ARRIVING_REQUESTS: usize = 16;
/// How long a caller may be silent in the middle of a message.
const SILENCE: Duration = Duration::from_secs(30);
/// How often recorded metric samples are moved into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be had.
    #[error("{flag}: cannot listen on {address}: {source}")]
    Listen {
        /// The flag that names the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The metrics recorder cannot be set up.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The descriptors for reflection are refused.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A server that accepts calls.
#[derive(Debug)]
pub struct Server {
    grpc_address: SocketAddr,
    metrics_address: SocketAddr,
    registry: Arc<Registry>,
    /// Set to true when connections are told to go away.
    leave: watch::Sender<bool>,
    in_flight: InFlight,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    background: Vec<JoinHandle<()>>,
    drain_limit: Duration,
}

impl Server {
    /// Binds the ports and starts to serve; models are not loaded yet.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: &Options, engine: Arc<dyn Engine>) -> Result<Server, StartError> {
        let recorder = Recorder::install()?;
        engine.infos().iter().for_each(metrics::backend);
        let incoming = TcpIncoming::bind(options.grpc_address)
            .and_then(|incoming| incoming.local_addr().map(|address| (incoming, address)));
        let (incoming, grpc_address) = incoming.map_err(|source| StartError::Listen {
            flag: "--grpc-address",
            address: options.grpc_address,
            source,
        })?;
        let metrics_fault = |source| StartError::Listen {
            flag: "--metrics-address",
            address: options.metrics_address,
            source,
        };
        let listener = TcpListener::bind(options.metrics_address)
            .await
            .map_err(metrics_fault)?;
        let metrics_address = listener.local_addr().map_err(metrics_fault)?;

        let source = match &options.model_repository {
            Some(folder) => Source::Folder(folder.clone()),
            None => Source::BuiltIn,
        };
        let registry = Registry::new(engine, source, options.drain_limit());
        let (leave, mut left) = watch::channel(false);
        let in_flight = InFlight::new(
            options
                .max_request_bytes()
                .saturating_mul(ARRIVING_REQUESTS),
            SILENCE,
        );
        let router = router(options, &registry, in_flight.clone())?;
        let incoming = incoming
            .with_nodelay(Some(true))
            .with_keepalive(Some(KEEPALIVE));
        let grpc = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async move {
            // An error means that the server was dropped, which also ends it.
            let _ = left.wait_for(|&left| left).await;
        }));
        let upkeep = recorder.clone();
        let background = vec![
            tokio::spawn(metrics_http::serve(listener, recorder)),
            tokio::spawn(async move {
                let mut ticks = tokio::time::interval(UPKEEP);
                loop {
                    ticks.tick().await;
                    upkeep.upkeep();
                }
            }),
        ];
        Ok(Server {
            grpc_address,
            metrics_address,
            registry,
            leave,
            in_flight,
            grpc,
            background,
            drain_limit: options.drain_limit(),
        })
    }

    /// Loads the models that are served from the start, and starts to follow the folder if asked
    /// to, looking every `interval`.
    ///
    /// # Errors
    /// When the repository cannot be listed; a model that cannot be loaded is not an error here.
    pub async fn load(&mut self, options: &Options, interval: Duration) -> Result<(), LoadError> {
        let only = match options.model_control {
            ModelControl::Explicit => Some(options.load_model.as_slice()),
            ModelControl::None | ModelControl::Poll => None,
        };
        self.registry.load_initial(only).await?;
        if options.model_control == ModelControl::Poll {
            let following = follow(Arc::clone(&self.registry), interval);
            self.background.push(tokio::spawn(following));
        }
        Ok(())
    }

    /// Where gRPC is served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where metrics are served.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_address
    }

    /// The models.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Stops: not ready, then no new connections, then nothing. Calls that were accepted are
    /// answered, unless that takes longer than the drain timeout.
    pub async fn drain(mut self) -> Drained {
        self.registry.stop();
        let complete = tokio::time::timeout(self.drain_limit.max(ANNOUNCEMENT), async {
            tokio::time::sleep(ANNOUNCEMENT.min(self.drain_limit)).await;
            self.leave.send_replace(true);
            tokio::select! {
                _ = &mut self.grpc => {}
                () = quiet(&self.in_flight, PARTING) => {}
            }
            self.registry.close().await;
        })
        .await
        .is_ok();
        self.grpc.abort();
        for task in &self.background {
            task.abort();
        }
        Drained {
            complete,
            calls: self.in_flight.arrived(),
        }
    }
}

/// How a server ended.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// Whether every accepted call was answered in time.
    pub complete: bool,
    /// How many calls were accepted since the start, of every kind.
    pub calls: usize,
}

/// Waits until for `time` no call was worked on and nothing arrived.
async fn quiet(in_flight: &InFlight, time: Duration) {
    let step = Duration::from_millis(10);
    let (mut idle, mut frames) = (Duration::ZERO, in_flight.frames());
    while idle < time {
        tokio::time::sleep(step).await;
        let before = std::mem::replace(&mut frames, in_flight.frames());
        idle = match in_flight.working() == 0 && frames == before {
            true => idle + step,
            false => Duration::ZERO,
        };
    }
}

fn router(
    options: &Options,
    registry: &Arc<Registry>,
    in_flight: InFlight,
) -> Result<Router<Stack<EdgeLayer, Identity>>, StartError> {
    let control = options.model_control == ModelControl::Explicit;
    let inference =
        GrpcInferenceServiceServer::new(InferenceService::new(Arc::clone(registry), control))
            .max_decoding_message_size(options.max_request_bytes())
            .max_encoding_message_size(usize::MAX)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
    let health = HealthServer::new(HealthService::new(Arc::clone(registry)));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(requant_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(tonic::transport::Server::builder()
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .layer(EdgeLayer::new(options.max_request_mib, in_flight))
        .add_service(inference)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}
