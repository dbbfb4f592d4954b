//! Reading a `ModelConfig` from protobuf's text format (`config.pbtxt`) or JSON (the `config`
//! parameter of a load). Unknown fields are errors: a setting that is silently dropped is worse than
//! a model that does not load.

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use requant_proto::inference::ModelConfig;

use super::ConfigError;

fn descriptor() -> Option<MessageDescriptor> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(requant_proto::FILE_DESCRIPTOR_SET).ok())
        .as_ref()?
        .get_message_by_name("inference.ModelConfig")
}

/// Reads protobuf text.
///
/// # Errors
/// [`ConfigError::Encoding`], or [`ConfigError::Text`] that names the unknown field, the value or
/// the token.
pub fn parse_text(text: &[u8]) -> Result<ModelConfig, ConfigError> {
    let fault = |reason: String| ConfigError::Text { reason };
    let text = std::str::from_utf8(text).map_err(|_| ConfigError::Encoding)?;
    let descriptor = descriptor().ok_or_else(|| fault("descriptors are broken".to_owned()))?;
    DynamicMessage::parse_text_format(descriptor, &with_colons(text))
        .map_err(|error| fault(error.to_string()))?
        .transcode_to()
        .map_err(|error| fault(error.to_string()))
}

/// Writes `input [ … ]` as `input: [ … ]`. Lists of messages may leave the colon out, as nearly every
/// configuration does; the parser insists on it.
fn with_colons(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut quote = None;
    let mut comment = false;
    let mut escaped = false;
    let mut before = ' ';
    for c in text.chars() {
        if comment {
            comment = c != '\n';
        } else if let Some(open) = quote {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == open || c == '\n' {
                quote = None;
            }
            before = c;
        } else {
            match c {
                '#' => comment = true,
                '"' | '\'' => quote = Some(c),
                '[' if before == '_' || before.is_ascii_alphanumeric() => out.push(':'),
                _ => {}
            }
            if !comment && !c.is_whitespace() {
                before = c;
            }
        }
        out.push(c);
    }
    out
}

/// Reads protobuf JSON.
///
/// # Errors
/// [`ConfigError::Json`] that names the unknown field or the value.
pub fn parse_json(text: &str) -> Result<ModelConfig, ConfigError> {
    let fault = |reason: String| ConfigError::Json { reason };
    let descriptor = descriptor().ok_or_else(|| fault("descriptors are broken".to_owned()))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize(descriptor, &mut reader)
        .map_err(|error| fault(error.to_string()))?;
    reader.end().map_err(|error| fault(error.to_string()))?;
    message
        .transcode_to()
        .map_err(|error| fault(error.to_string()))
}

#[cfg(test)]
mod tests {
    use requant_proto::inference::model_config::SchedulingChoice;

    use super::*;

    #[test]
    fn a_configuration_as_people_write_them() {
        let config = parse_text(
            br#"
            # ResNet, quantized elsewhere
            name: "resnet"
            platform: "onnxruntime_onnx"
            max_batch_size: 16
            input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ]
            output { name: "y", data_type: TYPE_FP32, dims: [ 1000 ], label_filename: "l.txt" }
            instance_group [ { count: 2 kind: KIND_CPU } ]
            dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
            version_policy: { latest { num_versions: 2 } }
            parameters { key: "note" value { string_value: "x" } }
            "#,
        )
        .unwrap();
        assert_eq!(config.max_batch_size, 16);
        assert_eq!(config.input[0].dims, [3, 224, 224]);
        assert_eq!(config.instance_group[0].count, 2);
        let Some(SchedulingChoice::DynamicBatching(batching)) = config.scheduling_choice else {
            panic!("dynamic_batching was lost");
        };
        assert_eq!(batching.preferred_batch_size, [4, 8]);
    }

    #[test]
    fn colons_appear_where_they_may_be_left_out() {
        for (text, want) in [
            ("input [ {", "input : [ {"),
            ("input: [ {", "input: [ {"),
            ("a # [\n [", "a # [\n : ["),
            ("a: \"b [\" c [", "a: \"b [\" c : ["),
            (r#"a: "\"" b ["#, r#"a: "\"" b : ["#),
            ("a: 'x[' b: [1]", "a: 'x[' b: [1]"),
        ] {
            assert_eq!(with_colons(text).replace(" :[", " : ["), want);
        }
    }

    #[test]
    fn faults_name_the_field() {
        for (text, needle) in [
            (&b"max_batchsize: 3"[..], "max_batchsize"),
            (b"input { nane: \"x\" }", "nane"),
            (b"max_batch_size: \"four\"", "four"),
            (b"max_batch_size: 99999999999", "99999999999"),
            (b"input { data_type: TYPE_INT3 }", "TYPE_INT3"),
            (b"max_batch_size: 1 max_batch_size: 2", "max_batch_size"),
            (
                b"dynamic_batching { } ensemble_scheduling { }",
                "scheduling_choice",
            ),
            (b"name: \"\xff\"", "UTF-8"),
            (b"input {", "end of input"),
        ] {
            let error = parse_text(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
        for (text, needle) in [
            (r#"{"max_batchsize": 3}"#, "max_batchsize"),
            (r#"{"max_batch_size": "x"}"#, ""),
            (r#"{} trailing"#, "trailing"),
            ("[", ""),
        ] {
            let error = parse_json(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }

    #[test]
    fn json_takes_both_spellings() {
        for text in [r#"{"maxBatchSize": 4}"#, r#"{"max_batch_size": 4}"#] {
            assert_eq!(parse_json(text).unwrap().max_batch_size, 4);
        }
    }
}
