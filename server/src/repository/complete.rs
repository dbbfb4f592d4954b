//! From what an operator wrote to what is served: a configuration is checked field by field against
//! the model, whatever cannot be honoured is refused by name, and the gaps are filled from the
//! model itself. The completed configuration is what the ModelConfig call answers.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use requant_proto::inference::{
    ModelConfig, ModelDynamicBatching, ModelInput, ModelOutput, ModelQueuePolicy,
    ModelVersionPolicy, ModelWarmup,
    model_config::SchedulingChoice,
    model_input::Format,
    model_queue_policy::TimeoutAction,
    model_version_policy::{Latest, PolicyChoice},
};

use super::{ConfigError, LoadError, files::is_plain_name};
use crate::{
    batcher::Policy,
    datatype::config_type,
    engine::{Place, Signature, TensorInfo},
};

/// Largest batch that a configuration may ask for.
pub const MAX_BATCH: usize = 4096;
/// Batch size of a batched model without a configuration.
const DEFAULT_BATCH: usize = 32;
/// Requests that wait at most when the configuration does not say.
const DEFAULT_QUEUE: usize = 1024;
/// Bytes of tensors that wait at most, whatever the number of requests.
const QUEUE_BYTES: usize = 512 << 20;
/// Backends and platforms of configurations written for other servers of ONNX and TFLite models.
const PLATFORMS: [&str; 5] = [
    "",
    "requant",
    "onnxruntime",
    "onnxruntime_onnx",
    "armnn_tflite",
];

/// A checked configuration and what follows from it.
#[derive(Clone, Debug)]
pub struct Completed {
    /// The configuration, with every gap filled.
    pub config: ModelConfig,
    /// Whether requests carry a leading batch dimension.
    pub leading: bool,
    /// How batches are formed.
    pub policy: Policy,
    /// Whether answers keep the order of the requests.
    pub preserve_ordering: bool,
    /// Where each compute thread has its instance.
    pub places: Vec<Place>,
    /// How long requests may wait.
    pub waiting: Waiting,
    /// For each output, the file with its labels, or nothing.
    pub label_files: Vec<String>,
}

/// Rules about time in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Limit for requests that bring none.
    pub default: Option<Duration>,
    /// What happens at the limit: true lets others pass, false refuses.
    pub give_way: bool,
    /// Whether a request may bring its own, shorter limit.
    pub allow_override: bool,
}

/// The versions to serve out of those found.
///
/// # Errors
/// [`LoadError::NoVersion`] when the policy leaves none or names one that is not there.
pub(crate) fn select_versions(
    config: &ModelConfig,
    found: &BTreeMap<u64, PathBuf>,
) -> Result<Vec<u64>, LoadError> {
    let none = |wanted: String| LoadError::NoVersion {
        wanted,
        found: found.keys().copied().collect(),
    };
    let policy = config
        .version_policy
        .as_ref()
        .and_then(|policy| policy.policy_choice.as_ref());
    let latest = |count: u32| {
        let count = usize::try_from(count.max(1)).unwrap_or(usize::MAX);
        let skip = found.len().saturating_sub(count);
        found.keys().skip(skip).copied().collect::<Vec<u64>>()
    };
    let versions = match policy {
        None => latest(1),
        Some(PolicyChoice::Latest(policy)) => latest(policy.num_versions),
        Some(PolicyChoice::All(_)) => found.keys().copied().collect(),
        Some(PolicyChoice::Specific(policy)) => {
            let mut wanted = Vec::new();
            for &version in &policy.versions {
                match u64::try_from(version)
                    .ok()
                    .filter(|number| found.contains_key(number))
                {
                    Some(number) => wanted.push(number),
                    None => return Err(none(format!("version_policy.specific wants {version}"))),
                }
            }
            wanted.sort_unstable();
            wanted.dedup();
            wanted
        }
    };
    match versions.is_empty() {
        true => Err(none("no version folder fits".to_owned())),
        false => Ok(versions),
    }
}

/// Checks what can be checked before the model is read: the name, and fields that are refused
/// whatever the model is.
///
/// # Errors
/// The first field that cannot be honoured.
pub(crate) fn check_fields(config: &ModelConfig, name: &str) -> Result<(), ConfigError> {
    if !config.name.is_empty() && config.name != name {
        return Err(ConfigError::Name {
            expected: name.to_owned(),
            got: config.name.clone(),
        });
    }
    for (field, value) in [("platform", &config.platform), ("backend", &config.backend)] {
        if !PLATFORMS.contains(&value.as_str()) {
            return Err(ConfigError::Value {
                field: field.to_owned(),
                got: format!("'{value}'"),
                expected: "requant, onnxruntime, onnxruntime_onnx or armnn_tflite".to_owned(),
            });
        }
    }
    match &config.scheduling_choice {
        Some(SchedulingChoice::SequenceBatching(_)) => {
            return Err(unsupported("sequence_batching"));
        }
        Some(SchedulingChoice::EnsembleScheduling(_)) => {
            return Err(unsupported("ensemble_scheduling"));
        }
        Some(SchedulingChoice::DynamicBatching(_)) | None => {}
    }
    let decoupled = config
        .model_transaction_policy
        .as_ref()
        .is_some_and(|p| p.decoupled);
    let cached = config
        .response_cache
        .as_ref()
        .is_some_and(|cache| cache.enable);
    let agents = config.model_repository_agents.as_ref();
    let libraries = config.model_operations.as_ref();
    for (field, set) in [
        ("cc_model_filenames", !config.cc_model_filenames.is_empty()),
        ("metric_tags", !config.metric_tags.is_empty()),
        (
            "model_operations",
            libraries.is_some_and(|operations| !operations.op_library_filename.is_empty()),
        ),
        ("model_transaction_policy.decoupled", decoupled),
        ("batch_input", !config.batch_input.is_empty()),
        ("batch_output", !config.batch_output.is_empty()),
        (
            "model_repository_agents",
            agents.is_some_and(|agents| !agents.agents.is_empty()),
        ),
        ("response_cache", cached),
        ("runtime", !config.runtime.is_empty()),
        ("model_metrics", config.model_metrics.is_some()),
    ] {
        if set {
            return Err(unsupported(field));
        }
    }
    if let Some(optimization) = &config.optimization {
        for (field, set) in [
            ("optimization.graph", optimization.graph.is_some()),
            ("optimization.priority", optimization.priority != 0),
            ("optimization.cuda", optimization.cuda.is_some()),
            (
                "optimization.execution_accelerators",
                optimization.execution_accelerators.is_some(),
            ),
            (
                "optimization.gather_kernel_buffer_threshold",
                optimization.gather_kernel_buffer_threshold != 0,
            ),
            ("optimization.eager_batching", optimization.eager_batching),
        ] {
            // Pinned buffers are left: without a device of its own memory they mean nothing.
            if set {
                return Err(unsupported(field));
            }
        }
    }
    let file = &config.default_model_filename;
    if !file.is_empty() && !is_plain_name(file) {
        return Err(value(
            "default_model_filename",
            format!("'{file}'"),
            "a plain file name",
        ));
    }
    Ok(())
}

/// Checks a configuration against the model and the GPUs of these ordinals, and fills its gaps.
///
/// # Errors
/// The first field that is refused or disagrees with the model.
pub fn complete(
    name: &str,
    mut config: ModelConfig,
    signature: &Signature,
    configured: bool,
    gpus: &[usize],
) -> Result<Completed, ConfigError> {
    check_fields(&config, name)?;
    let (leading, max_rows) = batch_dimension(&config, signature, configured)?;
    let merges = signature.batched && (!configured || config.max_batch_size > 0);
    if !configured && merges {
        config.max_batch_size = DEFAULT_BATCH as i32;
        config.scheduling_choice = Some(SchedulingChoice::DynamicBatching(
            ModelDynamicBatching::default(),
        ));
    }
    config.name = name.to_owned();
    "requant".clone_into(&mut config.platform);
    "requant".clone_into(&mut config.backend);
    // Where the configuration has no batch dimension but the model does, dims show it.
    let shown = leading && config.max_batch_size == 0;
    config.input = complete_inputs(&config.input, &signature.inputs, shown)?;
    let (outputs, label_files) = complete_outputs(&config.output, &signature.outputs, shown)?;
    config.output = outputs;
    let places = placement::complete(name, &mut config.instance_group, gpus)?;
    let (policy, preserve_ordering, waiting) = complete_batching(&mut config, max_rows)?;
    check_warmups(&config.model_warmup, signature, max_rows)?;
    if config.version_policy.is_none() {
        config.version_policy = Some(ModelVersionPolicy {
            policy_choice: Some(PolicyChoice::Latest(Latest { num_versions: 1 })),
        });
    }
    Ok(Completed {
        config,
        leading,
        policy,
        preserve_ordering,
        places,
        waiting,
        label_files,
    })
}

fn unsupported(field: &str) -> ConfigError {
    ConfigError::Unsupported {
        field: field.to_owned(),
        reason: "",
    }
}

fn value(field: &str, got: impl ToString, expected: impl ToString) -> ConfigError {
    ConfigError::Value {
        field: field.to_owned(),
        got: got.to_string(),
        expected: expected.to_string(),
    }
}

/// Whether requests carry a batch dimension, and the most samples of one run.
fn batch_dimension(
    config: &ModelConfig,
    signature: &Signature,
    configured: bool,
) -> Result<(bool, usize), ConfigError> {
    let size = config.max_batch_size;
    let rows = usize::try_from(size).ok().filter(|&rows| rows <= MAX_BATCH);
    let Some(rows) = rows else {
        return Err(value("max_batch_size", size, format!("0 to {MAX_BATCH}")));
    };
    match (signature.batched, rows) {
        (false, 0) => Ok((false, 1)),
        (false, _) => Err(value(
            "max_batch_size",
            size,
            "0, because the model's first dimension is fixed",
        )),
        // A batched model without server-side batching: requests bring their own batch.
        (true, 0) => Ok((true, DEFAULT_BATCH)),
        (true, rows) => Ok((true, if configured { rows } else { DEFAULT_BATCH })),
    }
}

fn dims_of(info: &TensorInfo, shown: bool) -> Vec<i64> {
    let own = info
        .dims
        .iter()
        .map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX));
    shown.then_some(-1).into_iter().chain(own).collect()
}

fn names(tensors: &[TensorInfo]) -> String {
    let names: Vec<String> = tensors
        .iter()
        .map(|info| format!("'{}'", info.name))
        .collect();
    names.join(", ")
}

/// What inputs and outputs of a configuration have in common.
struct Listed<'a> {
    kind: &'static str,
    name: &'a str,
    data_type: i32,
    dims: &'a [i64],
}

/// Checks listed tensors against the model's.
fn check_tensors(
    listed: &[Listed<'_>],
    tensors: &[TensorInfo],
    shown: bool,
) -> Result<(), ConfigError> {
    for (index, item) in listed.iter().enumerate() {
        let (kind, tensor) = (item.kind, item.name.to_owned());
        let Some(info) = tensors.iter().find(|info| info.name == item.name) else {
            return Err(ConfigError::UnknownTensor {
                kind,
                tensor,
                expected: names(tensors),
            });
        };
        if listed[..index].iter().any(|other| other.name == item.name) {
            return Err(ConfigError::DuplicateTensor { kind, tensor });
        }
        let expected = config_type(info.dtype);
        let got = requant_proto::inference::DataType::try_from(item.data_type);
        if got != Ok(expected) {
            return Err(ConfigError::DataType {
                kind,
                tensor,
                expected: expected.as_str_name(),
                got: got.map_or("an unknown number", |got| got.as_str_name()),
            });
        }
        let dims = dims_of(info, shown);
        let fits = dims.len() == item.dims.len()
            && dims
                .iter()
                .zip(item.dims)
                .all(|(own, got)| own == got || *got == -1);
        if !fits {
            return Err(ConfigError::Dims {
                kind,
                tensor,
                expected: dims,
                got: item.dims.to_vec(),
            });
        }
    }
    Ok(())
}

fn complete_inputs(
    configured: &[ModelInput],
    tensors: &[TensorInfo],
    shown: bool,
) -> Result<Vec<ModelInput>, ConfigError> {
    let listed: Vec<Listed<'_>> = configured
        .iter()
        .map(|input| Listed {
            kind: "input",
            name: &input.name,
            data_type: input.data_type,
            dims: &input.dims,
        })
        .collect();
    check_tensors(&listed, tensors, shown)?;
    for input in configured {
        for (field, set) in [
            ("reshape", input.reshape.is_some()),
            ("is_shape_tensor", input.is_shape_tensor),
            ("allow_ragged_batch", input.allow_ragged_batch),
            ("optional", input.optional),
            ("is_non_linear_format_io", input.is_non_linear_format_io),
        ] {
            if set {
                return Err(unsupported(&format!("input '{}' {field}", input.name)));
            }
        }
    }
    let format = |name: &str| {
        let own = configured.iter().find(|input| input.name == name);
        own.map_or(Format::None as i32, |input| input.format)
    };
    if let Some(missing) = tensors
        .iter()
        .find(|info| !configured.is_empty() && configured.iter().all(|i| i.name != info.name))
    {
        return Err(ConfigError::MissingTensor {
            kind: "input",
            tensor: missing.name.clone(),
        });
    }
    let complete = |info: &TensorInfo| ModelInput {
        name: info.name.clone(),
        data_type: config_type(info.dtype).into(),
        format: format(&info.name),
        dims: dims_of(info, shown),
        ..ModelInput::default()
    };
    Ok(tensors.iter().map(complete).collect())
}

fn complete_outputs(
    configured: &[ModelOutput],
    tensors: &[TensorInfo],
    shown: bool,
) -> Result<(Vec<ModelOutput>, Vec<String>), ConfigError> {
    let listed: Vec<Listed<'_>> = configured
        .iter()
        .map(|output| Listed {
            kind: "output",
            name: &output.name,
            data_type: output.data_type,
            dims: &output.dims,
        })
        .collect();
    check_tensors(&listed, tensors, shown)?;
    for output in configured {
        for (field, set) in [
            ("reshape", output.reshape.is_some()),
            ("is_shape_tensor", output.is_shape_tensor),
            ("is_non_linear_format_io", output.is_non_linear_format_io),
        ] {
            if set {
                return Err(unsupported(&format!("output '{}' {field}", output.name)));
            }
        }
        let file = &output.label_filename;
        if !file.is_empty() && !is_plain_name(file) {
            let field = format!("output '{}' label_filename", output.name);
            return Err(value(&field, format!("'{file}'"), "a plain file name"));
        }
    }
    let labels = |name: &str| {
        let own = configured.iter().find(|output| output.name == name);
        own.map(|output| output.label_filename.clone())
            .unwrap_or_default()
    };
    let complete = |info: &TensorInfo| ModelOutput {
        name: info.name.clone(),
        data_type: config_type(info.dtype).into(),
        dims: dims_of(info, shown),
        label_filename: labels(&info.name),
        ..ModelOutput::default()
    };
    let outputs: Vec<ModelOutput> = tensors.iter().map(complete).collect();
    let files = outputs
        .iter()
        .map(|output| output.label_filename.clone())
        .collect();
    Ok((outputs, files))
}

fn complete_batching(
    config: &mut ModelConfig,
    max_rows: usize,
) -> Result<(Policy, bool, Waiting), ConfigError> {
    let mut policy = Policy {
        max_rows,
        merge: false,
        preferred: Vec::new(),
        delay: Duration::ZERO,
        max_requests: DEFAULT_QUEUE,
        max_bytes: QUEUE_BYTES,
    };
    let mut waiting = Waiting {
        allow_override: true,
        ..Waiting::default()
    };
    let Some(SchedulingChoice::DynamicBatching(batching)) = &mut config.scheduling_choice else {
        return Ok((policy, false, waiting));
    };
    if config.max_batch_size == 0 {
        return Err(ConfigError::Unsupported {
            field: "dynamic_batching".to_owned(),
            reason: ": max_batch_size is 0",
        });
    }
    for (field, set) in [
        (
            "dynamic_batching.priority_levels",
            batching.priority_levels != 0,
        ),
        (
            "dynamic_batching.default_priority_level",
            batching.default_priority_level != 0,
        ),
        (
            "dynamic_batching.priority_queue_policy",
            !batching.priority_queue_policy.is_empty(),
        ),
    ] {
        if set {
            return Err(unsupported(field));
        }
    }
    policy.merge = true;
    for &size in &batching.preferred_batch_size {
        match usize::try_from(size)
            .ok()
            .filter(|rows| (1..=max_rows).contains(rows))
        {
            Some(rows) => policy.preferred.push(rows),
            None => {
                let expected = format!("1 to max_batch_size ({max_rows})");
                return Err(value(
                    "dynamic_batching.preferred_batch_size",
                    size,
                    expected,
                ));
            }
        }
    }
    if batching.preferred_batch_size.is_empty() {
        batching.preferred_batch_size.push(config.max_batch_size);
    }
    policy.delay = Duration::from_micros(batching.max_queue_delay_microseconds);
    if policy.delay > Duration::from_secs(3600) {
        return Err(value(
            "dynamic_batching.max_queue_delay_microseconds",
            batching.max_queue_delay_microseconds,
            "at most one hour",
        ));
    }
    if let Some(rules) = &batching.default_queue_policy {
        waiting = queue_rules(rules)?;
        if rules.max_queue_size > 0 {
            policy.max_requests = usize::try_from(rules.max_queue_size).unwrap_or(usize::MAX);
        }
    }
    Ok((policy, batching.preserve_ordering, waiting))
}

fn queue_rules(rules: &ModelQueuePolicy) -> Result<Waiting, ConfigError> {
    let give_way = match TimeoutAction::try_from(rules.timeout_action) {
        Ok(TimeoutAction::Reject) => false,
        Ok(TimeoutAction::Delay) => true,
        Err(_) => {
            return Err(value(
                "timeout_action",
                rules.timeout_action,
                "REJECT or DELAY",
            ));
        }
    };
    let micros = rules.default_timeout_microseconds;
    Ok(Waiting {
        default: (micros > 0).then(|| Duration::from_micros(micros)),
        give_way,
        allow_override: rules.allow_timeout_override,
    })
}

fn check_warmups(
    warmups: &[ModelWarmup],
    signature: &Signature,
    max_rows: usize,
) -> Result<(), ConfigError> {
    for warmup in warmups {
        let rows = usize::try_from(warmup.batch_size.max(1)).unwrap_or(usize::MAX);
        if rows > max_rows {
            let expected = format!("at most {max_rows}");
            return Err(value(
                "model_warmup.batch_size",
                warmup.batch_size,
                expected,
            ));
        }
        if warmup.count > 1000 {
            return Err(value("model_warmup.count", warmup.count, "at most 1000"));
        }
        let listed: Vec<Listed<'_>> = warmup
            .inputs
            .iter()
            .map(|(name, input)| Listed {
                kind: "model_warmup input",
                name,
                data_type: input.data_type,
                dims: &input.dims,
            })
            .collect();
        check_tensors(&listed, &signature.inputs, false)?;
        for info in &signature.inputs {
            if !warmup.inputs.contains_key(&info.name) {
                return Err(ConfigError::MissingTensor {
                    kind: "model_warmup input",
                    tensor: info.name.clone(),
                });
            }
        }
    }
    Ok(())
}

pub(crate) mod placement;
#[cfg(test)]
mod tests;
