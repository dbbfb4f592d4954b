//! The client against a server of the protocol: what arrives there, what comes back, and what the
//! caller sees when the server refuses, hangs, or goes away.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "tests fail by panicking"
)]

mod mock;

use std::{num::NonZeroUsize, time::Duration};

use mock::{Behaviour, Mock};
use requant_client::{
    Client, ClientBuilder, Code, Datatype, Error, InferRequest, Parameter, RetryPolicy,
    ServingStatus, Tensor, proto,
};

fn numbers() -> Tensor {
    Tensor::from_slice("x", &[1, 3], &[1.0f32, -2.5, 1e-9]).unwrap()
}

fn echo() -> InferRequest {
    InferRequest::new("echo").input(numbers())
}

fn builder(mock: &Mock) -> ClientBuilder {
    let milliseconds = Duration::from_millis;
    Client::builder(&mock.address).retry(RetryPolicy {
        first_backoff: milliseconds(1),
        longest_backoff: milliseconds(2),
        ..RetryPolicy::default()
    })
}

async fn start(behaviour: Behaviour) -> (Mock, Client) {
    let mock = Mock::start(behaviour).await;
    let client = builder(&mock).build().await.unwrap();
    (mock, client)
}

/// The code, the message and the number of tries of a refusal.
fn refusal(error: Error) -> (Code, String, u32) {
    match error {
        Error::Status {
            code,
            message,
            attempts,
        } => (code, message, attempts),
        other => panic!("not a status: {other:?}"),
    }
}

#[tokio::test]
async fn tensors_of_every_datatype_come_back_unchanged() {
    let (mock, client) = start(Behaviour::default()).await;
    let mut request = InferRequest::new("echo").version("3").id("a b");
    for datatype in Datatype::ALL
        .into_iter()
        .filter(|&datatype| datatype != Datatype::Int64)
    {
        let name = datatype.name();
        let tensor = match datatype.size() {
            Some(size) => Tensor::new(name, datatype, &[2, 1], vec![1; 2 * size]),
            None => Tensor::from_strings(name, &[2, 1], &["", "two"]),
        };
        let mut tensor = tensor.unwrap();
        tensor
            .parameters
            .insert("scale".to_owned(), Parameter::Double(0.5));
        request = request.input(tensor);
    }
    let request = request.parameter("priority", Parameter::Uint64(2));
    let response = client.infer(request.clone()).await.unwrap();
    assert_eq!(response.outputs, request.inputs);
    assert_eq!(response.parameters, request.parameters);
    assert_eq!(
        (response.model.as_str(), response.id.as_str()),
        ("echo", "a b")
    );
    assert_eq!(response.version, "3");

    let seen = mock.seen.lock().unwrap();
    assert!(
        seen.requests[0]
            .inputs
            .iter()
            .all(|input| input.contents.is_none())
    );
}

#[tokio::test]
async fn typed_lists_go_both_ways() {
    let (mock, client) = start(Behaviour {
        typed: true,
        ..Behaviour::default()
    })
    .await;
    let request = echo()
        .input(Tensor::from_slice("b", &[2], &[-128i8, 127]).unwrap())
        .input(Tensor::from_strings("s", &[1], &["text"]).unwrap())
        .typed();
    let response = client.infer(request.clone()).await.unwrap();
    assert_eq!(response.outputs, request.inputs);
    assert!(
        mock.seen.lock().unwrap().requests[0]
            .raw_input_contents
            .is_empty()
    );
}

#[tokio::test]
async fn only_wanted_outputs_are_asked_for() {
    let (mock, client) = start(Behaviour {
        typed: true,
        ..Behaviour::default()
    })
    .await;
    let other = Tensor::from_slice("y", &[1], &[1u8]).unwrap();
    let parameters = [("quantized".to_owned(), Parameter::Bool(true))].into();
    let request = echo()
        .input(other.clone())
        .typed()
        .output_with("y", parameters);
    let response = client.infer(request).await.unwrap();
    assert_eq!(response.outputs, std::slice::from_ref(&other));
    assert_eq!(response.output("y"), Some(&other));
    assert_eq!(response.output("x"), None);
    let seen = mock.seen.lock().unwrap();
    assert_eq!(seen.requests[0].outputs.len(), 1);
    assert!(
        seen.requests[0].outputs[0]
            .parameters
            .contains_key("quantized")
    );
}

#[tokio::test]
async fn a_tensor_of_several_mebibytes_passes_both_ways() {
    let (_mock, client) = start(Behaviour::default()).await;
    let values: Vec<u32> = (0..3 << 20).collect();
    let tensor = Tensor::from_slice("x", &[3 << 20], &values).unwrap();
    let response = client
        .infer(InferRequest::new("echo").input(tensor.clone()))
        .await
        .unwrap();
    assert!(response.outputs[0] == tensor);
}

#[tokio::test]
async fn gzip_is_used_when_asked_for() {
    let mock = Mock::start(Behaviour::default()).await;
    for gzip in [false, true] {
        let client = builder(&mock).gzip(gzip).build().await.unwrap();
        let response = client.infer(echo()).await.unwrap();
        assert_eq!(response.outputs, [numbers()]);
        assert_eq!(
            mock.header("grpc-encoding"),
            gzip.then(|| "gzip".to_owned())
        );
        let accepted = mock.header("grpc-accept-encoding").unwrap_or_default();
        assert_eq!(accepted.contains("gzip"), gzip, "{accepted:?}");
    }
}

#[tokio::test]
async fn calls_go_over_all_connections() {
    let mock = Mock::start(Behaviour::default()).await;
    let connections = NonZeroUsize::new(3).unwrap();
    let client = builder(&mock)
        .connections(connections)
        .build()
        .await
        .unwrap();
    for _ in 0..6 {
        client.clone().infer(echo()).await.unwrap();
    }
    assert_eq!(mock.seen.lock().unwrap().peers.len(), 3);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let (mock, client) = start(Behaviour {
        failures: 2,
        ..Behaviour::default()
    })
    .await;
    let response = client.infer(echo().id("7")).await.unwrap();
    assert_eq!(response.outputs, [numbers()]);
    let seen = mock.seen.lock().unwrap();
    assert_eq!(seen.requests.len(), 3);
    assert!(
        seen.requests
            .iter()
            .all(|request| *request == seen.requests[0])
    );
}

#[tokio::test]
async fn retries_end() {
    let (mock, client) = start(Behaviour {
        failures: 100,
        ..Behaviour::default()
    })
    .await;
    let error = client.infer(echo()).await.unwrap_err();
    assert_eq!(
        refusal(error),
        (Code::Unavailable, "refusal 4".to_owned(), 4)
    );
    assert_eq!(mock.calls(), 4);

    let client = builder(&mock)
        .retry(RetryPolicy::never())
        .build()
        .await
        .unwrap();
    let error = client.infer(echo()).await.unwrap_err();
    assert_eq!(
        refusal(error),
        (Code::Unavailable, "refusal 5".to_owned(), 1)
    );
}

#[tokio::test]
async fn the_budget_is_shared_by_all_calls() {
    let mock = Mock::start(Behaviour {
        failures: 100,
        ..Behaviour::default()
    })
    .await;
    let policy = RetryPolicy {
        budget: 10,
        first_backoff: Duration::ZERO,
        ..Default::default()
    };
    let client = builder(&mock).retry(policy).build().await.unwrap();
    let mut attempts = Vec::new();
    for _ in 0..4 {
        attempts.push(refusal(client.clone().infer(echo()).await.unwrap_err()).2);
    }
    assert_eq!(attempts, [4, 1, 1, 1]);
}

#[tokio::test]
async fn other_codes_are_final() {
    for code in [
        Code::InvalidArgument,
        Code::NotFound,
        Code::Internal,
        Code::ResourceExhausted,
    ] {
        let behaviour = Behaviour {
            failures: 100,
            code: Some(code),
            ..Behaviour::default()
        };
        let (_mock, client) = start(behaviour).await;
        let error = client.infer(echo()).await.unwrap_err();
        assert_eq!(error.code(), Some(code));
        assert_eq!(refusal(error), (code, "refusal 1".to_owned(), 1));
    }
}

#[tokio::test]
async fn a_server_can_set_the_wait_or_forbid_retries() {
    let cases = [("0", 4), ("1", 4), ("-1", 1), ("never", 1)];
    for (value, attempts) in cases {
        let behaviour = Behaviour {
            failures: 100,
            pushback: Some(value),
            ..Behaviour::default()
        };
        let (mock, client) = start(behaviour).await;
        let error = client.infer(echo()).await.unwrap_err();
        assert_eq!(refusal(error).2, attempts, "{value}");
        assert_eq!(mock.calls(), usize::try_from(attempts).unwrap());
    }
}

#[tokio::test]
async fn a_wait_past_the_deadline_gives_the_servers_reason_at_once() {
    let behaviour = Behaviour {
        failures: 100,
        pushback: Some("3600000"),
        ..Behaviour::default()
    };
    let (_mock, client) = start(behaviour).await;
    let error = client.infer(echo()).await.unwrap_err();
    assert_eq!(
        refusal(error),
        (Code::Unavailable, "refusal 1".to_owned(), 1)
    );
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let mock = Mock::start(Behaviour {
        hang: true,
        ..Behaviour::default()
    })
    .await;
    let timeout = Duration::from_millis(60);
    let client = builder(&mock).timeout(timeout).build().await.unwrap();
    let error = client.infer(echo()).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { timeout: t, attempts: 1 } if t == timeout));
    assert_eq!(error.code(), Some(Code::DeadlineExceeded));
    assert_eq!(
        error.to_string(),
        "DEADLINE_EXCEEDED: no answer within 0.06 s"
    );
    assert!(
        mock.header("grpc-timeout").is_some(),
        "the server learns the deadline"
    );

    let timeout = Duration::from_millis(30);
    let error = client.infer(echo().timeout(timeout)).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { timeout: t, .. } if t == timeout));
}

#[tokio::test]
async fn a_deadline_set_by_the_server_keeps_its_words() {
    let code = Some(Code::DeadlineExceeded);
    let (_mock, client) = start(Behaviour {
        failures: 1,
        code,
        ..Behaviour::default()
    })
    .await;
    let error = client.infer(echo()).await.unwrap_err();
    assert_eq!(
        refusal(error),
        (Code::DeadlineExceeded, "refusal 1".to_owned(), 1)
    );
}

#[tokio::test]
async fn a_response_that_is_too_large_is_resource_exhausted() {
    let mock = Mock::start(Behaviour::default()).await;
    let client = builder(&mock).max_message(1000).build().await.unwrap();
    let tensor = Tensor::from_slice("x", &[2000], &[0u8; 2000]).unwrap();
    let error = client
        .infer(InferRequest::new("echo").input(tensor))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::ResourceExhausted), "{error}");
}

#[tokio::test]
async fn nobody_listening_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let policy = RetryPolicy {
        first_backoff: Duration::ZERO,
        ..RetryPolicy::default()
    };
    let client = Client::builder(address)
        .retry(policy)
        .build()
        .await
        .unwrap();
    let (code, message, attempts) = refusal(client.server_live().await.unwrap_err());
    assert_eq!((code, attempts), (Code::Unavailable, 4));
    assert!(message.contains("refused"), "{message}");
}

#[tokio::test]
async fn a_connection_that_breaks_is_unavailable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    let policy = RetryPolicy {
        first_backoff: Duration::ZERO,
        ..RetryPolicy::default()
    };
    let client = Client::builder(address)
        .retry(policy)
        .build()
        .await
        .unwrap();
    let (code, message, attempts) = refusal(client.infer(echo()).await.unwrap_err());
    assert_eq!((code, attempts), (Code::Unavailable, 4), "{message}");
}

#[tokio::test]
async fn tensors_that_cannot_be_sent_never_leave() {
    let (mock, client) = start(Behaviour::default()).await;
    let half = Tensor::new("h", Datatype::Fp16, &[1], vec![0, 0]).unwrap();
    let error = client
        .infer(InferRequest::new("echo").input(half).typed())
        .await
        .unwrap_err();
    assert_eq!(error.code(), None);
    assert_eq!(
        error.to_string(),
        "tensor \"h\": FP16 has no typed form in the protocol, send it raw"
    );
    assert_eq!(mock.calls(), 0);
}

#[tokio::test]
async fn an_impossible_address_is_refused() {
    for address in ["", "localhost", "https://localhost:1", "localhost:1/path"] {
        let error = Client::connect(address).await.unwrap_err();
        assert!(matches!(error, Error::Address { .. }), "{address}: {error}");
    }
}

#[tokio::test]
async fn states_and_descriptions_are_read() {
    let (_mock, client) = start(Behaviour::default()).await;
    assert!(client.server_live().await.unwrap());
    assert!(client.server_ready().await.unwrap());
    assert!(client.model_ready("echo", "").await.unwrap());
    assert!(!client.model_ready("echo", "2").await.unwrap());
    assert!(!client.model_ready("other", "").await.unwrap());
    assert_eq!(client.health("").await.unwrap(), ServingStatus::Serving);
    let unknown = client.health("other").await.unwrap_err();
    assert_eq!(unknown.code(), Some(Code::NotFound));
    assert_eq!(
        client.server_metadata().await.unwrap().extensions,
        ["statistics"]
    );
    assert_eq!(
        client.model_metadata("echo", "").await.unwrap().inputs[0].shape,
        [-1, 3]
    );
    assert_eq!(
        client
            .model_config("echo", "")
            .await
            .unwrap()
            .max_batch_size,
        8
    );
    let empty = client.model_config("other", "").await.unwrap_err();
    assert_eq!(
        empty.to_string(),
        "malformed response: the configuration is missing"
    );
}

#[tokio::test]
async fn the_repository_is_driven() {
    let (mock, client) = start(Behaviour::default()).await;
    let names = |models: Vec<proto::repository_index_response::ModelIndex>| {
        models
            .into_iter()
            .map(|model| model.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(client.index(false).await.unwrap()),
        ["broken", "echo"]
    );
    assert_eq!(names(client.index(true).await.unwrap()), ["echo"]);
    client.load("echo", None).await.unwrap();
    client
        .load("echo", Some(r#"{"max_batch_size": 4}"#))
        .await
        .unwrap();
    client.unload("echo").await.unwrap();
    let error = client.load("broken", None).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::FailedPrecondition));
    let statistics = client.statistics("echo", "").await.unwrap();
    assert_eq!(statistics[0].inference_count, 12);

    let seen = mock.seen.lock().unwrap();
    assert_eq!(seen.loaded.len(), 2);
    assert!(seen.loaded[0].parameters.is_empty());
    assert!(seen.loaded[1].parameters.contains_key("config"));
    assert_eq!(seen.unloaded[0].model_name, "echo");
}
