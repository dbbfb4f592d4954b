//! Which backend computes a model, now and after its device was lost.
//!
//! A GPU that faults takes everything with it that was compiled for it. The first model that notices
//! has the device reset and opened anew, once for each fault; where that fails, or does not last, and where
//! a backend that was not asked for by name refuses a model or answers it with other bytes than the CPU, the
//! CPU computes.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use requant_numerics::ModelPrecision;
use requant_runtime::{
    Backend, BackendInfo, CompileError, CudaBackend, ExecError, Executable, Footprint, Instance,
    Plan, Signature, verify,
};

use crate::engine::{EngineError, Network, Place};
use crate::metrics;

/// A device that is lost again within this time of being opened anew is given up.
const LASTING: Duration = Duration::from_secs(600);

/// The device, if there is one still.
struct Device {
    cuda: Option<CudaBackend>,
    /// How often it was lost.
    losses: u64,
    /// When it was last opened anew.
    reopened: Option<Instant>,
}

/// A device with another backend behind it, or the latter alone.
pub(crate) struct Backends {
    device: Mutex<Device>,
    behind: Box<dyn Backend>,
    /// Whether models that the device refuses go to the backend behind it.
    yields: bool,
}

/// A compiled model, the losses of the device when it was, and whether it is on the device.
type Made = (Arc<dyn Executable>, u64, bool);

impl Backends {
    /// No device.
    pub(crate) fn host(backend: Box<dyn Backend>) -> Self {
        Backends {
            device: Mutex::new(Device {
                cuda: None,
                losses: 0,
                reopened: None,
            }),
            behind: backend,
            yields: true,
        }
    }

    /// A device, with a backend for when it is lost and, with `yields`, for models that it refuses.
    pub(crate) fn device(cuda: CudaBackend, behind: Box<dyn Backend>, yields: bool) -> Self {
        Backends {
            device: Mutex::new(Device {
                cuda: Some(cuda),
                losses: 0,
                reopened: None,
            }),
            behind,
            yields,
        }
    }

    /// What computes.
    pub(crate) fn info(&self) -> BackendInfo {
        let device = self.lock();
        match &device.cuda {
            Some(cuda) => cuda.info(),
            None => self.behind.info(),
        }
    }

    /// Compiles a plan for whatever computes now.
    pub(crate) fn network(
        self: &Arc<Self>,
        plan: Arc<Plan>,
    ) -> Result<Arc<dyn Network>, EngineError> {
        let made = self.compile(&plan).map_err(EngineError::refused)?;
        Ok(Arc::new(Compiled {
            // Compiled plans keep no weights; only a device that may be lost makes them necessary.
            plan: if self.lock().cuda.is_some() {
                plan
            } else {
                Arc::clone(made.0.plan())
            },
            made: RwLock::new(made),
            backends: Arc::clone(self),
        }))
    }

    fn lock(&self) -> impl std::ops::DerefMut<Target = Device> + '_ {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compile(&self, plan: &Arc<Plan>) -> Result<Made, CompileError> {
        let (cuda, losses) = {
            let device = self.lock();
            (device.cuda.clone(), device.losses)
        };
        let refused = match &cuda {
            None => None,
            Some(cuda) => match cuda.compile(Arc::clone(plan)) {
                Ok(executable) => {
                    let (executable, on_device) = self.trusted(executable, plan)?;
                    return Ok((executable, losses, on_device));
                }
                Err(error) if error.is_device_lost() => {
                    self.restore(losses);
                    let again = self.lock().cuda.clone();
                    let again = again.map(|cuda| cuda.compile(Arc::clone(plan)));
                    if let Some(Ok(executable)) = again {
                        let (executable, on_device) = self.trusted(executable, plan)?;
                        return Ok((executable, self.lock().losses, on_device));
                    }
                    None
                }
                Err(error) => Some(error),
            },
        };
        match refused {
            Some(error) if !self.yields => return Err(error),
            Some(error) => {
                tracing::warn!(model = plan.name(), %error, "not on the device: the CPU computes");
            }
            None => {}
        }
        let executable = self.behind.compile(Arc::clone(plan))?;
        Ok((executable, self.lock().losses, false))
    }

    /// What the device has compiled, unless nobody asked for it by name and it answers otherwise than the
    /// backend behind it: then that one's. Also whether it is the device's.
    fn trusted(
        &self,
        executable: Arc<dyn Executable>,
        plan: &Arc<Plan>,
    ) -> Result<(Arc<dyn Executable>, bool), CompileError> {
        if !self.yields {
            return Ok((executable, true));
        }
        let behind = self.behind.compile(Arc::clone(plan))?;
        match verify::same_bytes(&*executable, &*behind) {
            Ok(true) => return Ok((executable, true)),
            Ok(false) => tracing::error!(
                model = plan.name(),
                "the device answers with other bytes than the CPU: the CPU computes"
            ),
            Err(error) => tracing::error!(
                model = plan.name(),
                %error,
                "the device fails a first run: the CPU computes"
            ),
        }
        Ok((behind, false))
    }

    /// Opens the device anew, unless somebody has since the loss number `seen`.
    fn restore(&self, seen: u64) {
        let mut device = self.lock();
        if device.losses != seen {
            return;
        }
        device.losses += 1;
        metrics::device_lost();
        let Some(lost) = device.cuda.take() else {
            return;
        };
        let name = lost.info().device;
        let lasted = device.reopened.map(|since| since.elapsed());
        if lasted.is_some_and(|lasted| lasted < LASTING) {
            tracing::error!(
                device = name,
                ?lasted,
                "device lost again: the CPU computes"
            );
            metrics::backend_replaced(&lost.info(), &self.behind.info());
            return;
        }
        match lost.reopen() {
            Ok(fresh) => {
                tracing::warn!(device = name, "device lost and opened anew");
                device.cuda = Some(fresh);
                device.reopened = Some(Instant::now());
            }
            Err(error) => {
                tracing::error!(device = name, %error, "device lost for good: the CPU computes");
                metrics::backend_replaced(&lost.info(), &self.behind.info());
            }
        }
    }
}

/// A model on the backend that computes it now.
struct Compiled {
    plan: Arc<Plan>,
    made: RwLock<Made>,
    backends: Arc<Backends>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled")
            .field("signature", self.signature())
            .finish_non_exhaustive()
    }
}

impl Compiled {
    fn made(&self) -> Made {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&made.0), made.1, made.2)
    }

    /// Compiles again after the loss of what `seen` was compiled for; one of many instances does.
    fn recompile(&self, seen: u64) -> Result<(), ExecError> {
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        if made.1 == seen {
            self.backends.restore(seen);
            let again = self.backends.compile(&self.plan);
            *made = again.map_err(|error| ExecError::Restore(Box::new(error)))?;
        }
        Ok(())
    }
}

impl Network for Compiled {
    fn signature(&self) -> &Signature {
        self.plan.signature()
    }

    fn precision(&self) -> ModelPrecision {
        self.plan.precision()
    }

    fn prepare(&self, place: Place) -> Result<Place, EngineError> {
        Ok(if self.made().2 { place } else { Place::Host })
    }

    fn footprint(&self, max_batch: usize) -> Footprint {
        self.made().0.footprint(max_batch)
    }

    fn instance(&self, _place: Place, max_batch: usize) -> Result<Box<dyn Instance>, ExecError> {
        // Ends: a device that does not last is given up.
        loop {
            let (executable, losses, _) = self.made();
            match executable.instance(max_batch) {
                Err(error) if error.is_device_lost() => self.recompile(losses)?,
                other => return other,
            }
        }
    }
}
