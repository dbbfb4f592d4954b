//! The descriptors as their users need them: configurations in protobuf's text form parse whole,
//! what is unknown in them is named, and tensor contents are not copied out of the frame.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use prost::{Message as _, bytes::Bytes};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use requant_proto::{
    FILE_DESCRIPTOR_SET, SERVICE_NAME,
    inference::{
        DataType, ModelConfig, ModelInferRequest, model_config::SchedulingChoice,
        model_version_policy::PolicyChoice, model_warmup,
    },
};

/// A configuration with every part that servers of this kind are given.
const CONFIGURATION: &str = r#"
# Comments and both ways of writing lists occur in the wild. Lists of messages may also stand
# without a colon, which prost-reflect does not take.
name: "classifier"
platform: "onnxruntime_onnx"
max_batch_size: 32
version_policy { specific { versions: [ 1, 3 ] } }
input: [
  { name: "image", data_type: TYPE_FP32, format: FORMAT_NCHW, dims: [ 3, 224, 224 ] },
  { name: "mask" data_type: TYPE_BOOL dims: 1 reshape { shape: [ ] } optional: true }
]
output { name: "scores" data_type: TYPE_FP32 dims: -1 label_filename: "labels.txt" }
instance_group: [ { count: 2 kind: KIND_CPU }, { kind: KIND_GPU gpus: [ 0, 1 ] passive: true } ]
dynamic_batching {
  preferred_batch_size: [ 8, 16 ]
  max_queue_delay_microseconds: 500
  preserve_ordering: true
  priority_levels: 2
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1000 max_queue_size: 64 }
  priority_queue_policy { key: 1 value { max_queue_size: 8 } }
}
optimization {
  graph { level: 1 }
  cuda { graphs: true graph_spec { batch_size: 1 input { key: "image" value { dim: [ 3, 8 ] } } } }
  execution_accelerators { cpu_execution_accelerator: [ { name: "openvino" } ] }
  input_pinned_memory { enable: false }
}
model_warmup: [ {
  name: "first" batch_size: 4 count: 2
  inputs { key: "image" value: { data_type: TYPE_FP32 dims: [ 3, 224, 224 ] zero_data: true } }
} ]
parameters: { key: "threads" value: { string_value: "4" } }
parameters { key: "mode" value { string_value: "fast" } }
cc_model_filenames { key: "9.0" value: "model_h.plan" }
metric_tags { key: "team" value: "vision" }
model_operations { op_library_filename: "libops.so" }
model_transaction_policy { decoupled: false }
model_repository_agents { agents: [ { name: "checksum" parameters { key: "a" value: "b" } } ] }
response_cache { enable: true }
model_metrics { metric_control: [ {
  metric_identifier { family: "latency" } histogram_options { buckets: [ 0.5, 1 ] }
} ] }
batch_input { kind: BATCH_ITEM_SHAPE target_name: "shape" data_type: TYPE_FP32 source_input: "image" }
batch_output { target_name: "scores" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "image" }
default_model_filename: "model.onnx"
backend: "onnxruntime"
runtime: ""
"#;

fn descriptor() -> MessageDescriptor {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    pool.get_message_by_name("inference.ModelConfig").unwrap()
}

#[test]
fn a_configuration_in_text_form_parses_whole() {
    let message = DynamicMessage::parse_text_format(descriptor(), CONFIGURATION).unwrap();
    let config: ModelConfig = message.transcode_to().unwrap();

    assert_eq!(
        (config.name.as_str(), config.max_batch_size),
        ("classifier", 32)
    );
    assert_eq!(config.input[0].data_type(), DataType::TypeFp32);
    assert_eq!(config.input[0].dims, [3, 224, 224]);
    assert_eq!(config.instance_group[1].gpus, [0, 1]);
    let Some(PolicyChoice::Specific(specific)) = config.version_policy.unwrap().policy_choice
    else {
        unreachable!("the configuration names versions")
    };
    assert_eq!(specific.versions, [1, 3]);
    let Some(SchedulingChoice::DynamicBatching(batching)) = config.scheduling_choice else {
        unreachable!("the configuration asks for batches")
    };
    assert_eq!(batching.preferred_batch_size, [8, 16]);
    assert_eq!(batching.priority_queue_policy[&1].max_queue_size, 8);
    let warmup = &config.model_warmup[0].inputs["image"];
    assert_eq!(
        warmup.input_data_type,
        Some(model_warmup::input::InputDataType::ZeroData(true))
    );
    assert_eq!(config.parameters["mode"].string_value, "fast");
    assert_eq!(config.model_metrics.unwrap().metric_control.len(), 1);
}

#[test]
fn other_schedulers_parse_so_that_they_can_be_refused_by_name() {
    let ensemble = r#"ensemble_scheduling { step: [ {
        model_name: "a" model_version: -1 input_map { key: "x" value: "y" }
        output_map { key: "z" value: "w" }
    } ] }"#;
    let sequence = r#"sequence_batching {
        max_sequence_idle_microseconds: 5
        control_input: [ { name: "start" control: [ {
            kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ]
        } ] } ]
        state: [ { input_name: "i" output_name: "o" data_type: TYPE_INT32 dims: [ 1 ]
                  initial_state: { data_type: TYPE_INT32 dims: [ 1 ] zero_data: true name: "s" } } ]
        oldest { max_candidate_sequences: 4 }
    }"#;
    for (text, field) in [
        (ensemble, "ensemble_scheduling"),
        (sequence, "sequence_batching"),
    ] {
        let message = DynamicMessage::parse_text_format(descriptor(), text).unwrap();
        assert!(message.has_field_by_name(field), "{field}");
    }
}

#[test]
fn what_is_unknown_in_a_configuration_is_named() {
    let error = DynamicMessage::parse_text_format(descriptor(), "max_batchsize: 1").unwrap_err();
    assert!(format!("{error:?}").contains("max_batchsize"), "{error:?}");
}

#[test]
fn the_service_is_described_under_its_name() {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let service = pool.get_service_by_name(SERVICE_NAME).unwrap();
    assert_eq!(service.methods().len(), 11);
}

#[test]
fn raw_contents_are_views_of_the_frame() {
    let content = Bytes::from(vec![7u8; 1000]);
    let request = ModelInferRequest {
        raw_input_contents: vec![content],
        ..Default::default()
    };
    let frame = Bytes::from(request.encode_to_vec());
    let decoded = ModelInferRequest::decode(frame.clone()).unwrap();
    let inside = frame.as_ptr_range();
    assert!(inside.contains(&decoded.raw_input_contents[0].as_ptr()));
}
