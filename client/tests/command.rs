//! The `requant` command as a user runs it: what it prints, what it writes, and how it fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests fail by panicking"
)]

mod mock;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use mock::{Behaviour, Mock};
use requant_client::Tensor;
use requant_npy::{Array, ElementType};
use tempfile::TempDir;

/// What a run left behind.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

fn good(stdout: &str) -> Outcome {
    Outcome {
        code: 0,
        stdout: stdout.to_owned(),
        stderr: String::new(),
    }
}

fn bad(code: i32, cause: &str) -> Outcome {
    Outcome {
        code,
        stdout: String::new(),
        stderr: format!("error: {cause}\n"),
    }
}

/// Runs the command in `folder`; with a server's address in the environment if one is given.
async fn requant(folder: &Path, server: Option<&str>, line: &str) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
    command
        .args(line.split_whitespace())
        .current_dir(folder)
        .env_remove("REQUANT_SERVER");
    if let Some(server) = server {
        command.env("REQUANT_SERVER", server);
    }
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    Outcome {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder with arrays: `x.npy` fits the server's model, the others do not.
fn arrays() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let save = |name: &str, tensor: Tensor| {
        requant_npy::write(&path.join(name), &tensor.to_npy().unwrap()).unwrap();
    };
    save(
        "x.npy",
        Tensor::from_slice("x", &[1, 3], &[0.5f32, 2.0, -1.0]).unwrap(),
    );
    save(
        "long.npy",
        Tensor::from_slice("x", &[40], &[0.5f32; 40]).unwrap(),
    );
    save(
        "flat.npy",
        Tensor::from_slice("x", &[3], &[1i64, 2, 3]).unwrap(),
    );
    save(
        "integers.npy",
        Tensor::from_slice("x", &[1, 3], &[1i64, 2, 3]).unwrap(),
    );
    save(
        "double.npy",
        Tensor::from_slice("x", &[1], &[1.0f64]).unwrap(),
    );
    fs::write(path.join("text.npy"), "no array").unwrap();
    (folder, path)
}

#[tokio::test]
async fn inference_prints_outputs() {
    let mock = Mock::start(Behaviour::default()).await;
    let (_guard, folder) = arrays();
    let run = |line: &'static str| requant(&folder, Some(&mock.address), line);

    assert_eq!(
        run("infer echo --input x=x.npy").await,
        good("x FP32 [1, 3]: 0.5 2 -1\nx argmax: 1\n")
    );
    assert_eq!(
        run("infer echo --input x=x.npy --input y=long.npy --id 42 --version 3").await,
        good(
            "id: 42\nx FP32 [1, 3]: 0.5 2 -1\nx argmax: 1\n\
             y FP32 [40]: 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5 ...\ny argmax: 0\n"
        )
    );
    assert_eq!(mock.seen.lock().unwrap().requests[1].model_version, "3");
}

#[tokio::test]
async fn inference_writes_outputs() {
    let mock = Mock::start(Behaviour::default()).await;
    let (_guard, folder) = arrays();
    let line = "infer echo --input x=x.npy --output x=out.npy --server";
    let outcome = requant(&folder, None, &format!("{line} {}", mock.address)).await;
    assert_eq!(outcome, good("x FP32 [1, 3]: out.npy\n"));
    let written = requant_npy::read(&folder.join("out.npy")).unwrap();
    assert_eq!(written, requant_npy::read(&folder.join("x.npy")).unwrap());
    assert_eq!(mock.seen.lock().unwrap().requests[0].outputs[0].name, "x");
}

#[tokio::test]
async fn the_server_is_asked_again_while_it_is_busy() {
    let mock = Mock::start(Behaviour {
        failures: 2,
        ..Behaviour::default()
    })
    .await;
    let (_guard, folder) = arrays();
    let outcome = requant(&folder, Some(&mock.address), "infer echo --input x=x.npy").await;
    assert_eq!(outcome.code, 0);
    assert_eq!(mock.calls(), 3);
}

#[tokio::test]
async fn the_repository_commands_print_tables() {
    let mock = Mock::start(Behaviour::default()).await;
    let (_guard, folder) = arrays();
    let run = |line: &'static str| requant(&folder, Some(&mock.address), line);
    let stats = "NAME  VERSION  SAMPLES  BATCHES  OK  FAILED  TOTAL_US  QUEUE_US  COMPUTE_US\n\
                 echo  1        12       3        4   1       2.5       1.2       -\n";
    assert_eq!(
        run("models").await,
        good(
            "NAME    VERSION  STATE        REASON\n\
             broken           UNAVAILABLE  no weights\n\
             echo    1        READY\n"
        )
    );
    assert_eq!(run("stats").await, good(stats));
    assert_eq!(run("stats echo").await, good(stats));
    assert_eq!(run("load echo").await, good("echo is loaded\n"));
    assert_eq!(run("unload echo").await, good("echo is unloaded\n"));
    assert_eq!(
        run("health").await,
        good("live: true\nready: true\nhealth: SERVING\n")
    );
}

#[tokio::test]
async fn a_refusal_is_one_line_and_exit_code_1() {
    let mock = Mock::start(Behaviour::default()).await;
    let (_guard, folder) = arrays();
    let run = |line: &'static str| requant(&folder, Some(&mock.address), line);
    assert_eq!(
        run("infer other --input x=x.npy").await,
        bad(1, "NOT_FOUND: unknown model: 'other'")
    );
    assert_eq!(
        run("stats other").await,
        bad(1, "NOT_FOUND: unknown model: 'other'")
    );
    assert_eq!(
        run("load broken").await,
        bad(1, "FAILED_PRECONDITION: model 'broken': no weights")
    );
    let refusal = "INVALID_ARGUMENT: tensor 'x': expected FP32, got INT64";
    assert_eq!(
        run("infer echo --input x=flat.npy").await,
        bad(
            1,
            &format!(
                "{refusal} (hint: the file for \"x\" has shape [3] without the batch dimension; \
                 save array[None] to send a batch of one)"
            )
        )
    );
    assert_eq!(
        run("infer echo --input x=integers.npy").await,
        bad(
            1,
            &format!(
                "{refusal} (hint: the file for \"x\" holds INT64, the model takes FP32; \
                 save array.astype(numpy.float32))"
            )
        )
    );
}

#[tokio::test]
async fn a_server_that_is_not_ready_or_not_there_is_exit_code_1() {
    let (_guard, folder) = arrays();
    let mock = Mock::start(Behaviour {
        not_ready: true,
        ..Behaviour::default()
    })
    .await;
    assert_eq!(
        requant(&folder, Some(&mock.address), "health").await,
        bad(
            1,
            "not ready (live: true, ready: false, health: NOT_SERVING)"
        )
    );
    let mock = Mock::start(Behaviour {
        no_health: true,
        ..Behaviour::default()
    })
    .await;
    assert_eq!(
        requant(&folder, Some(&mock.address), "health").await,
        good("live: true\nready: true\nhealth: not implemented\n")
    );
    let mock = Mock::start(Behaviour {
        hang: true,
        ..Behaviour::default()
    })
    .await;
    assert_eq!(
        requant(
            &folder,
            Some(&mock.address),
            "infer echo --input x=x.npy --timeout 0.2"
        )
        .await,
        bad(1, "DEADLINE_EXCEEDED: no answer within 0.2 s")
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let outcome = requant(&folder, Some(&address), "models").await;
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (1, 1));
    assert!(
        outcome.stderr.starts_with("error: UNAVAILABLE: "),
        "{}",
        outcome.stderr
    );
}

#[tokio::test]
async fn a_wrong_flag_or_file_is_one_line_and_exit_code_2() {
    let (_guard, folder) = arrays();
    let cases = [
        (
            "",
            "'requant' requires a subcommand but one was not provided",
        ),
        ("inferr", "unrecognized subcommand 'inferr'"),
        ("models extra", "unexpected argument 'extra' found"),
        ("models --all", "unexpected argument '--all' found"),
        (
            "load",
            "the following required arguments were not provided: <NAME>",
        ),
        (
            "infer echo",
            "required arguments were not provided: --input <NAME=FILE.npy>",
        ),
        (
            "infer --input x=x.npy",
            "required arguments were not provided: <MODEL>",
        ),
        (
            "infer echo --input x.npy",
            "invalid value 'x.npy' for '--input <NAME=FILE.npy>'",
        ),
        ("infer echo --input =x.npy", "expected NAME=FILE.npy"),
        ("infer echo --input x=", "expected NAME=FILE.npy"),
        (
            "infer echo --input x=none.npy",
            "none.npy: No such file or directory",
        ),
        ("infer echo --input x=.", ".: Is a directory"),
        ("infer echo --input x=text.npy", "text.npy: not a .npy file"),
        (
            "infer echo --input x=double.npy",
            "double.npy: the array holds float64; save",
        ),
        (
            "infer echo --input x=x.npy --input x=x.npy",
            "--input names \"x\" twice",
        ),
        (
            "infer echo --input x=x.npy --output y=a --output y=b",
            "--output names \"y\" twice",
        ),
        (
            "models --server localhost",
            "address \"localhost\": expected HOST:PORT",
        ),
        (
            "models --server https://h:1",
            "scheme \"https\" is not supported",
        ),
        (
            "models --server",
            "a value is required for '--server <HOST:PORT>'",
        ),
        (
            "models --timeout 0",
            "expected a positive number of seconds",
        ),
        (
            "models --timeout soon",
            "expected a positive number of seconds",
        ),
    ];
    for (line, cause) in cases {
        let outcome = requant(&folder, None, line).await;
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (2, ""),
            "{line}: {outcome:?}"
        );
        assert_eq!(
            outcome.stderr.lines().count(),
            1,
            "{line}: {}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.starts_with("error: "),
            "{line}: {}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains(cause), "{line}: {}", outcome.stderr);
    }
}

#[tokio::test]
async fn an_output_that_cannot_be_written_is_exit_code_2() {
    let mock = Mock::start(Behaviour::default()).await;
    let (_guard, folder) = arrays();
    let line = "infer echo --input x=x.npy --output x=missing/out.npy";
    let outcome = requant(&folder, Some(&mock.address), line).await;
    assert_eq!(
        outcome,
        bad(2, "missing/out.npy: No such file or directory (os error 2)")
    );
}

#[tokio::test]
async fn help_and_version_go_to_standard_output() {
    let (_guard, folder) = arrays();
    let help = requant(&folder, None, "--help").await;
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for word in [
        "infer",
        "models",
        "load",
        "unload",
        "stats",
        "health",
        "REQUANT_SERVER",
    ] {
        assert!(help.stdout.contains(word), "{word}");
    }
    let version = requant(&folder, None, "--version").await;
    assert_eq!(
        version,
        good(&format!("requant {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[tokio::test]
async fn a_file_is_sent_as_it_is() {
    let mock = Mock::start(Behaviour::default()).await;
    let (_guard, folder) = arrays();
    let data = Bytes::from_static(&[0, 1, 255]);
    let array = Array {
        element: ElementType::Uint8,
        shape: vec![1, 3],
        data: data.clone(),
    };
    requant_npy::write(&folder.join("bytes.npy"), &array).unwrap();
    requant(
        &folder,
        Some(&mock.address),
        "infer echo --input x=bytes.npy",
    )
    .await;
    let seen = mock.seen.lock().unwrap();
    assert_eq!(seen.requests[0].inputs[0].datatype, "UINT8");
    assert_eq!(seen.requests[0].raw_input_contents, [data]);
}
