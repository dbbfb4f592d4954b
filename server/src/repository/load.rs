//! Loading a model aside: nothing here touches what is served. All versions that the policy wants
//! are read, compiled, checked against the configuration and warmed up; one that fails fails the
//! load, and whatever was built before it is dropped.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use requant_proto::inference::ModelConfig;

use super::{
    Completed, LoadError,
    complete::{check_fields, complete, placement, select_versions},
    config::parse_text,
    files::{Fingerprint, ModelFolder},
    parameters, warmup,
};
use crate::{
    batcher::Batcher,
    engine::{Engine, Network, Place, Signature},
    metrics::ModelMeters,
    statistics::Statistics,
};

/// Most bytes of activations of one version, over all its instances.
const MEMORY_LIMIT: usize = 4 << 30;

/// The name of the model that is built into the server.
pub(crate) const BUILT_IN: &str = "fashion";

/// One version of a model, ready to serve.
#[derive(Debug)]
pub struct Version {
    /// The model's name.
    pub model: String,
    /// The version's number.
    pub number: u64,
    /// The compiled network.
    pub network: Arc<dyn Network>,
    /// Its line and compute threads.
    pub batcher: Batcher,
    /// Its configuration and what follows from it.
    pub completed: Completed,
    /// For each output, the names of its classes, or nothing.
    pub labels: Vec<Vec<String>>,
    /// Its counters for ModelStatistics.
    pub statistics: Arc<Statistics>,
    /// Its Prometheus metrics.
    pub meters: Arc<ModelMeters>,
}

/// All versions of a model that are served together.
#[derive(Debug)]
pub struct Loaded {
    /// By number; never empty.
    pub versions: BTreeMap<u64, Arc<Version>>,
}

impl Version {
    /// What the network takes and gives.
    pub fn signature(&self) -> &Signature {
        self.network.signature()
    }
}

impl Loaded {
    /// Whether every version has all its instances.
    pub fn is_ready(&self) -> bool {
        let mut versions = self.versions.values();
        versions.all(|version| version.batcher.readiness().is_ready())
    }

    /// The version that callers get who name none.
    pub fn newest(&self) -> Option<&Arc<Version>> {
        self.versions.last_key_value().map(|(_, version)| version)
    }
}

/// What a model's folder looks like now; empty when it cannot be read, which the load then reports.
pub(crate) fn fingerprint(repository: &Path, name: &str) -> Fingerprint {
    ModelFolder::open(repository, name)
        .and_then(|folder| folder.fingerprint())
        .unwrap_or_default()
}

/// Loads a model from the repository; `given` replaces the configuration file.
pub(crate) fn from_folder(
    engine: &dyn Engine,
    repository: &Path,
    name: &str,
    given: Option<ModelConfig>,
) -> Result<Loaded, LoadError> {
    let folder = ModelFolder::open(repository, name)?;
    let written = match given {
        Some(config) => Some(config),
        None => folder.config()?.map(|text| parse_text(&text)).transpose()?,
    };
    let configured = written.is_some();
    let config = written.unwrap_or_default();
    check_fields(&config, name)?;
    let reading = parameters::reading(&config)?;
    let found = folder.versions()?;
    let mut versions = BTreeMap::new();
    for number in select_versions(&config, &found)? {
        let Some(path) = found.get(&number) else {
            continue;
        };
        let path = folder.resolve(path)?;
        let file = folder.model_file(&path, &config.default_model_filename)?;
        let network = engine
            .load(&file, &reading)
            .map_err(|source| LoadError::Engine {
                version: number,
                source,
            })?;
        let completed = complete(
            name,
            config.clone(),
            network.signature(),
            configured,
            &engine.gpus(),
        )?;
        let version = build(name, number, network, completed, Some(&folder))?;
        versions.insert(number, Arc::new(version));
    }
    Ok(Loaded { versions })
}

/// Loads the built-in model, with `given` in place of no configuration.
pub(crate) fn built_in(
    engine: &dyn Engine,
    given: Option<ModelConfig>,
) -> Result<Loaded, LoadError> {
    let number = 1;
    let network = engine.built_in().map_err(|source| LoadError::Engine {
        version: number,
        source,
    })?;
    let configured = given.is_some();
    let config = given.unwrap_or_default();
    let completed = complete(
        BUILT_IN,
        config,
        network.signature(),
        configured,
        &engine.gpus(),
    )?;
    let version = build(BUILT_IN, number, network, completed, None)?;
    Ok(Loaded {
        versions: BTreeMap::from([(number, Arc::new(version))]),
    })
}

fn build(
    name: &str,
    number: u64,
    network: Arc<dyn Network>,
    mut completed: Completed,
    folder: Option<&ModelFolder>,
) -> Result<Version, LoadError> {
    let mut labels = Vec::new();
    for file in &completed.label_files {
        labels.push(match (file.as_str(), folder) {
            ("", _) | (_, None) => Vec::new(),
            (file, Some(folder)) => {
                let text = folder.small_file(file)?;
                let lines = String::from_utf8_lossy(&text);
                lines.lines().map(|line| line.trim().to_owned()).collect()
            }
        });
    }
    let samples = warmup::samples(&completed.config.model_warmup, network.signature(), folder)?;
    let engine_fault = |source| LoadError::Engine {
        version: number,
        source,
    };
    let mut fallen = Vec::new();
    for &place in &completed.places {
        let there = network.prepare(place).map_err(engine_fault)?;
        if let (Place::Device(ordinal), Place::Host) = (place, there) {
            fallen.push(ordinal);
        }
    }
    placement::fall(&mut completed.config.instance_group, &fallen);
    let count = completed.places.len();
    let one = network.footprint(completed.policy.max_rows).arena_bytes;
    let bytes = one.saturating_mul(count);
    if bytes > MEMORY_LIMIT {
        return Err(LoadError::Memory {
            version: number,
            instances: count,
            bytes,
            limit: MEMORY_LIMIT,
        });
    }
    let mut instances = Vec::new();
    for &place in &completed.places {
        let instance = network.instance(place, completed.policy.max_rows);
        let mut instance = instance.map_err(|fault| engine_fault(fault.into()))?;
        warmup::run(instance.as_mut(), &samples, number)?;
        instances.push((place, instance));
    }
    let precision = network.precision().label();
    let meters = ModelMeters::new(name, &number.to_string(), precision);
    let statistics = Arc::new(Statistics::default());
    let batcher = Batcher::start(
        name,
        Arc::clone(&network),
        instances,
        completed.policy.clone(),
        completed.preserve_ordering,
        Arc::clone(&meters),
        Arc::clone(&statistics),
    )
    .map_err(|source| LoadError::Threads { source })?;
    Ok(Version {
        model: name.to_owned(),
        number,
        network,
        batcher,
        completed,
        labels,
        statistics,
        meters,
    })
}
