//! What all contexts of one device in this process share: who may reset it, and the bytes held on it.
//!
//! The driver has one primary context for a device and process. A reset takes away what anybody holds in
//! it and may give its addresses to others, so calls enter a gate together and a reset enters it alone: it
//! waits for the calls under way, and later ones see that their context is of before the reset.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// A device of this process.
#[derive(Debug)]
pub(crate) struct Device {
    label: String,
    /// How often it was reset.
    resets: RwLock<u64>,
    /// Bytes of its memory that are held.
    held: AtomicUsize,
    taking: Mutex<()>,
}

/// The right to call the driver in a context that is not reset meanwhile. Nobody may enter twice at a time:
/// a reset that waits in between would let neither end.
#[derive(Debug)]
pub(crate) struct Entered<'a>(RwLockReadGuard<'a, u64>);

impl Entered<'_> {
    /// How often the device was reset before.
    pub(crate) fn resets(&self) -> u64 {
        *self.0
    }
}

fn all() -> MutexGuard<'static, BTreeMap<usize, Arc<Device>>> {
    static ALL: Mutex<BTreeMap<usize, Arc<Device>>> = Mutex::new(BTreeMap::new());
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of device memory that this process holds, for each device it has opened, by the device's name as
/// `cuda:ORDINAL (NAME)`. What the driver takes for itself is not among them.
pub fn memory_held() -> Vec<(String, usize)> {
    let held = |device: &Arc<Device>| (device.label.clone(), device.held.load(Ordering::Relaxed));
    all().values().map(held).collect()
}

impl Device {
    /// The device, as its other contexts know it.
    pub(crate) fn of(ordinal: usize, name: &str) -> Arc<Self> {
        let device = || {
            Arc::new(Device {
                label: label(ordinal, name),
                resets: RwLock::new(0),
                held: AtomicUsize::new(0),
                taking: Mutex::new(()),
            })
        };
        Arc::clone(all().entry(ordinal).or_insert_with(device))
    }

    /// Enters, unless and until a reset is under way.
    pub(crate) fn enter(&self) -> Entered<'_> {
        Entered(self.resets.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `reset` with nobody in a call, where the device was reset `seen` times before; otherwise
    /// somebody has done it since.
    pub(crate) fn reset<E>(
        &self,
        seen: u64,
        reset: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut resets = self.resets.write().unwrap_or_else(PoisonError::into_inner);
        if *resets != seen {
            return Ok(());
        }
        *resets += 1;
        self.held.store(0, Ordering::Relaxed);
        reset()
    }

    /// Runs `take`, which takes `bytes` of memory, with nobody else taking any.
    pub(crate) fn take<E>(
        &self,
        bytes: usize,
        take: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let _alone = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        take()?;
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that `bytes` were given back.
    pub(crate) fn gave_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// How a device is called in metrics and logs.
pub(crate) fn label(ordinal: usize, name: &str) -> String {
    format!("cuda:{ordinal} ({name})")
}
