//! The protocol as a client sees it, over a real connection to a server in this process.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use requant_proto::inference::{self as pb, infer_parameter::ParameterChoice};
use tonic::{Code, codec::CompressionEncoding};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

fn parameter(choice: ParameterChoice) -> pb::InferParameter {
    pb::InferParameter {
        parameter_choice: Some(choice),
    }
}

#[tokio::test]
async fn metadata_config_and_health() {
    let folder = repository(&[
        ("m", "", &[(1, "batched"), (3, "batched")]),
        ("whole", "", &[(1, "fixed")]),
    ]);
    let mut running = serve(&folder, &[]).await;
    let client = &mut running.client;
    assert!(
        client
            .server_live(pb::ServerLiveRequest {})
            .await
            .unwrap()
            .into_inner()
            .live
    );
    assert!(
        client
            .server_ready(pb::ServerReadyRequest {})
            .await
            .unwrap()
            .into_inner()
            .ready
    );
    let server = client
        .server_metadata(pb::ServerMetadataRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(server.name, "requant");
    assert!(server.extensions.contains(&"statistics".to_owned()));

    let metadata = |name: &str, version: &str| pb::ModelMetadataRequest {
        name: name.to_owned(),
        version: version.to_owned(),
    };
    let model = client
        .model_metadata(metadata("m", ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        model.versions,
        ["3"],
        "the default policy serves the highest version"
    );
    assert_eq!(model.inputs[0].name, "x");
    assert_eq!(model.inputs[0].datatype, "FP32");
    assert_eq!(model.inputs[0].shape, [-1, 2, 3]);
    assert_eq!(model.outputs[1].datatype, "INT64");
    assert_eq!(model.outputs[1].shape, [-1]);
    assert_eq!(model.properties["precision"], "mixed");
    assert_eq!(model.properties["input.x.quantized.datatype"], "UINT8");
    assert_eq!(model.properties["input.x.quantized.zero_point"], "3");
    let whole = client
        .model_metadata(metadata("whole", "1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(whole.inputs[0].shape, [2, 3]);

    let config = |name: &str| pb::ModelConfigRequest {
        name: name.to_owned(),
        version: String::new(),
    };
    let completed = client
        .model_config(config("m"))
        .await
        .unwrap()
        .into_inner()
        .config
        .unwrap();
    assert_eq!(completed.max_batch_size, 32);
    assert_eq!(completed.input[0].dims, [2, 3]);

    for (name, version, ready) in [
        ("m", "", true),
        ("m", "3", true),
        ("m", "1", false),
        ("m", "x", false),
        ("n", "", false),
    ] {
        let request = pb::ModelReadyRequest {
            name: name.to_owned(),
            version: version.to_owned(),
        };
        let got = client
            .model_ready(request)
            .await
            .unwrap()
            .into_inner()
            .ready;
        assert_eq!(got, ready, "{name} {version}");
    }
    for (name, version, code) in [
        ("n", "", Code::NotFound),
        ("m", "1", Code::NotFound),
        ("m", "one", Code::InvalidArgument),
        ("m", "-3", Code::InvalidArgument),
    ] {
        let status = client
            .model_metadata(metadata(name, version))
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{name} {version}");
    }

    let mut health = HealthClient::new(running.channel.clone());
    for (service, want) in [
        ("", Some(ServingStatus::Serving)),
        (
            "inference.GRPCInferenceService",
            Some(ServingStatus::Serving),
        ),
        (
            "inference.GRPCInferenceService/m",
            Some(ServingStatus::Serving),
        ),
        ("m", Some(ServingStatus::Serving)),
        ("nothing", None),
    ] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        match (health.check(request).await, want) {
            (Ok(answer), Some(want)) => assert_eq!(answer.into_inner().status(), want),
            (Err(status), None) => assert_eq!(status.code(), Code::NotFound),
            (got, _) => panic!("{service}: {got:?}"),
        }
    }
}

#[tokio::test]
async fn infer_in_every_form() {
    let folder = repository(&[
        ("m", "", &[(7, "batched 100")]),
        ("whole", "", &[(1, "fixed")]),
        ("own", "max_batch_size: 0", &[(1, "batched")]),
    ]);
    let mut running = serve(&folder, &[]).await;
    let client = &mut running.client;

    let answer = client
        .model_infer(good("m", 2, 1.0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.id, "id-1");
    assert_eq!(
        (answer.model_name.as_str(), answer.model_version.as_str()),
        ("m", "7")
    );
    assert_eq!(answer.outputs[0].shape, [2, 3]);
    assert_eq!(answer.outputs[1].shape, [2]);
    assert_eq!(f32_values(&answer.raw_output_contents[0]), good_y(2, 1.0));
    assert_eq!(answer.raw_output_contents[1][..8], 104_i64.to_le_bytes());

    // Typed contents give the same answer, which is raw.
    let mut typed = good("m", 1, 0.0);
    typed.raw_input_contents.clear();
    typed.inputs[0].contents = Some(pb::InferTensorContents {
        fp32_contents: (0..6).map(|v| v as f32).collect(),
        ..Default::default()
    });
    typed.inputs[1].contents = Some(pb::InferTensorContents {
        int_contents: vec![1, -1, 127, -128],
        ..Default::default()
    });
    let answer = client.model_infer(typed).await.unwrap().into_inner();
    assert_eq!(f32_values(&answer.raw_output_contents[0]), good_y(1, 0.0));
    assert_eq!(answer.raw_output_contents[1][..], 99_i64.to_le_bytes());

    // The network's own integers in and out, one output only, inputs in another order.
    let mut own = good("m", 1, 0.0);
    own.inputs.swap(0, 1);
    own.inputs[1].datatype = "UINT8".to_owned();
    own.raw_input_contents = vec![
        Bytes::from_static(&[1; 4]),
        Bytes::from_static(&[3, 5, 7, 9, 11, 13]),
    ];
    own.outputs = vec![output("y")];
    own.outputs[0].parameters.insert(
        "quantized".to_owned(),
        parameter(ParameterChoice::BoolParam(true)),
    );
    let answer = client.model_infer(own).await.unwrap().into_inner();
    assert_eq!(answer.outputs.len(), 1);
    assert_eq!(answer.outputs[0].datatype, "INT8");
    assert_eq!(
        answer.outputs[0].parameters["scale"].parameter_choice,
        Some(ParameterChoice::DoubleParam(0.5))
    );
    assert_eq!(
        answer.outputs[0].parameters["zero_point"].parameter_choice,
        Some(ParameterChoice::Int64Param(-1))
    );
    // x = 0..5, so y = 3, 5, 7 and q = y / 0.5 - 1.
    assert_eq!(answer.raw_output_contents[0][..], [5, 9, 13]);

    // Classification.
    let mut classes = good("m", 1, 0.0);
    classes.outputs = vec![output("y")];
    classes.outputs[0].parameters.insert(
        "classification".to_owned(),
        parameter(ParameterChoice::Int64Param(2)),
    );
    let answer = client.model_infer(classes).await.unwrap().into_inner();
    assert_eq!(answer.outputs[0].datatype, "BYTES");
    assert_eq!(answer.outputs[0].shape, [1, 2]);
    assert_eq!(
        answer.raw_output_contents[0][4..],
        b"7.000000:2\x0a\0\0\x005.000000:1"[..]
    );

    // A model without a batch dimension, and one without server-side batching.
    let mut whole = good("whole", 1, 0.0);
    whole.inputs[0].shape = vec![2, 3];
    whole.inputs[1].shape = vec![4];
    let answer = client.model_infer(whole).await.unwrap().into_inner();
    assert_eq!(answer.outputs[0].shape, [3]);
    assert!(answer.outputs[1].shape.is_empty());
    let answer = client
        .model_infer(good("own", 5, 0.0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.outputs[0].shape, [5, 3]);
}

#[tokio::test]
async fn gzip_both_ways() {
    let folder = repository(&[("m", "", &[(1, "batched")])]);
    let running = serve(&folder, &[]).await;
    let mut plain = running
        .client
        .clone()
        .accept_compressed(CompressionEncoding::Gzip);
    let answer = plain.model_infer(good("m", 2, 0.0)).await.unwrap();
    assert!(
        answer.metadata().get("grpc-encoding").is_none(),
        "compressed without need"
    );
    let mut both = plain.send_compressed(CompressionEncoding::Gzip);
    let answer = both.model_infer(good("m", 2, 0.0)).await.unwrap();
    assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(
        f32_values(&answer.into_inner().raw_output_contents[0]),
        good_y(2, 0.0)
    );
}

#[tokio::test]
async fn batches_are_formed_while_the_instance_is_busy() {
    let folder = repository(&[("m", "", &[(1, "batched")])]);
    let running = serve(&folder, &[]).await;
    running.controls.shut();
    let ask = |rows: usize, start: f32| {
        let mut client = running.client.clone();
        tokio::spawn(async move {
            let answer = client
                .model_infer(good("m", rows, start))
                .await
                .unwrap()
                .into_inner();
            assert_eq!(
                f32_values(&answer.raw_output_contents[0]),
                good_y(rows, start)
            );
            assert_eq!(answer.id, format!("id-{start}"));
        })
    };
    let mut calls = vec![ask(1, 0.0)];
    running.controls.until_waiting(1).await;
    let version = running.server.registry().find("m", "").unwrap();
    for index in 0..12 {
        calls.push(ask(1 + index % 3, index as f32));
        // One after the other, so that the order in the line is known.
        while version.batcher.waiting() < index + 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    running.controls.open();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(*running.controls.batches.lock().unwrap(), [1, 24]);
}

#[tokio::test]
async fn a_bad_request_and_a_panic_leave_the_others_alone() {
    let folder = repository(&[("m", "", &[(1, "batched")])]);
    let mut running = serve(&folder, &[]).await;
    let made = running
        .controls
        .instances
        .load(std::sync::atomic::Ordering::SeqCst);
    running
        .controls
        .panic
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let status = running
        .client
        .model_infer(good("m", 1, 0.0))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("panic"), "{}", status.message());
    running.client.model_infer(good("m", 1, 0.0)).await.unwrap();
    let now = running
        .controls
        .instances
        .load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(now, made + 1, "the instance was rebuilt");

    running
        .controls
        .fail
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let status = running
        .client
        .model_infer(good("m", 1, 0.0))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    running.client.model_infer(good("m", 1, 0.0)).await.unwrap();
}

#[tokio::test]
async fn instances_whose_device_was_reset_are_made_anew_and_answer() {
    let config = "max_batch_size: 4 instance_group { count: 2 }";
    let folder = repository(&[("m", config, &[(1, "batched")])]);
    let mut running = serve(&folder, &[]).await;
    let made = || {
        let instances = &running.controls.instances;
        instances.load(std::sync::atomic::Ordering::SeqCst)
    };
    assert_eq!(made(), 2);
    running
        .controls
        .abandon
        .store(true, std::sync::atomic::Ordering::SeqCst);
    // Nothing was computed, so the request is; the other instance is made anew unasked.
    running.client.model_infer(good("m", 1, 0.0)).await.unwrap();
    let registry = running.server.registry();
    while !registry.model_ready("m", "") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(made(), 4);
    running.client.model_infer(good("m", 1, 0.0)).await.unwrap();
    assert_eq!(made(), 4);
}

#[tokio::test]
async fn a_full_line_and_timeouts_on_time() {
    let config = "max_batch_size: 4 dynamic_batching { default_queue_policy { \
                  max_queue_size: 2 allow_timeout_override: true } }";
    let server_limit = "max_batch_size: 4 dynamic_batching { default_queue_policy { \
                        default_timeout_microseconds: 30000 } }";
    let folder = repository(&[
        ("m", config, &[(1, "batched")]),
        ("strict", server_limit, &[(1, "batched")]),
    ]);
    let mut running = serve(&folder, &[]).await;
    running.controls.shut();
    let occupant = running.client.clone();
    let occupy = |model: &'static str| {
        let mut client = occupant.clone();
        tokio::spawn(async move { client.model_infer(good(model, 1, 0.0)).await })
    };
    let first = occupy("m");
    let strict = occupy("strict");
    running.controls.until_waiting(2).await;

    // The caller's own timeout: answered by a timer although the instance is busy.
    let mut request = good("m", 1, 0.0);
    request.parameters.insert(
        "timeout".to_owned(),
        parameter(ParameterChoice::Int64Param(20_000)),
    );
    let asked = Instant::now();
    let status = running.client.model_infer(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(asked.elapsed() >= Duration::from_millis(20));

    // The server's timeout.
    let status = running
        .client
        .model_infer(good("strict", 1, 0.0))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("timeout"), "{status}");

    // The caller's deadline, and a caller who goes away: both leave the line.
    let version = running.server.registry().find("m", "").unwrap();
    let mut request = tonic::Request::new(good("m", 1, 0.0));
    request
        .metadata_mut()
        .insert("grpc-timeout", "20m".parse().unwrap());
    // This client enforces deadlines itself and says CANCELLED; what matters here is the line.
    running.client.model_infer(request).await.unwrap_err();
    while version.batcher.waiting() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let gone = occupy("m");
    while version.batcher.waiting() < 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    gone.abort();
    while version.batcher.waiting() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let waiting = [occupy("m"), occupy("m")];
    while version.batcher.waiting() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let status = running
        .client
        .model_infer(good("m", 1, 0.0))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("2 requests"), "{status}");
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());

    running.controls.open();
    for call in waiting.into_iter().chain([first, strict]) {
        call.await.unwrap().unwrap();
    }
    let ran = running.controls.batches.lock().unwrap().clone();
    assert_eq!(ran, [1, 1, 2], "what left the line was never computed");
}

#[tokio::test]
async fn statistics_and_metrics_count() {
    let folder = repository(&[("counted", "", &[(1, "batched")])]);
    let mut running = serve(&folder, &[]).await;
    for rows in [1, 2, 2] {
        running
            .client
            .model_infer(good("counted", rows, 0.0))
            .await
            .unwrap();
    }
    let mut bad = good("counted", 1, 0.0);
    bad.inputs[0].name = "nope".to_owned();
    running.client.model_infer(bad).await.unwrap_err();

    let request = pb::ModelStatisticsRequest {
        name: "counted".to_owned(),
        version: String::new(),
    };
    let answer = running
        .client
        .model_statistics(request)
        .await
        .unwrap()
        .into_inner();
    let stats = &answer.model_stats[0];
    assert_eq!((stats.inference_count, stats.execution_count), (5, 3));
    assert!(stats.last_inference > 0);
    let phases = stats.inference_stats.as_ref().unwrap();
    assert_eq!(phases.success.as_ref().unwrap().count, 3);
    assert_eq!(phases.fail.as_ref().unwrap().count, 1);
    assert!(phases.success.as_ref().unwrap().ns >= phases.queue.as_ref().unwrap().ns);
    let sizes: Vec<(u64, u64)> = stats
        .batch_stats
        .iter()
        .map(|batch| {
            (
                batch.batch_size,
                batch.compute_infer.as_ref().unwrap().count,
            )
        })
        .collect();
    assert_eq!(sizes, [(1, 1), (2, 2)]);
    let unknown = pb::ModelStatisticsRequest {
        name: "nope".to_owned(),
        version: String::new(),
    };
    let status = running.client.model_statistics(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    let text = common::scrape(running.server.metrics_address()).await;
    for line in [
        "requant_requests_total{model=\"counted\",version=\"1\",code=\"OK\"} 3",
        "requant_requests_total{model=\"counted\",version=\"1\",code=\"INVALID_ARGUMENT\"} 1",
        "requant_inferences_total{model=\"counted\",precision=\"mixed\"} 5",
        "requant_batch_size_bucket{model=\"counted\",le=\"1\"} 1",
        "requant_batch_size_bucket{model=\"counted\",le=\"2\"} 3",
        "requant_queue_depth{model=\"counted\"} 0",
        "requant_model_ready{model=\"counted\",version=\"1\"} 1",
        "requant_backend_info{backend=\"fake\",isa=\"none\",device=\"test\"} 1",
        "# TYPE requant_precision_seconds_total counter",
        "# TYPE requant_request_duration_seconds histogram",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    for start in [
        "requant_request_duration_seconds_count{model=\"counted\",version=\"1\",precision=\"mixed\"} 4",
        "requant_queue_duration_seconds_count{model=\"counted\"} 3",
        "requant_compute_duration_seconds_count{model=\"counted\",precision=\"mixed\"} 3",
        "requant_operations_total{layer_precision=\"w4a8\"} ",
        "requant_precision_seconds_total{layer_precision=\"w4a8\"} 0.",
        "requant_request_duration_seconds_bucket{model=\"counted\",version=\"1\",precision=\"mixed\",le=\"0.0001\"}",
    ] {
        assert!(text.contains(start), "{start} is not in\n{text}");
    }
}
