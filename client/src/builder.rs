//! Settings of a client and the connections made from them. The transport's defaults suit small
//! messages; tensors want large frames, a large message limit and several connections.

use std::{num::NonZeroUsize, time::Duration};

use requant_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use tonic::{codec::CompressionEncoding, transport::Endpoint};
use tonic_health::pb::health_client::HealthClient;

use crate::{
    AddressError, Client, Error, RetryPolicy,
    client::{Connection, Limits},
};

/// Largest HTTP/2 frame that the server may send: large frames save CPU time on both sides.
const FRAME: u32 = 1 << 20;
/// Bytes that may be under way, for one call and for the connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// No call may take longer, since longer times do not fit the wire's format.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    address: String,
    connections: NonZeroUsize,
    limits: Limits,
    connect_timeout: Duration,
    max_message: usize,
    gzip: bool,
}

impl ClientBuilder {
    pub(crate) fn new(address: String) -> Self {
        Self {
            address,
            connections: NonZeroUsize::MIN,
            limits: Limits {
                call: Duration::from_secs(30),
                load: Duration::from_secs(300),
                retry: RetryPolicy::default(),
            },
            connect_timeout: Duration::from_secs(5),
            max_message: 64 << 20,
            gzip: false,
        }
    }

    /// Number of connections over which calls go in turn (1). One connection is one task on each
    /// side; many calls at a time gain from several.
    pub const fn connections(mut self, connections: NonZeroUsize) -> Self {
        self.connections = connections;
        self
    }

    /// Time for a call, its retries included (30 s). The server learns it and drops the work after.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.call = timeout.min(LONGEST_TIMEOUT);
        self
    }

    /// Time for loading and unloading a model (5 min).
    pub fn load_timeout(mut self, timeout: Duration) -> Self {
        self.limits.load = timeout.min(LONGEST_TIMEOUT);
        self
    }

    /// Time for setting up a connection (5 s).
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// When calls are tried again.
    pub const fn retry(mut self, policy: RetryPolicy) -> Self {
        self.limits.retry = policy;
        self
    }

    /// Largest response to accept, in bytes after decompression (64 MiB). Requests have no limit of
    /// the client's own; the server states its.
    pub const fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }

    /// Compresses requests and asks for compressed responses (off). It saves bytes and costs time.
    pub const fn gzip(mut self, gzip: bool) -> Self {
        self.gzip = gzip;
        self
    }

    /// Makes the client. Connections are set up by the first calls that use them, so a server that
    /// is down shows as UNAVAILABLE there. Asynchronous because the connections belong to the tokio
    /// runtime that runs this.
    ///
    /// # Errors
    /// When the address is not of the form `HOST:PORT` or `http://HOST:PORT`.
    pub async fn build(self) -> Result<Client, Error> {
        let endpoint = endpoint(&self.address)
            .map_err(|source| Error::Address {
                address: self.address.clone(),
                source,
            })?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME);
        let connections = (0..self.connections.get())
            .map(|_| self.connection(&endpoint))
            .collect();
        Ok(Client::new(connections, self.limits))
    }

    fn connection(&self, endpoint: &Endpoint) -> Connection {
        let channel = endpoint.connect_lazy();
        let mut inference = GrpcInferenceServiceClient::new(channel.clone())
            .max_decoding_message_size(self.max_message)
            .max_encoding_message_size(usize::MAX);
        if self.gzip {
            inference = inference
                .send_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Gzip);
        }
        Connection {
            inference,
            health: HealthClient::new(channel),
        }
    }
}

fn endpoint(address: &str) -> Result<Endpoint, AddressError> {
    let uri = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let endpoint = Endpoint::from_shared(uri)?;
    let uri = endpoint.uri();
    match uri.scheme_str() {
        Some("http") => {}
        scheme => {
            return Err(AddressError::Scheme {
                scheme: scheme.unwrap_or_default().to_owned(),
            });
        }
    }
    if uri.port_u16().is_none() || uri.host().is_none_or(str::is_empty) {
        return Err(AddressError::Incomplete);
    }
    if uri
        .path_and_query()
        .is_some_and(|path| path.as_str() != "/")
    {
        return Err(AddressError::Path);
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_host_and_port_are_taken() {
        for address in [
            "127.0.0.1:8001",
            "localhost:1",
            "[::1]:8001",
            "http://host:80",
            "http://host:8001/",
        ] {
            assert!(endpoint(address).is_ok(), "{address}");
        }
    }

    #[test]
    fn other_addresses_are_refused() {
        let cases = [
            ("", "expected HOST:PORT"),
            ("localhost", "expected HOST:PORT"),
            (":8001", "expected HOST:PORT"),
            ("localhost:", "expected HOST:PORT"),
            ("localhost:99999", "expected HOST:PORT"),
            ("http://h:1/path", "nothing may follow the port"),
            ("h:1/?q", "nothing may follow the port"),
            (
                "https://h:1",
                "scheme \"https\" is not supported, only http",
            ),
            ("grpc://h:1", "scheme \"grpc\" is not supported, only http"),
            ("two words:1", "expected HOST:PORT"),
        ];
        for (address, message) in cases {
            let error = endpoint(address).unwrap_err();
            assert_eq!(error.to_string(), message, "{address:?}");
        }
    }
}
