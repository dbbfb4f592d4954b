//! The real program: exit codes, what it prints, and a drain under load.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

mod common;

use std::{
    error::Error as _,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use requant_model::{artifact, builtin};
use requant_proto::inference::{
    self as pb, grpc_inference_service_client::GrpcInferenceServiceClient,
};
use requant_runtime::{CpuBackend, CpuOptions, Plan, PlanOptions};
use tonic::{Code, transport::Channel};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requant-server"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("REQUANT_")) {
        command.env_remove(key);
    }
    command.env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

#[test]
fn wrong_flags_exit_with_2_and_one_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap().to_string();
    for arguments in [
        &["--http-address", "0.0.0.0:8000"][..],
        &["--auth-token-file", "x"],
        &["--backend", "quantum"],
        &["--grpc-address", "8001"],
        &["--grpc-address", &taken],
        &["--grpc-address", "127.0.0.1:0", "--metrics-address", &taken],
        &["--model-repository", "/nonexistent/folder"],
        &["--model-repository", file.path().to_str().unwrap()],
        &["--max-request-mib", "lots"],
        &["--threads", "0"],
        &["model.onnx"],
    ] {
        let output = run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    let output = program()
        .env("REQUANT_DRAIN_TIMEOUT", "soon")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn cuda_without_a_device_exits_with_2_and_the_reason() {
    let Some(library) = requant_conformance::emulator::library() else {
        println!("skipped: no C++ compiler to build the emulated driver with");
        return;
    };
    let output = program()
        .args(["--backend", "cuda", "--grpc-address", "127.0.0.1:0"])
        .env("LD_LIBRARY_PATH", library.parent().unwrap())
        .env("REQUANT_EMULATED", "init=100")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let reason =
        "requant-server: the CUDA backend cannot run: CUDA device 0 does not exist, there are 0\n";
    assert_eq!(stderr, reason);
}

#[test]
fn auto_without_a_device_says_once_that_the_cpu_computes() {
    let Some(library) = requant_conformance::emulator::library() else {
        println!("skipped: no C++ compiler to build the emulated driver with");
        return;
    };
    // A driver and no device; a driver that is too old; a device that no kernels are for.
    for (settings, reason) in [
        ("init=100", "CUDA device 0 does not exist, there are 0"),
        (
            "driver=12080",
            "the CUDA driver supports CUDA 12.8, 13.0 is needed",
        ),
        ("major=7", "no kernels for compute capability 7.0"),
    ] {
        let folder = library.parent().unwrap().to_str().unwrap();
        let environment = [("LD_LIBRARY_PATH", folder), ("REQUANT_EMULATED", settings)];
        let process = Process::start_with(&["--backend", "auto"], &environment);
        process.signal("-TERM");
        let (code, text) = process.end();
        assert_eq!(code, Some(0), "{text}");
        let told: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("the CPU computes"))
            .collect();
        assert_eq!(told.len(), 1, "{text}");
        assert!(told[0].contains(reason), "{text}");
        let named = ["GPU", "CUDA", "device"];
        let about = |line: &&str| named.iter().any(|name| line.contains(name));
        assert_eq!(text.lines().filter(about).count(), 1, "{text}");
    }
}

#[test]
fn a_table_of_fast_kernels_is_used_where_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuning.json");
    let file = path.to_str().unwrap();
    let warning = "the table of --tuning is not used";
    let output = run(&["--tuning", file]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("tuning.json: "), "{stderr}");

    let options = CpuOptions {
        threads: 1,
        ..CpuOptions::default()
    };
    let graph = artifact::read(builtin::FASHION).unwrap();
    let plan = Plan::new(graph, &PlanOptions::default()).unwrap();
    let table = CpuBackend::new(options).unwrap().tune(&plan, 1, 1).unwrap();
    std::fs::write(&path, table.json().unwrap()).unwrap();
    for (threads, used) in [("1", true), ("2", false)] {
        let arguments = ["--tuning", file, "--backend", "cpu", "--threads", threads];
        let process = Process::start(&arguments);
        process.signal("-TERM");
        let (code, text) = process.end();
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(!text.contains(warning), used, "{text}");
    }
}

#[test]
fn help_and_version_exit_with_0() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).unwrap();
    for flag in [
        "--model-repository",
        "--grpc-address",
        "--metrics-address",
        "--backend",
        "--model-control",
        "--load-model",
        "--threads",
        "--tuning",
        "--max-request-mib",
        "--drain-timeout",
        "--log-format",
    ] {
        assert!(text.contains(flag), "{flag}");
    }
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

/// A server in a process of its own, ended with the test.
struct Process {
    child: Child,
    grpc: String,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(arguments: &[&str]) -> Process {
        Process::start_with(arguments, &[])
    }

    fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Process {
        let mut child = program()
            .envs(environment.iter().copied())
            .args([
                "--grpc-address",
                "127.0.0.1:0",
                "--metrics-address",
                "127.0.0.1:0",
            ])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line
            .split_whitespace()
            .nth(1)
            .unwrap_or_else(|| panic!("printed {line:?}"));
        Process {
            grpc: format!("http://{address}"),
            child,
            stdout,
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end; stdout and stderr from then on.
    fn end(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

async fn connect(uri: &str) -> GrpcInferenceServiceClient<Channel> {
    let channel = Channel::from_shared(uri.to_owned())
        .unwrap()
        .connect()
        .await
        .unwrap();
    GrpcInferenceServiceClient::new(channel)
}

#[tokio::test]
async fn a_drain_loses_nothing_that_was_accepted() {
    let process = Process::start(&["--drain-timeout", "20"]);
    let stopping = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    // The calls that end a caller: refused in words, or cut off with the connection.
    let refused = Arc::new(AtomicUsize::new(0));
    let mut callers = Vec::new();
    for _ in 0..8 {
        let mut client = connect(&process.grpc).await;
        let (stopping, answered) = (Arc::clone(&stopping), Arc::clone(&answered));
        let refused = Arc::clone(&refused);
        callers.push(tokio::spawn(async move {
            loop {
                match client.model_infer(common::fashion_request()).await {
                    Ok(answer) => {
                        assert_eq!(answer.into_inner().raw_output_contents[0].len(), 40);
                        answered.fetch_add(1, SeqCst);
                    }
                    Err(status) => {
                        assert!(stopping.load(SeqCst), "failed before the stop: {status}");
                        if status.source().is_none() {
                            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                            refused.fetch_add(1, SeqCst);
                        }
                        return;
                    }
                }
            }
        }));
    }
    let mut watcher = tonic_health::pb::health_client::HealthClient::new(
        Channel::from_shared(process.grpc.clone())
            .unwrap()
            .connect()
            .await
            .unwrap(),
    );
    let request = tonic_health::pb::HealthCheckRequest::default();
    let mut health = watcher.watch(request).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, 1);
    while answered.load(SeqCst) < 50 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stopping.store(true, SeqCst);
    let stopped = Instant::now();
    process.signal("-TERM");
    // The watch says NOT_SERVING and ends, so that it does not hold the server up.
    assert_eq!(health.message().await.unwrap().unwrap().status, 2);
    assert!(health.message().await.unwrap().is_none());
    for caller in callers {
        caller.await.unwrap();
    }
    let (code, text) = process.end();
    assert_eq!(code, Some(0), "{text}");
    assert!(
        stopped.elapsed() < Duration::from_secs(15),
        "{:?}",
        stopped.elapsed()
    );
    assert!(!text.contains("not answered"), "{text}");
    // A call that met a closed connection was never taken: what the server took, it answered. The
    // one more is the watch.
    let told = answered.load(SeqCst) + refused.load(SeqCst) + 1;
    assert!(text.contains(&format!("calls={told}")), "{told}: {text}");
}

#[tokio::test]
async fn a_lost_device_is_one_line_of_the_log() {
    let Some(library) = requant_conformance::emulator::library() else {
        println!("skipped: no C++ compiler to build the emulated device with");
        return;
    };
    let folder = library.parent().unwrap().to_str().unwrap();
    // The built-in model is nine launches; three runs make each of its two instances ready.
    for (settings, line) in [
        ("fault=57,recover=1", "device lost and opened anew"),
        (
            "fault=57,recover=1,faults=2",
            "device lost again: the CPU computes",
        ),
    ] {
        let environment = [("LD_LIBRARY_PATH", folder), ("REQUANT_EMULATED", settings)];
        let process = Process::start_with(&["--backend", "cuda"], &environment);
        let mut client = connect(&process.grpc).await;
        let (mut lost, mut answers) = (0, Vec::new());
        while answers.len() < 4 {
            match client.model_infer(common::fashion_request()).await {
                Ok(answer) => answers.push(answer.into_inner().raw_output_contents),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status}");
                    lost += 1;
                }
            }
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        process.signal("-TERM");
        let (code, text) = process.end();
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(lost, text.matches("device lost ").count(), "{text}");
        assert_eq!(text.matches(line).count(), 1, "{text}");
    }
}

#[tokio::test]
async fn an_interrupt_stops_an_idle_server() {
    let process = Process::start(&["--log-format", "json"]);
    let mut client = connect(&process.grpc).await;
    let ready = client
        .server_ready(pb::ServerReadyRequest {})
        .await
        .unwrap();
    assert!(ready.into_inner().ready);
    process.signal("-INT");
    let (code, text) = process.end();
    assert_eq!(code, Some(0), "{text}");
    let logged: Vec<&str> = text.lines().filter(|line| line.starts_with('{')).collect();
    assert!(
        logged.iter().any(|line| line.contains("\"stopping\"")),
        "{text}"
    );
}

#[tokio::test]
async fn a_real_onnx_model_from_a_repository() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let data = std::env::var("REQUANT_TEST_DATA").unwrap_or_else(|_| data.to_owned());
    let file = Path::new(&data).join("quantized/onnx/ort_fmnist_resnet_qdq.onnx");
    if !file.is_file() {
        eprintln!("skipped: {} is not there", file.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("fmnist/1")).unwrap();
    std::fs::copy(&file, folder.path().join("fmnist/1/model.onnx")).unwrap();
    let process = Process::start(&["--model-repository", folder.path().to_str().unwrap()]);
    let mut client = connect(&process.grpc).await;
    let name = "fmnist".to_owned();
    let request = pb::ModelMetadataRequest {
        name: name.clone(),
        version: String::new(),
    };
    let metadata = client.model_metadata(request).await.unwrap().into_inner();
    let input = &metadata.inputs[0];
    let mut shape = input.shape.clone();
    if shape[0] == -1 {
        shape[0] = 1;
    }
    let mut request = common::fashion_request();
    request.model_name = name;
    request.inputs = vec![common::input(&input.name, &input.datatype, &shape)];
    let answer = client.model_infer(request).await.unwrap().into_inner();
    assert_eq!(common::f32_values(&answer.raw_output_contents[0]).len(), 10);
    process.signal("-TERM");
    assert_eq!(process.end().0, Some(0));
}

/// The network of fully connected layers, whose two roundings differ somewhere in 640 outputs.
#[tokio::test]
async fn tflite_models_follow_the_kernels_that_the_configuration_names() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let data = std::env::var("REQUANT_TEST_DATA").unwrap_or_else(|_| data.to_owned());
    let file = Path::new(&data).join("quantized/tflite/mlperf_tiny_ad01_int8.tflite");
    if !file.is_file() {
        eprintln!("skipped: {} is not there", file.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["default", "litert", "tflm", "xnnpack"] {
        let model = folder.path().join(name);
        std::fs::create_dir_all(model.join("1")).unwrap();
        std::fs::copy(&file, model.join("1/model.tflite")).unwrap();
        if name != "default" {
            let text = format!(
                "parameters {{ key: \"tflite_kernels\" value {{ string_value: \"{name}\" }} }}"
            );
            std::fs::write(model.join("config.pbtxt"), text).unwrap();
        }
    }
    let process = Process::start(&["--model-repository", folder.path().to_str().unwrap()]);
    let mut client = connect(&process.grpc).await;
    let mut answers = Vec::new();
    for name in ["default", "litert", "tflm"] {
        let request = pb::ModelMetadataRequest {
            name: name.to_owned(),
            version: String::new(),
        };
        let metadata = client.model_metadata(request).await.unwrap().into_inner();
        let (input, output) = (&metadata.inputs[0], &metadata.outputs[0]);
        assert_eq!(
            (input.datatype.as_str(), &input.shape[..]),
            ("INT8", &[-1, 640][..])
        );
        assert_eq!(
            (output.datatype.as_str(), &output.shape[..]),
            ("INT8", &[-1, 640][..])
        );
        let request = pb::ModelInferRequest {
            model_name: name.to_owned(),
            inputs: vec![common::input(&input.name, "INT8", &[1, 640])],
            raw_input_contents: vec![(0..640u32).map(|i| (i * 37) as u8).collect()],
            ..pb::ModelInferRequest::default()
        };
        let answer = client.model_infer(request).await.unwrap().into_inner();
        answers.push(answer.raw_output_contents[0].clone());
    }
    assert_eq!(answers[0], answers[1]);
    let differing = answers[1]
        .iter()
        .zip(&answers[2])
        .filter(|(a, b)| a != b)
        .count();
    assert!((1..640).contains(&differing), "{differing}");
    let index = client
        .repository_index(pb::RepositoryIndexRequest::default())
        .await
        .unwrap()
        .into_inner();
    let refused = index
        .models
        .iter()
        .find(|model| model.name == "xnnpack")
        .unwrap();
    assert!(
        refused
            .reason
            .contains("'xnnpack', expected litert or tflm"),
        "{}",
        refused.reason
    );
    process.signal("-TERM");
    assert_eq!(process.end().0, Some(0));
}
