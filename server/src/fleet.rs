//! Every device that computes, and the models on them.
//!
//! A model is planned once and compiled for a device when the first of its instances is placed there; on
//! devices where it has no instance it takes no memory. What becomes of it when its device is lost is
//! [`Backends`]' affair, one for each device.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use requant_numerics::ModelPrecision;
use requant_runtime::{BackendInfo, ExecError, Footprint, Instance, Plan, Signature};

use crate::backends::Backends;
use crate::engine::{EngineError, Network, Place};

/// The host, and the devices by ordinal.
pub(crate) struct Fleet {
    host: Arc<Backends>,
    devices: BTreeMap<usize, Arc<Backends>>,
}

impl Fleet {
    pub(crate) fn new(host: Backends, devices: BTreeMap<usize, Backends>) -> Self {
        let shared = devices
            .into_iter()
            .map(|(ordinal, device)| (ordinal, Arc::new(device)));
        Fleet {
            host: Arc::new(host),
            devices: shared.collect(),
        }
    }

    /// The first of those that compute models whose configuration does not say.
    pub(crate) fn info(&self) -> BackendInfo {
        let first = self.devices.first_key_value();
        first.map_or_else(|| self.host.info(), |(_, device)| device.info())
    }

    /// Everything that computes models whose configuration does not say.
    pub(crate) fn infos(&self) -> Vec<BackendInfo> {
        if self.devices.is_empty() {
            return vec![self.host.info()];
        }
        self.devices.values().map(|device| device.info()).collect()
    }

    /// Ordinals of the devices.
    pub(crate) fn gpus(&self) -> Vec<usize> {
        self.devices.keys().copied().collect()
    }

    /// A model, compiled nowhere yet where there is a choice of places.
    pub(crate) fn network(self: &Arc<Self>, plan: Plan) -> Result<Arc<dyn Network>, EngineError> {
        if self.devices.is_empty() {
            // Its only place; a compiled model keeps no weights besides the packed ones.
            return self.host.network(Arc::new(plan));
        }
        Ok(Arc::new(Placed {
            plan: Arc::new(plan),
            compiled: Mutex::default(),
            fleet: Arc::clone(self),
        }))
    }

    fn backends(&self, place: Place) -> Result<&Arc<Backends>, EngineError> {
        match place {
            Place::Host => Ok(&self.host),
            Place::Device(ordinal) => {
                let device = self.devices.get(&ordinal);
                device.ok_or(EngineError::NoPlace { ordinal })
            }
        }
    }
}

/// A model, and what it was compiled to at its places.
struct Placed {
    plan: Arc<Plan>,
    compiled: Mutex<BTreeMap<Place, Arc<dyn Network>>>,
    fleet: Arc<Fleet>,
}

impl fmt::Debug for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placed")
            .field("signature", self.signature())
            .finish_non_exhaustive()
    }
}

impl Placed {
    fn at(&self, place: Place) -> Result<Arc<dyn Network>, EngineError> {
        // Held while compiling, so that it happens once; instances of a model are made one after the other.
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = compiled.get(&place) {
            return Ok(Arc::clone(network));
        }
        let network = self
            .fleet
            .backends(place)?
            .network(Arc::clone(&self.plan))?;
        compiled.insert(place, Arc::clone(&network));
        Ok(network)
    }
}

impl Network for Placed {
    fn signature(&self) -> &Signature {
        self.plan.signature()
    }

    fn precision(&self) -> ModelPrecision {
        self.plan.precision()
    }

    fn prepare(&self, place: Place) -> Result<Place, EngineError> {
        self.at(place)?.prepare(place)
    }

    /// Of all places together the weights, of one instance the activations: the most that any place needs.
    fn footprint(&self, max_batch: usize) -> Footprint {
        let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let each = compiled
            .values()
            .map(|network| network.footprint(max_batch));
        each.fold(Footprint::default(), |all, one| Footprint {
            weight_bytes: all.weight_bytes + one.weight_bytes,
            arena_bytes: all.arena_bytes.max(one.arena_bytes),
        })
    }

    fn instance(&self, place: Place, max_batch: usize) -> Result<Box<dyn Instance>, ExecError> {
        let network = self
            .at(place)
            .map_err(|error| ExecError::Place(error.to_string()))?;
        network.instance(place, max_batch)
    }
}
