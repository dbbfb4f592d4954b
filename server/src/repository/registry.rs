//! Which models there are and which of their versions is served. A lookup costs one map access and
//! one reference count; a reload builds the new versions aside, swaps one pointer, and drains the
//! old ones, so that no request meets a gap.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use dashmap::DashMap;
use requant_proto::inference::ModelConfig;
use tokio::sync::{Mutex, oneshot, watch};

use super::{
    LoadError,
    files::{self, Fingerprint, version_number},
    load::{self, BUILT_IN, Loaded, Version},
};
use crate::{engine::Engine, error::RequestError};

/// Where models come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The one model inside the program.
    BuiltIn,
    /// A folder in Triton's layout.
    Folder(PathBuf),
}

/// What is happening to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    Ready,
    Unloading,
    Unloaded,
    Failed,
}

#[derive(Debug)]
struct Slot {
    served: Option<Arc<Loaded>>,
    phase: Phase,
    reason: String,
    /// What the folder looked like at the last attempt to load.
    seen: Fingerprint,
}

/// A row of the repository index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model.
    pub name: String,
    /// The version, or empty when none is served.
    pub version: String,
    /// READY, UNAVAILABLE, LOADING or UNLOADING.
    pub state: &'static str,
    /// Why it is not READY, or what the last reload failed with.
    pub reason: String,
}

/// The models of a server.
#[derive(Debug)]
pub struct Registry {
    engine: Arc<dyn Engine>,
    source: Source,
    slots: DashMap<String, Slot>,
    /// Loads and unloads happen one after the other: they are the heavy work of the process.
    control: Mutex<()>,
    settled: AtomicBool,
    stopping: AtomicBool,
    changes: watch::Sender<u64>,
    drain_limit: Duration,
}

impl Registry {
    /// A registry with nothing loaded.
    pub fn new(engine: Arc<dyn Engine>, source: Source, drain_limit: Duration) -> Arc<Registry> {
        Arc::new(Registry {
            engine,
            source,
            slots: DashMap::new(),
            control: Mutex::new(()),
            settled: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            changes: watch::channel(0).0,
            drain_limit,
        })
    }

    /// The engine that runs the models.
    pub fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    /// Loads what is to be served from the start: `only` these, or everything there is. Failures
    /// are kept in the index and logged; the server then starts without being ready.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub async fn load_initial(self: &Arc<Self>, only: Option<&[String]>) -> Result<(), LoadError> {
        let names = match only {
            Some(names) => names.to_vec(),
            None => self.names_on_disk()?,
        };
        for name in names {
            // A model that was asked for by name and is not there must show up as a failure.
            self.slots.entry(name.clone()).or_insert_with(Slot::empty);
            let _ = self.load(&name, None).await;
        }
        self.settled.store(true, SeqCst);
        self.changed();
        Ok(())
    }

    /// The names of the models that could be loaded.
    pub(super) fn names_on_disk(&self) -> Result<Vec<String>, LoadError> {
        match &self.source {
            Source::BuiltIn => Ok(vec![BUILT_IN.to_owned()]),
            Source::Folder(folder) => files::model_names(folder).map_err(|source| LoadError::Io {
                path: folder.clone(),
                source,
            }),
        }
    }

    /// Names that have a slot.
    pub(super) fn names_known(&self) -> Vec<String> {
        self.slots.iter().map(|slot| slot.key().clone()).collect()
    }

    /// Whether a model's folder differs from what the last load saw.
    pub(super) fn is_stale(&self, name: &str) -> bool {
        let Source::Folder(folder) = &self.source else {
            return false;
        };
        let now = load::fingerprint(folder, name);
        self.slots.get(name).is_none_or(|slot| slot.seen != now)
    }

    /// Loads or reloads a model; `config` replaces its configuration file. When it fails, what was
    /// served before is served on.
    ///
    /// # Errors
    /// [`LoadError`]; the same text is in the index.
    pub async fn load(
        self: &Arc<Self>,
        name: &str,
        config: Option<ModelConfig>,
    ) -> Result<(), LoadError> {
        let (registry, name) = (Arc::clone(self), name.to_owned());
        // On a task of its own: a caller who goes away must not leave a load half done.
        let task = tokio::spawn(async move { registry.load_now(&name, config).await });
        task.await.unwrap_or(Err(LoadError::Loader))
    }

    async fn load_now(&self, name: &str, config: Option<ModelConfig>) -> Result<(), LoadError> {
        let _one_at_a_time = self.control.lock().await;
        if self.stopping() {
            return Err(LoadError::Stopping);
        }
        let exists = match &self.source {
            Source::BuiltIn => name == BUILT_IN,
            Source::Folder(folder) => files::is_plain_name(name) && folder.join(name).is_dir(),
        };
        if !exists {
            let error = match files::is_plain_name(name) {
                true => LoadError::Absent {
                    name: name.to_owned(),
                },
                false => LoadError::Name {
                    name: name.to_owned(),
                },
            };
            self.fail(name, &error);
            return Err(error);
        }
        self.slots
            .entry(name.to_owned())
            .or_insert_with(Slot::empty)
            .phase = Phase::Loading;
        self.changed();

        let (engine, source, own_name) = (
            Arc::clone(&self.engine),
            self.source.clone(),
            name.to_owned(),
        );
        let result = on_loader_thread(move || match &source {
            Source::BuiltIn => (
                Fingerprint::default(),
                load::built_in(engine.as_ref(), config),
            ),
            Source::Folder(folder) => {
                // Looked at before reading, so that a change meanwhile is seen as one.
                let seen = load::fingerprint(folder, &own_name);
                let loaded = load::from_folder(engine.as_ref(), folder, &own_name, config);
                (seen, loaded)
            }
        })
        .await;
        let (seen, loaded) = match result {
            Some((seen, loaded)) => (Some(seen), loaded),
            None => (None, Err(LoadError::Loader)),
        };
        if let (Some(seen), Some(mut slot)) = (seen, self.slots.get_mut(name)) {
            slot.seen = seen;
        }
        match loaded {
            Ok(loaded) => {
                self.swap(name, loaded).await;
                Ok(())
            }
            Err(error) => {
                self.fail(name, &error);
                Err(error)
            }
        }
    }

    async fn swap(&self, name: &str, loaded: Loaded) {
        let versions: Vec<u64> = loaded.versions.keys().copied().collect();
        let loaded = Arc::new(loaded);
        let mut slot = self
            .slots
            .entry(name.to_owned())
            .or_insert_with(Slot::empty);
        let old = slot.served.replace(Arc::clone(&loaded));
        slot.phase = Phase::Ready;
        slot.reason.clear();
        drop(slot);
        // In this order: both may have a version of the same number, and so the same metric.
        for version in old.iter().flat_map(|old| old.versions.values()) {
            let replaced = versions.contains(&version.number);
            version.batcher.readiness().end(replaced);
        }
        for version in loaded.versions.values() {
            version.batcher.readiness().begin(self.changes.clone());
        }
        self.changed();
        tracing::info!(model = name, ?versions, "model loaded");
        if let Some(old) = old {
            self.retire(&old).await;
        }
    }

    fn fail(&self, name: &str, error: &LoadError) {
        tracing::error!(model = name, %error, "model not loaded");
        if let Some(mut slot) = self.slots.get_mut(name) {
            slot.phase = match slot.served {
                Some(_) => Phase::Ready,
                None => Phase::Failed,
            };
            slot.reason = match slot.served {
                Some(_) => format!("served as loaded before, the last load failed: {error}"),
                None => error.to_string(),
            };
        }
        self.changed();
    }

    /// Stops serving a model and waits until its accepted requests are answered. Unknown names are
    /// fine.
    pub async fn unload(self: &Arc<Self>, name: &str) {
        let (registry, name) = (Arc::clone(self), name.to_owned());
        let task = tokio::spawn(async move { registry.unload_now(&name).await });
        // The task has nothing that could panic; if it did, the model is not served any more.
        let _ = task.await;
    }

    async fn unload_now(&self, name: &str) {
        let _one_at_a_time = self.control.lock().await;
        let Some(mut slot) = self.slots.get_mut(name) else {
            return;
        };
        let old = slot.served.take();
        slot.phase = Phase::Unloading;
        slot.reason.clear();
        drop(slot);
        self.changed();
        if let Some(old) = old {
            for version in old.versions.values() {
                version.batcher.readiness().end(false);
            }
            self.retire(&old).await;
            tracing::info!(model = name, "model unloaded");
        }
        if let Some(mut slot) = self.slots.get_mut(name) {
            slot.phase = Phase::Unloaded;
            "unloaded".clone_into(&mut slot.reason);
        }
        self.changed();
    }

    /// Forgets a model whose folder is gone.
    pub(super) async fn forget(self: &Arc<Self>, name: &str) {
        self.unload(name).await;
        self.slots.remove(name);
        self.changed();
    }

    /// Lets the accepted requests of versions finish that are no longer found by lookups.
    async fn retire(&self, old: &Loaded) {
        for version in old.versions.values() {
            version.batcher.close();
        }
        for version in old.versions.values() {
            let drained = tokio::time::timeout(self.drain_limit, version.batcher.ended()).await;
            if drained.is_err() {
                tracing::warn!(
                    model = version.model,
                    version = version.number,
                    "old version still computes after the drain timeout"
                );
            }
        }
    }

    /// Finds a version; an empty `version` means the highest.
    ///
    /// # Errors
    /// Unknown model or version, malformed version, or a model between states.
    pub fn find(&self, model: &str, version: &str) -> Result<Arc<Version>, RequestError> {
        let name = || model.to_owned();
        let number = match version {
            "" => None,
            text => match version_number(text) {
                Some(number) => Some(number),
                None => {
                    return Err(RequestError::MalformedVersion {
                        model: name(),
                        version: text.to_owned(),
                    });
                }
            },
        };
        let Some(slot) = self.slots.get(model) else {
            return Err(RequestError::UnknownModel { model: name() });
        };
        let Some(served) = slot.served.clone() else {
            return Err(match slot.phase {
                Phase::Loading | Phase::Unloading => RequestError::NotReady { model: name() },
                Phase::Ready | Phase::Unloaded | Phase::Failed => {
                    RequestError::NotLoaded { model: name() }
                }
            });
        };
        drop(slot);
        match number {
            None => served
                .newest()
                .cloned()
                .ok_or(RequestError::NotLoaded { model: name() }),
            Some(number) => served.versions.get(&number).cloned().ok_or_else(|| {
                let all: Vec<String> = served.versions.keys().map(u64::to_string).collect();
                RequestError::UnknownVersion {
                    model: name(),
                    version: number,
                    served: all.join(", "),
                }
            }),
        }
    }

    /// All versions of a model that are served, or those of every model when `model` is empty.
    ///
    /// # Errors
    /// As [`Registry::find`].
    pub fn served(&self, model: &str) -> Result<Vec<Arc<Version>>, RequestError> {
        if model.is_empty() {
            let mut all: Vec<Arc<Version>> = Vec::new();
            for slot in &self.slots {
                all.extend(
                    slot.served
                        .iter()
                        .flat_map(|l| l.versions.values().cloned()),
                );
            }
            all.sort_by(|a, b| (&a.model, a.number).cmp(&(&b.model, b.number)));
            return Ok(all);
        }
        self.find(model, "")?;
        let slot = self.slots.get(model);
        let served = slot.and_then(|slot| slot.served.clone());
        Ok(served
            .iter()
            .flat_map(|loaded| loaded.versions.values().cloned())
            .collect())
    }

    /// The repository index, sorted by name and version.
    pub fn index(&self) -> Vec<IndexEntry> {
        let mut rows = Vec::new();
        let on_disk = self.names_on_disk().unwrap_or_default();
        for slot in &self.slots {
            // A model that was unloaded and whose folder is gone is no part of the repository.
            if slot.phase == Phase::Unloaded && !on_disk.contains(slot.key()) {
                continue;
            }
            let state = match slot.phase {
                Phase::Loading => "LOADING",
                Phase::Ready => "READY",
                Phase::Unloading => "UNLOADING",
                Phase::Unloaded | Phase::Failed => "UNAVAILABLE",
            };
            let row = |version: String, state: &'static str| IndexEntry {
                name: slot.key().clone(),
                version,
                state,
                reason: slot.reason.clone(),
            };
            match &slot.served {
                Some(loaded) => {
                    rows.extend(loaded.versions.keys().map(|v| row(v.to_string(), "READY")));
                }
                None => rows.push(row(String::new(), state)),
            }
        }
        for name in on_disk {
            if !self.slots.contains_key(&name) {
                rows.push(IndexEntry {
                    name,
                    version: String::new(),
                    state: "UNAVAILABLE",
                    reason: "not loaded".to_owned(),
                });
            }
        }
        let key = |row: &IndexEntry| (row.name.clone(), version_number(&row.version));
        rows.sort_by_cached_key(key);
        rows
    }

    /// Whether everything that should be served is, with all its instances, and the server is not stopping.
    pub fn ready(&self) -> bool {
        self.settled.load(SeqCst)
            && !self.stopping()
            && self.slots.iter().all(|slot| match &slot.served {
                Some(loaded) => loaded.is_ready(),
                None => slot.phase == Phase::Unloaded,
            })
    }

    /// Whether a version of a model can be asked now.
    pub fn model_ready(&self, model: &str, version: &str) -> bool {
        let found = self.find(model, version);
        !self.stopping() && found.is_ok_and(|version| version.batcher.readiness().is_ready())
    }

    /// From now on the server is not ready; what is loaded goes on answering.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.changed();
    }

    /// Whether [`Registry::stop`] was called.
    pub fn stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Closes every line and waits until what is in them is answered.
    pub async fn close(&self) {
        let all = self.served("").unwrap_or_default();
        for version in &all {
            version.batcher.close();
        }
        for version in &all {
            version.batcher.ended().await;
        }
    }

    /// Tells when readiness may have changed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The folder that models come from, if they do.
    pub fn folder(&self) -> Option<&Path> {
        match &self.source {
            Source::BuiltIn => None,
            Source::Folder(folder) => Some(folder),
        }
    }
}

impl Slot {
    fn empty() -> Slot {
        Slot {
            served: None,
            phase: Phase::Loading,
            reason: String::new(),
            seen: Fingerprint::default(),
        }
    }
}

/// Runs heavy work on a thread of its own, away from the I/O threads; `None` when it panicked.
async fn on_loader_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("loader".to_owned())
        .spawn(move || {
            let _ = sender.send(work());
        });
    match spawned {
        Ok(_) => receiver.await.ok(),
        Err(error) => {
            tracing::error!(%error, "no thread to load with");
            None
        }
    }
}
