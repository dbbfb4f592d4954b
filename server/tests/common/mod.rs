//! A server in this process around an engine that computes something simple, so that tests know
//! every answer, can make a run slow or fail, and can see which batches were formed.

#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::panic,
    reason = "every test file uses a part of this, and nobody else does"
)]

use std::{
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use clap::Parser as _;
use requant_numerics::{DType, ModelPrecision};
use requant_proto::inference::{
    ModelInferRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use requant_runtime::CudaError;
use requant_server::{
    engine::{
        BackendInfo, Engine, EngineError, ExecError, Footprint, Form, Instance, Network, Place,
        PrecisionStats, QuantizedForm, Reading, RunStats, Signature, TensorInfo,
    },
    options::Options,
    server::Server,
};
use tonic::transport::Channel;

/// What a test can do to the engine while it runs, and what it can see.
#[derive(Debug, Default)]
pub struct Controls {
    /// Batch sizes in the order in which they were run, warm-up left out.
    pub batches: Mutex<Vec<usize>>,
    /// The next run panics.
    pub panic: AtomicBool,
    /// The next run fails.
    pub fail: AtomicBool,
    /// The next run finds its device reset.
    pub abandon: AtomicBool,
    /// Instances made.
    pub instances: AtomicUsize,
    gate: Mutex<bool>,
    opened: Condvar,
    /// Runs that wait at the gate.
    pub waiting: AtomicUsize,
}

impl Controls {
    /// Makes every run wait.
    pub fn shut(&self) {
        *self.gate.lock().unwrap() = true;
    }

    /// Lets the waiting runs go on.
    pub fn open(&self) {
        *self.gate.lock().unwrap() = false;
        self.opened.notify_all();
    }

    /// Waits until `count` runs are at the gate.
    pub async fn until_waiting(&self, count: usize) {
        while self.waiting.load(SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn pass(&self) {
        let mut shut = self.gate.lock().unwrap();
        self.waiting.fetch_add(1, SeqCst);
        while *shut {
            shut = self.opened.wait(shut).unwrap();
        }
        self.waiting.fetch_sub(1, SeqCst);
    }
}

/// An engine whose models are the files' first words: `batched`, `fixed`, or anything else, which is
/// refused with that word as the reason.
///
/// Both models have an input `x` (FP32 [2, 3], own integers UINT8 with scale 0.5 and zero point 3),
/// an input `i` (INT8 [4]) and outputs `y` (FP32 [3]: the column sums of `x`, own integers INT8 with
/// scale 0.5 and zero point -1) and `k` (INT64, no dimensions: the sum of `i`, plus the file's
/// second word).
#[derive(Debug, Default)]
pub struct Fake {
    pub controls: Arc<Controls>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

#[derive(Debug)]
struct FakeNetwork {
    signature: Signature,
    bias: i64,
    controls: Arc<Controls>,
}

struct FakeInstance {
    x: Vec<f32>,
    i: Vec<i8>,
    rows: usize,
    bias: i64,
    warm: bool,
    stats: RunStats,
    controls: Arc<Controls>,
}

fn tensor(name: &str, dtype: DType, dims: &[usize], own: Option<(DType, i32)>) -> TensorInfo {
    TensorInfo {
        name: name.to_owned(),
        dtype,
        dims: dims.to_vec(),
        quantized: own.map(|(dtype, zero_point)| QuantizedForm {
            dtype,
            scale: 0.5,
            zero_point,
        }),
    }
}

impl Fake {
    fn network(&self, batched: bool, bias: i64) -> Arc<dyn Network> {
        Arc::new(FakeNetwork {
            signature: Signature {
                batched,
                inputs: vec![
                    tensor("x", DType::F32, &[2, 3], Some((DType::U8, 3))),
                    tensor("i", DType::I8, &[4], None),
                ],
                outputs: vec![
                    tensor("y", DType::F32, &[3], Some((DType::I8, -1))),
                    tensor("k", DType::I64, &[], None),
                ],
            },
            bias,
            controls: Arc::clone(&self.controls),
        })
    }
}

impl Engine for Fake {
    fn info(&self) -> BackendInfo {
        BackendInfo {
            backend: "fake",
            isa: "none",
            device: "test".to_owned(),
            threads: 1,
        }
    }

    fn load(&self, file: &Path, _reading: &Reading) -> Result<Arc<dyn Network>, EngineError> {
        let text = std::fs::read_to_string(file).map_err(EngineError::refused)?;
        let mut words = text.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let bias = words.next().map_or(0, |word| word.parse().unwrap_or(0));
        match kind {
            "batched" => Ok(self.network(true, bias)),
            "fixed" => Ok(self.network(false, bias)),
            "slow" => {
                std::thread::sleep(Duration::from_millis(300));
                Ok(self.network(true, bias))
            }
            other => Err(EngineError::refused(Refused(other.to_owned()))),
        }
    }

    fn built_in(&self) -> Result<Arc<dyn Network>, EngineError> {
        Ok(self.network(true, 0))
    }
}

impl Network for FakeNetwork {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn precision(&self) -> ModelPrecision {
        ModelPrecision::Mixed
    }

    fn footprint(&self, max_batch: usize) -> Footprint {
        Footprint {
            weight_bytes: 1000,
            arena_bytes: max_batch << 20,
        }
    }

    fn instance(&self, _place: Place, max_batch: usize) -> Result<Box<dyn Instance>, ExecError> {
        self.controls.instances.fetch_add(1, SeqCst);
        Ok(Box::new(FakeInstance {
            x: vec![0.0; 6 * max_batch],
            i: vec![0; 4 * max_batch],
            rows: max_batch,
            bias: self.bias,
            warm: false,
            stats: RunStats::default(),
            controls: Arc::clone(&self.controls),
        }))
    }
}

fn floats(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

impl Instance for FakeInstance {
    fn max_batch(&self) -> usize {
        self.rows
    }

    fn write_input(
        &mut self,
        input: usize,
        first: usize,
        samples: usize,
        form: Form,
        data: &[u8],
    ) -> Result<(), ExecError> {
        match (input, form) {
            (0, Form::Declared) => {
                self.x[6 * first..][..6 * samples].copy_from_slice(&floats(data));
            }
            (0, Form::Quantized) => {
                for (x, &q) in self.x[6 * first..][..6 * samples].iter_mut().zip(data) {
                    *x = 0.5 * (f32::from(q) - 3.0);
                }
            }
            (_, _) => {
                for (i, &byte) in self.i[4 * first..][..4 * samples].iter_mut().zip(data) {
                    *i = byte as i8;
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, samples: usize) -> Result<&RunStats, ExecError> {
        if self.warm {
            self.controls.batches.lock().unwrap().push(samples);
            self.controls.pass();
        }
        self.warm = true;
        assert!(
            !self.controls.panic.swap(false, SeqCst),
            "the test wants a panic"
        );
        if self.controls.abandon.swap(false, SeqCst) {
            return Err(ExecError::Device(CudaError::Abandoned));
        }
        if self.controls.fail.swap(false, SeqCst) {
            return Err(ExecError::Port {
                what: "test",
                index: 0,
            });
        }
        self.stats.by_precision = vec![PrecisionStats {
            label: "w4a8",
            time: Duration::from_micros(250),
            operations: 100 * samples as u64,
        }];
        Ok(&self.stats)
    }

    fn read_output(
        &self,
        output: usize,
        first: usize,
        samples: usize,
        form: Form,
        data: &mut [u8],
    ) -> Result<(), ExecError> {
        let mut out = Vec::new();
        for sample in first..first + samples {
            let x = &self.x[6 * sample..][..6];
            let i = &self.i[4 * sample..][..4];
            let sums: Vec<f32> = (0..3).map(|column| x[column] + x[3 + column]).collect();
            match (output, form) {
                (0, Form::Declared) => out.extend(sums.iter().flat_map(|y| y.to_le_bytes())),
                (0, Form::Quantized) => {
                    out.extend(sums.iter().map(|y| (y / 0.5 - 1.0) as i8 as u8))
                }
                (_, _) => {
                    let k = i.iter().map(|&i| i64::from(i)).sum::<i64>() + self.bias;
                    out.extend(k.to_le_bytes());
                }
            }
        }
        data.copy_from_slice(&out);
        Ok(())
    }
}

/// A client of the server under test.
pub type Client = GrpcInferenceServiceClient<Channel>;

/// A server under test.
pub struct Running {
    pub server: Server,
    pub client: Client,
    pub channel: Channel,
    pub controls: Arc<Controls>,
}

/// Options with free ports and these arguments.
pub fn options(arguments: &[&str]) -> Options {
    let base = [
        "requant-server",
        "--grpc-address",
        "127.0.0.1:0",
        "--metrics-address",
        "127.0.0.1:0",
    ];
    Options::try_parse_from(base.iter().chain(arguments)).unwrap()
}

/// Starts a server with the fake engine, loads its models and connects.
pub async fn start(arguments: &[&str]) -> Running {
    let fake = Fake::default();
    let controls = Arc::clone(&fake.controls);
    let options = options(arguments);
    let mut server = Server::start(&options, Arc::new(fake)).await.unwrap();
    server
        .load(&options, Duration::from_millis(30))
        .await
        .unwrap();
    let uri = format!("http://{}", server.grpc_address());
    let channel = Channel::from_shared(uri).unwrap().connect().await.unwrap();
    Running {
        client: GrpcInferenceServiceClient::new(channel.clone()),
        channel,
        server,
        controls,
    }
}

/// Name, configuration and versions of a model.
pub type Model<'a> = (&'a str, &'a str, &'a [(u64, &'a str)]);

/// A repository in a temporary folder: for each model its name, configuration (none when empty) and
/// versions with the text of the model file.
pub fn repository(models: &[Model<'_>]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, config, versions) in models {
        write_model(folder.path(), name, config, versions);
    }
    folder
}

/// Writes one model into a repository.
pub fn write_model(repository: &Path, name: &str, config: &str, versions: &[(u64, &str)]) {
    let model = repository.join(name);
    std::fs::create_dir_all(&model).unwrap();
    if !config.is_empty() {
        std::fs::write(model.join("config.pbtxt"), config).unwrap();
    }
    for (version, text) in versions {
        let folder = model.join(version.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("model.onnx"), text).unwrap();
    }
}

/// Starts a server on a repository.
pub async fn serve(repository: &tempfile::TempDir, arguments: &[&str]) -> Running {
    let folder = repository.path().to_str().unwrap();
    let mut all = vec!["--model-repository", folder];
    all.extend(arguments);
    start(&all).await
}

/// Bytes of floats.
pub fn f32_bytes(values: &[f32]) -> bytes::Bytes {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Floats of bytes.
pub fn f32_values(data: &[u8]) -> Vec<f32> {
    floats(data)
}

/// An input without contents.
pub fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

/// A request for an output.
pub fn output(name: &str) -> InferRequestedOutputTensor {
    InferRequestedOutputTensor {
        name: name.to_owned(),
        ..InferRequestedOutputTensor::default()
    }
}

/// A good request with raw contents: `x` counts up from `start`, `i` is all ones.
pub fn good(model: &str, rows: usize, start: f32) -> ModelInferRequest {
    let n = rows as i64;
    let x: Vec<f32> = (0..6 * rows).map(|index| start + index as f32).collect();
    ModelInferRequest {
        model_name: model.to_owned(),
        id: format!("id-{start}"),
        inputs: vec![input("x", "FP32", &[n, 2, 3]), input("i", "INT8", &[n, 4])],
        raw_input_contents: vec![f32_bytes(&x), vec![1; 4 * rows].into()],
        ..ModelInferRequest::default()
    }
}

/// What `y` must be for [`good`].
pub fn good_y(rows: usize, start: f32) -> Vec<f32> {
    let row =
        |row: usize| (0..3).map(move |column| 2.0 * start + (12 * row + 2 * column + 3) as f32);
    (0..rows).flat_map(row).collect()
}

/// One image for the built-in model.
pub fn fashion_request() -> ModelInferRequest {
    let mut request = good("fashion", 1, 0.0);
    request.inputs = vec![input("input", "FP32", &[1, 1, 28, 28])];
    request.raw_input_contents = vec![f32_bytes(&[0.25; 784])];
    request
}

/// `GET /metrics`, by hand.
pub async fn scrape(address: std::net::SocketAddr) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text
}
