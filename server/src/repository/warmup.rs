//! Warm-up: runs each instance of a model before it is served, so that the first caller does not pay
//! for cold caches and untouched pages. Without `model_warmup` one sample of zeros is run.

use requant_proto::inference::{ModelWarmup, model_warmup::input::InputDataType};

use super::{LoadError, files::ModelFolder};
use crate::engine::{ExecError, Form, Instance, Signature, TensorInfo};

/// One warm-up run: data for every input in the model's order.
#[derive(Debug)]
pub(crate) struct Sample {
    name: String,
    rows: usize,
    count: u32,
    inputs: Vec<Vec<u8>>,
}

/// Reads or makes the data of a model's warm-up runs. Without a folder (the built-in model) there
/// are no files to read.
pub(crate) fn samples(
    warmups: &[ModelWarmup],
    signature: &Signature,
    folder: Option<&ModelFolder>,
) -> Result<Vec<Sample>, LoadError> {
    if warmups.is_empty() {
        let zeros = |info: &TensorInfo| vec![0; info.bytes(Form::Declared).unwrap_or(0)];
        return Ok(vec![Sample {
            name: "zeros".to_owned(),
            rows: 1,
            count: 1,
            inputs: signature.inputs.iter().map(zeros).collect(),
        }]);
    }
    warmups
        .iter()
        .map(|warmup| sample(warmup, signature, folder))
        .collect()
}

fn sample(
    warmup: &ModelWarmup,
    signature: &Signature,
    folder: Option<&ModelFolder>,
) -> Result<Sample, LoadError> {
    let rows = usize::try_from(warmup.batch_size.max(1)).unwrap_or(usize::MAX);
    let mut inputs = Vec::with_capacity(signature.inputs.len());
    for info in &signature.inputs {
        let bytes = info.bytes(Form::Declared).unwrap_or(0);
        let source = warmup
            .inputs
            .get(&info.name)
            .and_then(|i| i.input_data_type.as_ref());
        let one = match (source, folder) {
            (Some(InputDataType::RandomData(true)), _) => noise(info, bytes),
            (Some(InputDataType::InputDataFile(name)), Some(folder)) => {
                let data = folder.warmup_file(name, bytes as u64)?;
                if data.len() != bytes {
                    return Err(super::ConfigError::Value {
                        field: format!("model_warmup input_data_file '{name}'"),
                        got: format!("{} bytes", data.len()),
                        expected: format!("{bytes} bytes"),
                    }
                    .into());
                }
                data
            }
            (
                None
                | Some(
                    InputDataType::ZeroData(_)
                    | InputDataType::RandomData(false)
                    | InputDataType::InputDataFile(_),
                ),
                _,
            ) => vec![0; bytes],
        };
        inputs.push(one.repeat(rows));
    }
    Ok(Sample {
        name: warmup.name.clone(),
        rows,
        count: warmup.count.max(1),
        inputs,
    })
}

/// Repeatable values that are valid in every element type: for floats, of moderate size.
fn noise(info: &TensorInfo, bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    if info.dtype.range().is_some() {
        return (0..bytes).map(|_| next().to_le_bytes()[0]).collect();
    }
    let floats = (0..bytes / 4).map(|_| (next() >> 8) as f32 / (1 << 23) as f32 - 1.0);
    floats.flat_map(f32::to_le_bytes).collect()
}

/// Runs all samples on one instance.
pub(crate) fn run(
    instance: &mut dyn Instance,
    samples: &[Sample],
    version: u64,
) -> Result<(), LoadError> {
    for sample in samples {
        for _ in 0..sample.count {
            once(instance, sample).map_err(|source| LoadError::Warmup {
                version,
                sample: sample.name.clone(),
                source,
            })?;
        }
    }
    Ok(())
}

fn once(instance: &mut dyn Instance, sample: &Sample) -> Result<(), ExecError> {
    for (index, data) in sample.inputs.iter().enumerate() {
        instance.write_input(index, 0, sample.rows, Form::Declared, data)?;
    }
    instance.run(sample.rows)?;
    Ok(())
}
