//! What configurations become, and what each fault is called.

use requant_numerics::DType;

use super::*;
use crate::repository::parse_text;

fn tensor(name: &str, dtype: DType, dims: &[usize]) -> TensorInfo {
    TensorInfo {
        name: name.to_owned(),
        dtype,
        dims: dims.to_vec(),
        quantized: None,
    }
}

fn signature(batched: bool) -> Signature {
    Signature {
        batched,
        inputs: vec![
            tensor("x", DType::F32, &[3, 4]),
            tensor("i", DType::I8, &[2]),
        ],
        outputs: vec![tensor("y", DType::F32, &[10])],
    }
}

fn read(text: &str, batched: bool) -> Result<Completed, ConfigError> {
    complete(
        "m",
        parse_text(text.as_bytes())?,
        &signature(batched),
        true,
        &[],
    )
}

#[test]
fn nothing_written_means_batching_when_the_model_can() {
    let batched = complete("m", ModelConfig::default(), &signature(true), false, &[]).unwrap();
    assert_eq!(batched.config.max_batch_size, 32);
    assert!(batched.policy.merge && batched.leading);
    assert_eq!(batched.policy.delay, Duration::ZERO);
    assert_eq!(batched.config.input[0].dims, [3, 4]);
    assert_eq!(batched.config.instance_group[0].count, 1);
    let Some(SchedulingChoice::DynamicBatching(shown)) = &batched.config.scheduling_choice else {
        panic!("no dynamic batching");
    };
    assert_eq!(shown.preferred_batch_size, [32]);

    let whole = complete("m", ModelConfig::default(), &signature(false), false, &[]).unwrap();
    assert_eq!(whole.config.max_batch_size, 0);
    assert!(!whole.policy.merge && !whole.leading);
    assert_eq!(whole.policy.max_rows, 1);
}

#[test]
fn batch_sizes() {
    let bare = read("max_batch_size: 8", true).unwrap();
    assert!(!bare.policy.merge, "merging needs dynamic_batching");
    assert_eq!((bare.leading, bare.policy.max_rows), (true, 8));

    let own = read("max_batch_size: 0", true).unwrap();
    assert_eq!((own.leading, own.policy.max_rows), (true, 32));
    assert_eq!(own.config.input[0].dims, [-1, 3, 4]);

    let rules = read(
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [2, 4] \
         max_queue_delay_microseconds: 300 preserve_ordering: true default_queue_policy { \
         max_queue_size: 5 default_timeout_microseconds: 900 timeout_action: DELAY } } \
         instance_group [ { count: 2 kind: KIND_CPU }, { count: 3 } ]",
        true,
    )
    .unwrap();
    assert_eq!(rules.policy.preferred, [2, 4]);
    assert_eq!(rules.policy.delay, Duration::from_micros(300));
    assert_eq!(rules.policy.max_requests, 5);
    assert_eq!(rules.places, [Place::Host; 5]);
    assert!(rules.preserve_ordering);
    assert_eq!(
        rules.waiting,
        Waiting {
            default: Some(Duration::from_micros(900)),
            give_way: true,
            allow_override: false
        }
    );
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let io = "input [ { name: \"x\" data_type: TYPE_FP32 dims: [3, 4] }, \
              { name: \"i\" data_type: TYPE_INT8 dims: [2] } ]";
    for (text, batched, needle) in [
        ("name: \"other\"", true, "'other'"),
        (
            "platform: \"tensorflow_graphdef\"",
            true,
            "tensorflow_graphdef",
        ),
        ("backend: \"python\"", true, "backend"),
        ("max_batch_size: -1", true, "max_batch_size"),
        ("max_batch_size: 5000", true, "4096"),
        ("max_batch_size: 4", false, "max_batch_size"),
        ("dynamic_batching { }", true, "max_batch_size is 0"),
        ("sequence_batching { }", true, "sequence_batching"),
        ("ensemble_scheduling { }", true, "ensemble_scheduling"),
        (
            "cc_model_filenames { key: \"7.5\" value: \"m\" }",
            true,
            "cc_model_filenames",
        ),
        (
            "metric_tags { key: \"a\" value: \"b\" }",
            true,
            "metric_tags",
        ),
        (
            "model_transaction_policy { decoupled: true }",
            true,
            "decoupled",
        ),
        ("response_cache { enable: true }", true, "response_cache"),
        (
            "batch_input [ { kind: BATCH_ELEMENT_COUNT } ]",
            true,
            "batch_input",
        ),
        (
            "batch_output [ { target_name: \"y\" } ]",
            true,
            "batch_output",
        ),
        (
            "model_operations { op_library_filename: \"x\" }",
            true,
            "model_operations",
        ),
        (
            "model_repository_agents { agents [ { name: \"a\" } ] }",
            true,
            "repository_agents",
        ),
        ("runtime: \"x\"", true, "runtime"),
        ("model_metrics { }", true, "model_metrics"),
        (
            "optimization { graph { level: 1 } }",
            true,
            "optimization.graph",
        ),
        (
            "optimization { cuda { graphs: true } }",
            true,
            "optimization.cuda",
        ),
        (
            "optimization { execution_accelerators { } }",
            true,
            "execution_accelerators",
        ),
        (
            "optimization { priority: PRIORITY_MAX }",
            true,
            "optimization.priority",
        ),
        (
            "optimization { eager_batching: true }",
            true,
            "eager_batching",
        ),
        (
            "default_model_filename: \"../m\"",
            true,
            "default_model_filename",
        ),
        ("instance_group { kind: KIND_GPU }", true, "on no GPU"),
        ("instance_group { kind: KIND_MODEL }", true, "KIND_MODEL"),
        ("instance_group { gpus: [0] }", true, "gpus"),
        ("instance_group { count: -1 }", true, "instance_group.count"),
        (
            "instance_group { count: 1000 }",
            true,
            "instance_group.count",
        ),
        ("instance_group { passive: true }", true, "passive"),
        ("instance_group { host_policy: \"h\" }", true, "host_policy"),
        ("instance_group { rate_limiter { } }", true, "rate_limiter"),
        ("input { name: \"z\" }", true, "'z'"),
        (
            "input { name: \"x\" data_type: TYPE_FP32 dims: [3, 4] }",
            true,
            "'i'",
        ),
        (
            "input { name: \"x\" data_type: TYPE_INT8 dims: [3, 4] }",
            true,
            "TYPE_INT8",
        ),
        ("input { name: \"x\" dims: [3, 4] }", true, "TYPE_INVALID"),
        (
            "input { name: \"x\" data_type: TYPE_FP32 dims: [4, 3] }",
            true,
            "[4, 3]",
        ),
        (
            "input { name: \"x\" data_type: TYPE_FP32 dims: [3] }",
            true,
            "[3]",
        ),
        ("output { name: \"q\" }", true, "'q'"),
        (
            "output { name: \"y\" data_type: TYPE_FP32 dims: [11] }",
            true,
            "[11]",
        ),
        (
            "output { name: \"y\" data_type: TYPE_FP32 dims: [10] label_filename: \"a/b\" }",
            true,
            "label_filename",
        ),
        (
            "output { name: \"y\" data_type: TYPE_FP32 dims: [10] reshape { shape: [10] } }",
            true,
            "reshape",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: [5] }",
            true,
            "preferred_batch_size",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: [0] }",
            true,
            "preferred_batch_size",
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 }",
            true,
            "priority_levels",
        ),
        (
            "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 99999999999 }",
            true,
            "one hour",
        ),
        (
            "max_batch_size: 4 model_warmup { batch_size: 9 }",
            true,
            "model_warmup.batch_size",
        ),
        ("model_warmup { batch_size: 1 }", true, "'x'"),
        (
            "model_warmup { inputs { key: \"q\" value { zero_data: true } } }",
            true,
            "'q'",
        ),
    ] {
        // Faults of tensors are looked for with the batch dimension left to the server.
        let text = match text.starts_with("input") || text.starts_with("output") {
            true => format!("max_batch_size: 4 {text}"),
            false => text.to_owned(),
        };
        let error = read(&text, batched).unwrap_err().to_string();
        assert!(error.contains(needle), "{text}: {error}");
    }
    let io = &format!("max_batch_size: 4 {io}");
    assert!(read(io, true).is_ok());
    assert!(
        read(
            "optimization { input_pinned_memory { enable: true } }",
            true
        )
        .is_ok()
    );
    assert!(read("response_cache { enable: false }", true).is_ok());
    for flag in [
        "optional: true",
        "allow_ragged_batch: true",
        "is_shape_tensor: true",
    ] {
        let text = io.replace("dims: [3, 4]", &format!("dims: [3, 4] {flag}"));
        assert!(read(&text, true).is_err(), "{flag}");
    }
}

#[test]
fn versions_by_policy() {
    let found: BTreeMap<u64, PathBuf> = [1, 2, 5].map(|n| (n, PathBuf::new())).into();
    for (text, want) in [
        ("", Some(vec![5])),
        (
            "version_policy { latest { num_versions: 2 } }",
            Some(vec![2, 5]),
        ),
        (
            "version_policy { latest { num_versions: 9 } }",
            Some(vec![1, 2, 5]),
        ),
        ("version_policy { all { } }", Some(vec![1, 2, 5])),
        (
            "version_policy { specific { versions: [2, 1, 2] } }",
            Some(vec![1, 2]),
        ),
        ("version_policy { specific { versions: [3] } }", None),
        ("version_policy { specific { versions: [-1] } }", None),
        ("version_policy { specific { } }", None),
    ] {
        let config = parse_text(text.as_bytes()).unwrap();
        assert_eq!(select_versions(&config, &found).ok(), want, "{text}");
    }
    assert!(select_versions(&ModelConfig::default(), &BTreeMap::new()).is_err());
}
