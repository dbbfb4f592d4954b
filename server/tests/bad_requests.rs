//! Everything that can be wrong with a request: each fault has its code and a message that names the
//! tensor, and the server answers a good request afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

mod common;

use bytes::{BufMut as _, Bytes, BytesMut};
use common::*;
use prost::Message as _;
use requant_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, infer_parameter::ParameterChoice,
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{Request, Uri},
    transport::Channel,
};
use tower::Service as _;

/// A change to a good request, the code it must give, and words of the message.
struct Case {
    name: &'static str,
    change: fn(&mut ModelInferRequest),
    code: Code,
    words: &'static [&'static str],
}

const fn invalid(
    name: &'static str,
    change: fn(&mut ModelInferRequest),
    words: &'static [&'static str],
) -> Case {
    Case {
        name,
        change,
        code: Code::InvalidArgument,
        words,
    }
}

const fn missing(
    name: &'static str,
    change: fn(&mut ModelInferRequest),
    words: &'static [&'static str],
) -> Case {
    Case {
        name,
        change,
        code: Code::NotFound,
        words,
    }
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter {
        parameter_choice: Some(choice),
    }
}

fn set(request: &mut ModelInferRequest, key: &str, choice: ParameterChoice) {
    request.parameters.insert(key.to_owned(), parameter(choice));
}

/// Replaces raw contents by typed ones, correct for one sample.
fn make_typed(request: &mut ModelInferRequest) {
    request.raw_input_contents.clear();
    request.inputs[0].contents = Some(InferTensorContents {
        fp32_contents: vec![0.0; 6],
        ..Default::default()
    });
    request.inputs[1].contents = Some(InferTensorContents {
        int_contents: vec![0; 4],
        ..Default::default()
    });
}

fn typed_x(request: &mut ModelInferRequest) -> &mut InferTensorContents {
    make_typed(request);
    request.inputs[0].contents.as_mut().unwrap()
}

fn typed_i(request: &mut ModelInferRequest) -> &mut InferTensorContents {
    make_typed(request);
    request.inputs[1].contents.as_mut().unwrap()
}

fn want(request: &mut ModelInferRequest, key: &str, choice: ParameterChoice) {
    let mut wanted = output("k");
    wanted.parameters.insert(key.to_owned(), parameter(choice));
    request.outputs = vec![wanted];
}

fn cases() -> Vec<Case> {
    vec![
        // The model and its version.
        missing(
            "no model name",
            |r| r.model_name.clear(),
            &["unknown model"],
        ),
        missing("unknown model", |r| r.model_name = "z".into(), &["'z'"]),
        missing(
            "a path as model",
            |r| r.model_name = "../m".into(),
            &["'../m'"],
        ),
        missing(
            "unknown version",
            |r| r.model_version = "9".into(),
            &["'m'", "9"],
        ),
        missing(
            "huge version",
            |r| r.model_version = "9223372036854775807".into(),
            &["'m'"],
        ),
        invalid(
            "version is a word",
            |r| r.model_version = "latest".into(),
            &["'latest'"],
        ),
        invalid(
            "version is negative",
            |r| r.model_version = "-1".into(),
            &["'-1'"],
        ),
        invalid(
            "version is zero",
            |r| r.model_version = "0".into(),
            &["'0'"],
        ),
        invalid(
            "version overflows",
            |r| r.model_version = "9".repeat(30),
            &["999"],
        ),
        // Which inputs.
        invalid(
            "nothing at all",
            |r| {
                *r = ModelInferRequest {
                    model_name: "m".into(),
                    ..Default::default()
                };
            },
            &["'x'", "missing"],
        ),
        invalid(
            "unknown input",
            |r| r.inputs[0].name = "q".into(),
            &["'q'", "'x'"],
        ),
        invalid(
            "unnamed input",
            |r| r.inputs[0].name.clear(),
            &["''", "'x'"],
        ),
        invalid(
            "case matters",
            |r| r.inputs[0].name = "X".into(),
            &["'X'", "'x'"],
        ),
        invalid(
            "one input missing",
            |r| {
                r.inputs.pop();
                r.raw_input_contents.pop();
            },
            &["'i'", "missing"],
        ),
        invalid(
            "one input too many",
            |r| {
                r.inputs.push(input("extra", "FP32", &[1]));
                r.raw_input_contents.push(f32_bytes(&[1.0]));
            },
            &["'extra'"],
        ),
        invalid(
            "an input twice",
            |r| {
                r.inputs.push(r.inputs[0].clone());
                r.raw_input_contents.push(r.raw_input_contents[0].clone());
            },
            &["'x'", "more than once"],
        ),
        // Datatypes.
        invalid(
            "other datatype",
            |r| r.inputs[0].datatype = "INT32".into(),
            &["'x'", "FP32 or UINT8", "INT32"],
        ),
        invalid(
            "other integer form",
            |r| r.inputs[0].datatype = "INT8".into(),
            &["'x'", "INT8"],
        ),
        invalid(
            "float for integers",
            |r| r.inputs[1].datatype = "FP32".into(),
            &["'i'", "INT8"],
        ),
        invalid(
            "half floats",
            |r| r.inputs[0].datatype = "FP16".into(),
            &["'x'", "FP16"],
        ),
        invalid(
            "bytes",
            |r| r.inputs[0].datatype = "BYTES".into(),
            &["'x'", "BYTES"],
        ),
        invalid(
            "no datatype",
            |r| r.inputs[0].datatype.clear(),
            &["'x'", "unknown datatype"],
        ),
        invalid(
            "lower case datatype",
            |r| r.inputs[0].datatype = "fp32".into(),
            &["'x'", "'fp32'"],
        ),
        invalid(
            "invented datatype",
            |r| r.inputs[0].datatype = "INT4".into(),
            &["'x'", "'INT4'"],
        ),
        // Shapes.
        invalid(
            "no shape",
            |r| r.inputs[0].shape.clear(),
            &["'x'", "[-1, 2, 3]"],
        ),
        invalid(
            "no batch dimension",
            |r| r.inputs[0].shape = vec![2, 3],
            &["'x'", "[-1, 2, 3]"],
        ),
        invalid(
            "rank too high",
            |r| r.inputs[0].shape = vec![1, 1, 2, 3],
            &["'x'", "[1, 1, 2, 3]"],
        ),
        invalid(
            "other dimension",
            |r| r.inputs[0].shape = vec![1, 2, 4],
            &["'x'", "[1, 2, 4]"],
        ),
        invalid(
            "transposed",
            |r| r.inputs[0].shape = vec![1, 3, 2],
            &["'x'", "[1, 3, 2]"],
        ),
        invalid(
            "negative batch",
            |r| r.inputs[0].shape = vec![-1, 2, 3],
            &["'x'", "negative"],
        ),
        invalid(
            "negative dimension",
            |r| r.inputs[0].shape = vec![1, -2, -3],
            &["'x'", "negative"],
        ),
        invalid(
            "smallest dimension",
            |r| r.inputs[0].shape = vec![1, i64::MIN, 3],
            &["'x'", "negative"],
        ),
        invalid(
            "zero dimension",
            |r| r.inputs[0].shape = vec![1, 0, 3],
            &["'x'", "[1, 0, 3]"],
        ),
        invalid(
            "zero batch",
            |r| r.inputs[0].shape = vec![0, 2, 3],
            &["'x'", "batch size 0"],
        ),
        invalid(
            "empty batch with empty contents",
            |r| {
                r.inputs[0].shape[0] = 0;
                r.inputs[1].shape[0] = 0;
                r.raw_input_contents = vec![Bytes::new(), Bytes::new()];
            },
            &["'x'", "batch size 0"],
        ),
        invalid(
            "batch too large",
            |r| r.inputs[0].shape = vec![5, 2, 3],
            &["'x'", "1 to 4"],
        ),
        invalid(
            "2^62 elements",
            |r| r.inputs[0].shape = vec![1 << 62],
            &["'x'", "too many"],
        ),
        invalid(
            "2^62 samples",
            |r| r.inputs[0].shape = vec![1 << 59, 2, 3],
            &["'x'"],
        ),
        invalid(
            "a product that wraps to 6",
            |r| r.inputs[0].shape = vec![1 << 32, 1 << 32, 6],
            &["'x'", "too many"],
        ),
        invalid(
            "largest dimensions",
            |r| r.inputs[0].shape = vec![i64::MAX, i64::MAX, i64::MAX],
            &["'x'", "too many"],
        ),
        invalid(
            "a thousand dimensions",
            |r| r.inputs[0].shape = vec![1; 1000],
            &["'x'"],
        ),
        invalid(
            "batches differ",
            |r| {
                r.inputs[1].shape = vec![2, 4];
                r.raw_input_contents[1] = vec![0; 8].into();
            },
            &["'i'", "'x'"],
        ),
        // Raw contents.
        invalid(
            "raw truncated",
            |r| r.raw_input_contents[0] = vec![0; 23].into(),
            &["'x'", "23", "24"],
        ),
        invalid(
            "raw of another batch",
            |r| r.raw_input_contents[0] = vec![0; 48].into(),
            &["'x'", "48", "24"],
        ),
        invalid(
            "raw empty",
            |r| r.raw_input_contents[0] = Bytes::new(),
            &["'x'", "0 bytes", "24"],
        ),
        invalid(
            "raw one too long",
            |r| r.raw_input_contents[1] = vec![0; 5].into(),
            &["'i'", "5", "4"],
        ),
        invalid(
            "floats as integers",
            |r| r.inputs[0].datatype = "UINT8".into(),
            &["'x'", "24", "6"],
        ),
        invalid(
            "more raw entries than inputs",
            |r| r.raw_input_contents.push(Bytes::new()),
            &["3", "2", "x, i"],
        ),
        invalid(
            "fewer raw entries than inputs",
            |r| {
                r.raw_input_contents.pop();
            },
            &["1", "2", "x, i"],
        ),
        invalid(
            "raw and typed",
            |r| {
                let raw = r.raw_input_contents.clone();
                make_typed(r);
                r.raw_input_contents = raw;
            },
            &["'x'", "raw_input_contents"],
        ),
        invalid(
            "raw for one, typed for the other",
            |r| {
                r.raw_input_contents.pop();
                r.inputs[1].contents = Some(InferTensorContents {
                    int_contents: vec![0; 4],
                    ..Default::default()
                });
            },
            &["x, i"],
        ),
        // Typed contents.
        invalid(
            "no contents",
            |r| r.raw_input_contents.clear(),
            &["'x'", "0 elements", "6"],
        ),
        invalid(
            "typed too few",
            |r| {
                typed_x(r).fp32_contents.pop();
            },
            &["'x'", "5 elements", "6"],
        ),
        invalid(
            "typed too many",
            |r| typed_x(r).fp32_contents.push(0.0),
            &["'x'", "7 elements", "6"],
        ),
        invalid(
            "typed in another field",
            |r| {
                *typed_x(r) = InferTensorContents {
                    fp64_contents: vec![0.0; 6],
                    ..Default::default()
                }
            },
            &["'x'", "fp64_contents", "fp32_contents"],
        ),
        invalid(
            "typed in two fields",
            |r| typed_x(r).bool_contents.push(true),
            &["'x'", "bool_contents"],
        ),
        invalid(
            "unsigned for signed",
            |r| {
                *typed_i(r) = InferTensorContents {
                    uint_contents: vec![0; 4],
                    ..Default::default()
                }
            },
            &["'i'", "uint_contents"],
        ),
        invalid(
            "INT8 above its range",
            |r| typed_i(r).int_contents[2] = 300,
            &["'i'", "300", "element 2"],
        ),
        invalid(
            "INT8 below its range",
            |r| typed_i(r).int_contents[0] = -129,
            &["'i'", "-129"],
        ),
        invalid(
            "UINT8 above its range",
            |r| {
                *typed_x(r) = InferTensorContents {
                    uint_contents: vec![0, 1, 2, 3, 4, 256],
                    ..Default::default()
                };
                r.inputs[0].datatype = "UINT8".into();
            },
            &["'x'", "256"],
        ),
        // Values.
        invalid(
            "NaN in raw contents",
            |r| r.raw_input_contents[0] = f32_bytes(&[0.0, 1.0, f32::NAN, 0.0, 0.0, 0.0]),
            &["'x'", "NaN"],
        ),
        invalid(
            "negative NaN with payload",
            |r| {
                r.raw_input_contents[0] =
                    f32_bytes(&[0.0, 0.0, 0.0, 0.0, 0.0, f32::from_bits(0xffc1_2345)])
            },
            &["'x'", "NaN"],
        ),
        invalid(
            "NaN in typed contents",
            |r| typed_x(r).fp32_contents[5] = f32::NAN,
            &["'x'", "NaN"],
        ),
        // Outputs.
        invalid(
            "unknown output",
            |r| r.outputs = vec![output("z")],
            &["'z'", "'y'"],
        ),
        invalid("unnamed output", |r| r.outputs = vec![output("")], &["''"]),
        invalid(
            "an input as output",
            |r| r.outputs = vec![output("x")],
            &["'x'"],
        ),
        invalid(
            "an output twice",
            |r| r.outputs = vec![output("y"), output("k"), output("y")],
            &["'y'", "more than once"],
        ),
        invalid(
            "integers of an integer output",
            |r| want(r, "quantized", ParameterChoice::BoolParam(true)),
            &["'k'", "INT64"],
        ),
        invalid(
            "quantized is a word",
            |r| want(r, "quantized", ParameterChoice::StringParam("yes".into())),
            &["k: quantized"],
        ),
        invalid(
            "classification of scalars",
            |r| want(r, "classification", ParameterChoice::Int64Param(1)),
            &["'k'"],
        ),
        invalid(
            "classification is negative",
            |r| want(r, "classification", ParameterChoice::Int64Param(-1)),
            &["k: classification"],
        ),
        invalid(
            "output to shared memory",
            |r| {
                want(
                    r,
                    "shared_memory_region",
                    ParameterChoice::StringParam("r".into()),
                )
            },
            &["'k'", "shared"],
        ),
        // Parameters.
        invalid(
            "input from shared memory",
            |r| {
                r.inputs[0].parameters.insert(
                    "shared_memory_region".into(),
                    parameter(ParameterChoice::StringParam("r".into())),
                );
            },
            &["'x'", "shared"],
        ),
        invalid(
            "timeout is a word",
            |r| set(r, "timeout", ParameterChoice::StringParam("1s".into())),
            &["timeout"],
        ),
        invalid(
            "timeout is negative",
            |r| set(r, "timeout", ParameterChoice::Int64Param(-1)),
            &["timeout"],
        ),
        invalid(
            "timeout is empty",
            |r| {
                r.parameters
                    .insert("timeout".into(), InferParameter::default());
            },
            &["timeout"],
        ),
        invalid(
            "priority is a float",
            |r| set(r, "priority", ParameterChoice::DoubleParam(1.0)),
            &["priority"],
        ),
        invalid(
            "priority is a flag",
            |r| set(r, "priority", ParameterChoice::BoolParam(true)),
            &["priority"],
        ),
        invalid(
            "reserved key",
            |r| set(r, "triton_magic", ParameterChoice::BoolParam(true)),
            &["triton_magic"],
        ),
    ]
}

/// Sends bytes as the body of a ModelInfer call.
async fn send_body(channel: &Channel, uri: &str, body: Bytes) -> Status {
    let body = Body::new(axum::body::Body::from(body));
    let request = Request::post(Uri::try_from(uri).unwrap())
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let mut channel = channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context))
        .await
        .unwrap();
    let response = channel.call(request).await.unwrap();
    Status::from_header_map(response.headers()).unwrap_or_else(|| Status::ok("no status"))
}

/// A message with its five-byte prefix.
fn framed(length: u32, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(length);
    frame.put_slice(message);
    frame.freeze()
}

#[tokio::test]
async fn every_fault_has_its_code_and_names_the_tensor() {
    let folder = repository(&[(
        "m",
        "max_batch_size: 4 dynamic_batching { }",
        &[(1, "batched")],
    )]);
    let mut running = serve(&folder, &[]).await;
    let cases = cases();
    assert!(cases.len() >= 60, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let mut request = good("m", 1, 0.0);
        (case.change)(&mut request);
        match running.client.model_infer(request).await {
            Ok(_) => wrong.push(format!("{}: accepted", case.name)),
            Err(status) => {
                let named = case
                    .words
                    .iter()
                    .all(|word| status.message().contains(word));
                if status.code() != case.code || !named {
                    wrong.push(format!("{}: {status}", case.name));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    let answer = running
        .client
        .model_infer(good("m", 1, 2.0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(f32_values(&answer.raw_output_contents[0]), good_y(1, 2.0));
    let ran = running.controls.batches.lock().unwrap().clone();
    assert_eq!(ran, [1], "no bad request was computed");
}

#[tokio::test]
async fn keys_of_the_caller_pass() {
    let folder = repository(&[("m", "", &[(1, "batched")])]);
    let mut running = serve(&folder, &[]).await;
    let mut request = good("m", 1, 0.0);
    set(
        &mut request,
        "tenant",
        ParameterChoice::StringParam("a".into()),
    );
    set(&mut request, "priority", ParameterChoice::Uint64Param(1));
    set(
        &mut request,
        "timeout",
        ParameterChoice::Int64Param(10_000_000),
    );
    set(
        &mut request,
        "triton_enable_empty_final_response",
        ParameterChoice::BoolParam(true),
    );
    running.client.model_infer(request).await.unwrap();
}

#[tokio::test]
async fn frames_that_are_no_requests() {
    let folder = repository(&[("m", "", &[(1, "batched")])]);
    let mut running = serve(&folder, &["--max-request-mib", "1"]).await;
    let uri = format!(
        "http://{}/inference.GRPCInferenceService/ModelInfer",
        running.server.grpc_address()
    );
    let good_bytes = good("m", 1, 0.0).encode_to_vec();
    let oversized = vec![0; (1 << 20) + 1];
    // Empty inputs: two bytes each here, 300 once decoded.
    let many = [0x2a, 0].repeat(500_000);
    for (name, body, code, words) in [
        (
            "1 GiB declared",
            framed(1 << 30, b"few bytes"),
            Code::ResourceExhausted,
            "--max-request-mib",
        ),
        (
            "4 GiB declared",
            framed(u32::MAX, b""),
            Code::ResourceExhausted,
            "--max-request-mib",
        ),
        (
            "one byte above the limit",
            framed(oversized.len() as u32, &oversized),
            Code::ResourceExhausted,
            "1 MiB",
        ),
        (
            "half a million inputs",
            framed(many.len() as u32, &many),
            Code::InvalidArgument,
            "more than 65536",
        ),
        (
            "garbage",
            framed(9, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Code::Internal,
            "",
        ),
        (
            "cut short",
            framed(
                good_bytes.len() as u32 - 7,
                &good_bytes[..good_bytes.len() - 7],
            ),
            Code::Internal,
            "",
        ),
        (
            "wrong wire type",
            framed(2, &[0x08, 0x01]),
            Code::Internal,
            "",
        ),
        (
            "empty message",
            framed(0, b""),
            Code::NotFound,
            "unknown model",
        ),
        (
            "unknown compression flag",
            Bytes::from_static(&[9, 0, 0, 0, 0]),
            Code::Internal,
            "",
        ),
    ] {
        let status = send_body(&running.channel, &uri, body).await;
        assert_eq!(status.code(), code, "{name}: {status}");
        assert!(status.message().contains(words), "{name}: {status}");
    }
    let other = uri.replace("ModelInfer", "ModelDream");
    let status = send_body(&running.channel, &other, framed(0, b"")).await;
    assert_eq!(status.code(), Code::Unimplemented);
    let answer = running.client.model_infer(good("m", 1, 2.0)).await.unwrap();
    assert_eq!(
        f32_values(&answer.into_inner().raw_output_contents[0]),
        good_y(1, 2.0)
    );
}

#[tokio::test]
async fn a_gzip_bomb_is_stopped_at_the_limit() {
    let folder = repository(&[("m", "", &[(1, "batched")])]);
    let mut running = serve(&folder, &["--max-request-mib", "1"]).await;
    let mut request = good("m", 1, 0.0);
    request.raw_input_contents[0] = vec![0; 8 << 20].into();
    let mut client = running
        .client
        .clone()
        .send_compressed(tonic::codec::CompressionEncoding::Gzip);
    let status = client.model_infer(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("--max-request-mib"), "{status}");
    running.client.model_infer(good("m", 1, 0.0)).await.unwrap();
}

#[test]
fn mutated_requests_never_panic() {
    let mut seed = 0x2545_f491_u32;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed as usize
    };
    let mut typed = good("m", 1, 0.0);
    make_typed(&mut typed);
    for request in [good("m", 2, 0.0), typed] {
        let bytes = request.encode_to_vec();
        requant_server::fuzzing::request(&bytes);
        for _ in 0..20_000 {
            let mut mutant = bytes.clone();
            for _ in 0..1 + next() % 4 {
                let at = next() % mutant.len();
                match next() % 3 {
                    0 => mutant[at] = next() as u8,
                    1 => mutant[at] ^= 1 << (next() % 8),
                    _ => mutant.truncate(at.max(1)),
                }
            }
            requant_server::fuzzing::request(&mutant);
        }
    }
    let text = "name: \"m\" max_batch_size: 4 input [ { name: \"x\" data_type: TYPE_FP32 dims: \
                [2, 3] } ] dynamic_batching { preferred_batch_size: [2, 4] } instance_group { \
                count: 2 } model_warmup { batch_size: 1 inputs { key: \"x\" value { zero_data: \
                true } } }";
    for _ in 0..20_000 {
        let mut mutant = text.as_bytes().to_vec();
        for _ in 0..1 + next() % 4 {
            let at = next() % mutant.len();
            match next() % 3 {
                0 => mutant[at] = next() as u8,
                1 => mutant[at] = b"{}[]:0\"-"[next() % 8],
                _ => mutant.truncate(at.max(1)),
            }
        }
        requant_server::fuzzing::config(&mutant);
    }
    requant_server::fuzzing::config(br#"{"maxBatchSize": 4, "dynamicBatching": {}}"#);
}
