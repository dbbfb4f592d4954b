//! Loading, reloading, unloading and following a repository, with requests under way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

mod common;

use std::{fs, time::Duration};

use common::*;
use requant_proto::inference::{
    self as pb, ModelRepositoryParameter, model_repository_parameter::ParameterChoice,
};
use tonic::{Code, Status};

fn load_request(model: &str) -> pb::RepositoryModelLoadRequest {
    pb::RepositoryModelLoadRequest {
        model_name: model.to_owned(),
        ..Default::default()
    }
}

async fn load(client: &mut Client, model: &str) -> Result<(), Status> {
    client
        .repository_model_load(load_request(model))
        .await
        .map(|_| ())
}

async fn unload(client: &mut Client, model: &str) -> Result<(), Status> {
    let request = pb::RepositoryModelUnloadRequest {
        model_name: model.to_owned(),
        ..Default::default()
    };
    client.repository_model_unload(request).await.map(|_| ())
}

/// Rows of the index as `name/version/state`, and the reasons.
async fn index(client: &mut Client) -> (Vec<String>, Vec<String>) {
    let request = pb::RepositoryIndexRequest::default();
    let models = client
        .repository_index(request)
        .await
        .unwrap()
        .into_inner()
        .models;
    models
        .into_iter()
        .map(|row| {
            (
                format!("{}/{}/{}", row.name, row.version, row.state),
                row.reason,
            )
        })
        .unzip()
}

async fn ready(client: &mut Client) -> bool {
    client
        .server_ready(pb::ServerReadyRequest {})
        .await
        .unwrap()
        .into_inner()
        .ready
}

async fn k_of(client: &mut Client, model: &str) -> Result<i64, Status> {
    let answer = client.model_infer(good(model, 1, 0.0)).await?.into_inner();
    Ok(i64::from_le_bytes(
        answer.raw_output_contents[1][..8].try_into().unwrap(),
    ))
}

#[tokio::test]
async fn a_broken_model_is_shown_and_the_others_serve() {
    let folder = repository(&[
        ("broken", "", &[(1, "no such operator")]),
        ("empty", "", &[]),
        ("good", "", &[(1, "batched")]),
        (
            "large",
            "max_batch_size: 4096 instance_group { count: 2 }",
            &[(1, "batched")],
        ),
        ("misnamed", "name: \"other\"", &[(1, "batched")]),
        ("typo", "max_batchsize: 3", &[(1, "batched")]),
    ]);
    fs::create_dir(folder.path().join(".hidden")).unwrap();
    fs::write(folder.path().join("README"), "not a model").unwrap();
    // Opening a pipe would wait for a writer for ever.
    write_model(folder.path(), "pipe", "", &[(1, "batched")]);
    let pipe = folder.path().join("pipe/config.pbtxt");
    let made = std::process::Command::new("mkfifo").arg(pipe).status();
    assert!(made.unwrap().success());
    let mut running = serve(&folder, &[]).await;
    let client = &mut running.client;
    let (rows, reasons) = index(client).await;
    assert_eq!(
        rows,
        [
            "broken//UNAVAILABLE",
            "empty//UNAVAILABLE",
            "good/1/READY",
            "large//UNAVAILABLE",
            "misnamed//UNAVAILABLE",
            "pipe//UNAVAILABLE",
            "typo//UNAVAILABLE"
        ]
    );
    for (reason, needle) in reasons.iter().zip([
        "version 1: no",
        "no version",
        "",
        "2 instances need 8589934592 bytes",
        "'other'",
        "not a regular file",
        "max_batchsize",
    ]) {
        assert!(reason.contains(needle), "{reason}");
    }
    assert!(!ready(client).await, "strict readiness");
    k_of(client, "good").await.unwrap();
    let status = k_of(client, "broken").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(
        status.message().contains("no available versions"),
        "{status}"
    );
    let status = load(client, "good").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("--model-control"), "{status}");
}

#[tokio::test]
async fn explicit_control() {
    let folder = repository(&[
        ("a", "", &[(1, "batched 1")]),
        (
            "b",
            "version_policy { all { } }",
            &[(1, "batched 10"), (2, "batched 20")],
        ),
        ("broken", "", &[(1, "rubbish")]),
    ]);
    let mut running = serve(
        &folder,
        &["--model-control", "explicit", "--load-model", "a"],
    )
    .await;
    let client = &mut running.client;
    assert_eq!(
        index(client).await.0,
        ["a/1/READY", "b//UNAVAILABLE", "broken//UNAVAILABLE"]
    );
    assert!(ready(client).await);

    load(client, "b").await.unwrap();
    assert_eq!(k_of(client, "b").await.unwrap(), 24);
    let mut first = good("b", 1, 0.0);
    first.model_version = "1".to_owned();
    let answer = client.model_infer(first).await.unwrap().into_inner();
    assert_eq!(answer.model_version, "1");

    for (model, code) in [
        ("broken", Code::FailedPrecondition),
        ("absent", Code::NotFound),
        ("../a", Code::NotFound),
        ("", Code::InvalidArgument),
    ] {
        let status = load(client, model).await.unwrap_err();
        assert_eq!(status.code(), code, "{model}: {status}");
    }
    assert!(!ready(client).await, "a model that was asked for is broken");
    unload(client, "broken").await.unwrap();
    assert!(ready(client).await);
    unload(client, "absent").await.unwrap();

    unload(client, "a").await.unwrap();
    assert_eq!(k_of(client, "a").await.unwrap_err().code(), Code::NotFound);
    assert!(index(client).await.0.contains(&"a//UNAVAILABLE".to_owned()));
    load(client, "a").await.unwrap();
    assert_eq!(k_of(client, "a").await.unwrap(), 5);

    // A folder that is gone is no model any more once it is unloaded.
    load(client, "b").await.unwrap();
    fs::remove_dir_all(folder.path().join("b")).unwrap();
    assert!(index(client).await.0.contains(&"b/2/READY".to_owned()));
    unload(client, "b").await.unwrap();
    assert_eq!(index(client).await.0, ["a/1/READY", "broken//UNAVAILABLE"]);

    // KServe's clients put the model's name into field 1.
    let request = pb::RepositoryModelUnloadRequest {
        repository_name: "a".to_owned(),
        ..Default::default()
    };
    client.repository_model_unload(request).await.unwrap();
    assert_eq!(k_of(client, "a").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_load_may_bring_its_configuration() {
    let folder = repository(&[("m", "max_batch_size: 8", &[(1, "batched")])]);
    let mut running = serve(&folder, &["--model-control", "explicit"]).await;
    let client = &mut running.client;
    let with = |key: &str, choice| {
        let mut request = load_request("m");
        request.parameters.insert(
            key.to_owned(),
            ModelRepositoryParameter {
                parameter_choice: Some(choice),
            },
        );
        request
    };
    let json = |text: &str| ParameterChoice::StringParam(text.to_owned());
    client
        .repository_model_load(with("config", json(r#"{"maxBatchSize": 3}"#)))
        .await
        .unwrap();
    let status = client.model_infer(good("m", 4, 0.0)).await.unwrap_err();
    assert!(status.message().contains("1 to 3"), "{status}");
    for (key, choice, code) in [
        ("config", json("{"), Code::InvalidArgument),
        ("config", json(r#"{"nope": 1}"#), Code::InvalidArgument),
        (
            "config",
            ParameterChoice::Int64Param(1),
            Code::InvalidArgument,
        ),
        (
            "file:1/model.onnx",
            ParameterChoice::BytesParam(Default::default()),
            Code::InvalidArgument,
        ),
        (
            "config",
            json(r#"{"maxBatchSize": -1}"#),
            Code::FailedPrecondition,
        ),
        ("config", json(r#"{"name": "x"}"#), Code::FailedPrecondition),
    ] {
        let status = client
            .repository_model_load(with(key, choice.clone()))
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{key} {choice:?}: {status}");
    }
    // Nothing of that touched what is served.
    client.model_infer(good("m", 3, 0.0)).await.unwrap();
}

#[tokio::test]
async fn reloading_never_leaves_a_gap() {
    let folder = repository(&[("m", "", &[(1, "slow 0")])]);
    let mut running = serve(
        &folder,
        &["--model-control", "explicit", "--load-model", "m"],
    )
    .await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let mut client = running.client.clone();
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    seen.push(k_of(&mut client, "m").await.unwrap());
                }
                seen
            })
        })
        .collect();
    for bias in 1..=3 {
        write_model(folder.path(), "m", "", &[(1, &format!("slow {bias}"))]);
        load(&mut running.client, "m").await.unwrap();
    }
    // A reload that fails leaves the old one serving, and says so.
    write_model(folder.path(), "m", "", &[(1, "rubbish")]);
    let status = load(&mut running.client, "m").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(k_of(&mut running.client, "m").await.unwrap(), 7);
    let (rows, reasons) = index(&mut running.client).await;
    assert_eq!(rows, ["m/1/READY"]);
    assert!(reasons[0].contains("rubbish"), "{}", reasons[0]);
    assert!(ready(&mut running.client).await);

    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    for caller in callers {
        let seen = caller.await.unwrap();
        assert!(seen.is_sorted(), "an old version answered after a new one");
    }
}

#[tokio::test]
async fn unloading_answers_what_was_accepted() {
    let folder = repository(&[("m", "", &[(1, "batched")])]);
    let mut running = serve(
        &folder,
        &["--model-control", "explicit", "--load-model", "m"],
    )
    .await;
    let version = running.server.registry().find("m", "").unwrap();
    running.controls.shut();
    let ask = || {
        let mut client = running.client.clone();
        tokio::spawn(async move { k_of(&mut client, "m").await })
    };
    let mut calls = vec![ask()];
    running.controls.until_waiting(1).await;
    calls.extend((0..5).map(|_| ask()));
    while version.batcher.waiting() < 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut other = running.client.clone();
    let unloading = tokio::spawn(async move { unload(&mut other, "m").await });
    while running.server.registry().find("m", "").is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let status = k_of(&mut running.client, "m").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "unloading: {status}");
    running.controls.open();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 4);
    }
    unloading.await.unwrap().unwrap();
}

#[tokio::test]
async fn following_the_folder() {
    let folder = repository(&[("a", "", &[(1, "batched 1")])]);
    let mut running = serve(&folder, &["--model-control", "poll"]).await;
    let client = &mut running.client;
    assert_eq!(k_of(client, "a").await.unwrap(), 5);

    write_model(folder.path(), "b", "", &[(1, "batched 2")]);
    write_model(folder.path(), "a", "", &[(2, "batched 10")]);
    for (model, want) in [("b", 6), ("a", 14)] {
        for attempt in 0.. {
            match k_of(client, model).await {
                Ok(got) if got == want => break,
                got => assert!(attempt < 500, "{model}: {got:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    fs::remove_dir_all(folder.path().join("b")).unwrap();
    for attempt in 0.. {
        match k_of(client, "b").await {
            Err(status) if status.message().contains("is not found") => break,
            got => assert!(attempt < 500, "{got:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(index(client).await.0, ["a/2/READY"]);
}

#[tokio::test]
async fn labels_and_warm_up() {
    let config = "max_batch_size: 4 \
        output { name: \"y\" data_type: TYPE_FP32 dims: [3] label_filename: \"labels.txt\" } \
        model_warmup { name: \"two\" batch_size: 2 count: 3 \
            inputs { key: \"x\" value { data_type: TYPE_FP32 dims: [2, 3] random_data: true } } \
            inputs { key: \"i\" value { data_type: TYPE_INT8 dims: [4] input_data_file: \"i.bin\" } } }";
    let folder = repository(&[("m", config, &[(1, "batched")])]);
    let mut running = serve(&folder, &["--model-control", "explicit"]).await;
    let client = &mut running.client;
    let status = load(client, "m").await.unwrap_err();
    assert!(status.message().contains("labels.txt"), "{status}");
    fs::write(folder.path().join("m/labels.txt"), "shoe\nhat\nbag\n").unwrap();
    let status = load(client, "m").await.unwrap_err();
    assert!(status.message().contains("i.bin"), "{status}");
    fs::create_dir(folder.path().join("m/warmup")).unwrap();
    fs::write(folder.path().join("m/warmup/i.bin"), [1, 2, 3]).unwrap();
    let status = load(client, "m").await.unwrap_err();
    assert!(status.message().contains("3 bytes, expected 4"), "{status}");
    fs::write(folder.path().join("m/warmup/i.bin"), [1, 2, 3, 4]).unwrap();
    load(client, "m").await.unwrap();
    assert_eq!(
        *running.controls.batches.lock().unwrap(),
        [2, 2],
        "two runs after the first"
    );

    let mut request = good("m", 1, 0.0);
    request.outputs = vec![output("y")];
    request.outputs[0].parameters.insert(
        "classification".to_owned(),
        pb::InferParameter {
            parameter_choice: Some(pb::infer_parameter::ParameterChoice::Int64Param(1)),
        },
    );
    let answer = client.model_infer(request).await.unwrap().into_inner();
    assert_eq!(answer.raw_output_contents[0][4..], b"7.000000:2:bag"[..]);
}
