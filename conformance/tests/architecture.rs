//! The arrows between the crates, and which crates use the libraries that the project is built on.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What each crate may depend on directly (dependencies of tests not counted).
const MAY_USE: &[(&str, &[&str])] = &[
    ("requant-proto", &[]),
    ("requant-numerics", &[]),
    ("requant-npy", &[]),
    ("requant-model", &["requant-numerics"]),
    ("requant-import", &["requant-model", "requant-numerics"]),
    ("requant-kernels-cpu", &["requant-numerics"]),
    ("requant-kernels-cuda", &["requant-numerics"]),
    (
        "requant-runtime",
        &[
            "requant-model",
            "requant-kernels-cpu",
            "requant-kernels-cuda",
            "requant-numerics",
        ],
    ),
    (
        "requant-conformance",
        &[
            "requant-runtime",
            "requant-model",
            "requant-npy",
            "requant-numerics",
        ],
    ),
    (
        "requant-server",
        &[
            "requant-proto",
            "requant-import",
            "requant-runtime",
            "requant-model",
            "requant-numerics",
        ],
    ),
    ("requant-client", &["requant-npy", "requant-proto"]),
    (
        "requant-quantize",
        &[
            "requant-import",
            "requant-runtime",
            "requant-model",
            "requant-npy",
            "requant-numerics",
        ],
    ),
];

/// Who depends directly on what the project is built on. Nobody else may.
const BUILT_ON: &[(&str, &[&str])] = &[
    ("tokio", &["requant-client", "requant-server"]),
    (
        "tonic",
        &["requant-client", "requant-proto", "requant-server"],
    ),
    (
        "prost",
        &["requant-import", "requant-proto", "requant-server"],
    ),
    ("tracing", &["requant-server"]),
    ("metrics", &["requant-server"]),
    ("dashmap", &["requant-server"]),
    ("cudarc", &["requant-kernels-cuda"]),
];

/// Direct dependencies of each crate of the workspace, those of tests left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--manifest-path",
            manifest,
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = |package: &Value| {
        let kept = package["dependencies"].as_array().unwrap().iter();
        let kept = kept.filter(|dependency| dependency["kind"].as_str() != Some("dev"));
        let names = kept.map(|dependency| dependency["name"].as_str().unwrap().to_owned());
        (
            package["name"].as_str().unwrap().to_owned(),
            names.collect(),
        )
    };
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(package)
        .collect()
}

#[test]
fn arrows_point_one_way() {
    let dependencies = dependencies();
    let listed: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let present: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    assert_eq!(
        listed, present,
        "every crate of the workspace has its row above"
    );
    for (name, allowed) in MAY_USE {
        let ours = dependencies[*name]
            .iter()
            .filter(|other| other.starts_with("requant-"));
        for other in ours {
            assert!(
                allowed.contains(&other.as_str()),
                "{name} must not depend on {other}"
            );
        }
    }
}

#[test]
fn libraries_are_where_they_are_used() {
    let dependencies = dependencies();
    for (library, users) in BUILT_ON {
        let found: Vec<&str> = dependencies
            .iter()
            .filter(|(_, uses)| uses.contains(*library))
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(&found, users, "{library}");
    }
}
