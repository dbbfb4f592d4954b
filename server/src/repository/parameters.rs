//! Parameters of a model's configuration that this server acts on. Others are the user's notes, as in
//! Triton.

use requant_proto::inference::ModelConfig;

use super::ConfigError;
use crate::engine::{Reading, TfliteKernels};

/// Whose kernels a TFLite model is computed like.
const TFLITE_KERNELS: &str = "tflite_kernels";

/// How the model's file is to be read.
///
/// # Errors
/// [`ConfigError::Value`] for a parameter with a value that it does not take.
pub(crate) fn reading(config: &ModelConfig) -> Result<Reading, ConfigError> {
    let mut reading = Reading {
        input_dims: config
            .input
            .iter()
            .map(|input| (input.name.clone(), input.dims.clone()))
            .collect(),
        ..Reading::default()
    };
    if let Some(parameter) = config.parameters.get(TFLITE_KERNELS) {
        let named = |kernels: &TfliteKernels| kernels.name() == parameter.string_value;
        reading.tflite_kernels =
            TfliteKernels::ALL
                .into_iter()
                .find(named)
                .ok_or_else(|| ConfigError::Value {
                    field: format!("parameters['{TFLITE_KERNELS}']"),
                    got: format!("'{}'", parameter.string_value),
                    expected: TfliteKernels::ALL.map(TfliteKernels::name).join(" or "),
                })?;
    }
    Ok(reading)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::config::parse_text;

    #[test]
    fn input_sizes_reach_the_importer() {
        let text = br#"input [ { name: "x" dims: [3, -1, 224] }, { name: "y" dims: [7] } ]"#;
        let reading = reading(&parse_text(text).unwrap()).unwrap();
        assert_eq!(reading.input_dims["x"], [3, -1, 224]);
        assert_eq!(reading.input_dims["y"], [7]);
    }

    #[test]
    fn kernels_are_chosen_by_name() {
        let read = |value: &str| {
            let text = format!(
                r#"parameters {{ key: "tflite_kernels" value {{ string_value: "{value}" }} }}
                parameters {{ key: "note" value {{ string_value: "x" }} }}"#
            );
            reading(&parse_text(text.as_bytes()).unwrap())
        };
        let kernels = |value| read(value).map(|reading| reading.tflite_kernels);
        assert_eq!(kernels("tflm"), Ok(TfliteKernels::Tflm));
        assert_eq!(kernels("litert"), Ok(TfliteKernels::LiteRt));
        assert_eq!(reading(&ModelConfig::default()), Ok(Reading::default()));
        let error = read("xnnpack").unwrap_err().to_string();
        assert!(
            error.contains("'xnnpack', expected litert or tflm"),
            "{error}"
        );
    }
}
