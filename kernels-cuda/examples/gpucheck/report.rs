//! What was found: lines as it is found, one JSON document at the end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use requant_kernels_cuda::Properties;
use serde_json::{Value, json};

use super::peak;

pub(crate) struct Report {
    device: Value,
    peak_tops: f64,
    cublaslt: Value,
    checks: Vec<Value>,
    products: Vec<Value>,
    networks: Vec<Value>,
    failures: usize,
}

impl Report {
    pub(crate) fn new(properties: &Properties) -> Self {
        println!("{properties:#?}");
        let (peak_tops, peak_of) = peak::tops(properties);
        println!("peak: {peak_tops:.0} TOPS ({peak_of})\n");
        Report {
            device: json!({
                "ordinal": properties.ordinal,
                "name": properties.name,
                "capability": [properties.capability.0, properties.capability.1],
                "driver": properties.driver,
                "image": properties.image,
                "multiprocessors": properties.multiprocessors,
                "memory_bytes": properties.memory_bytes,
                "cache_bytes": properties.cache_bytes,
                "clock_khz": properties.clock_khz,
                "peak_tops": peak_tops,
                "peak_of": peak_of,
            }),
            peak_tops,
            cublaslt: Value::Null,
            checks: Vec::new(),
            products: Vec::new(),
            networks: Vec::new(),
            failures: 0,
        }
    }

    pub(crate) fn peak_tops(&self) -> f64 {
        self.peak_tops
    }

    pub(crate) fn failures(&self) -> usize {
        self.failures
    }

    /// Runs a check that panics where something differs, and says so.
    pub(crate) fn check<T>(&mut self, name: &str, check: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(result) => Some(result),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                self.failed(name, text.unwrap_or("a panic without words"));
                None
            }
        }
    }

    pub(crate) fn failed(&mut self, name: &str, reason: &str) {
        println!("FAILED: {name}: {reason}");
        self.failures += 1;
        self.checks
            .push(json!({ "check": name, "passed": false, "reason": reason }));
    }

    pub(crate) fn passed(&mut self, name: &str, count: usize) {
        self.tally(name, count, 0);
    }

    /// A row for checks of one kind, of which some may have failed.
    pub(crate) fn tally(&mut self, name: &str, passed: usize, failed: usize) {
        println!("{name}: {passed} passed, {failed} failed");
        self.checks.push(
            json!({ "check": name, "count": passed, "failed": failed, "passed": failed == 0 }),
        );
    }

    /// Runs the check of each name, and tells how many passed.
    pub(crate) fn all<'a>(
        &mut self,
        names: impl Iterator<Item = &'a str>,
        run: impl Fn(usize),
        what: &str,
    ) {
        let (mut passed, mut failed) = (0, 0);
        for (index, name) in names.enumerate() {
            match self.check(name, || run(index)) {
                Some(()) => passed += 1,
                None => failed += 1,
            }
        }
        self.tally(what, passed, failed);
    }

    /// Something that could not be checked or measured, which is no failure but should be known.
    pub(crate) fn skipped(&mut self, name: &str, reason: &str) {
        println!("{name}: skipped, {reason}");
        self.checks
            .push(json!({ "check": name, "skipped": reason }));
    }

    pub(crate) fn cublaslt(&mut self, value: Value) {
        self.cublaslt = value;
    }

    pub(crate) fn product(&mut self, value: Value) {
        self.products.push(value);
    }

    pub(crate) fn network(&mut self, value: Value) {
        self.networks.push(value);
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "device": self.device,
            "passed": self.failures == 0,
            "failures": self.failures,
            "checks": self.checks,
            "cublaslt": self.cublaslt,
            "products": self.products,
            "networks": self.networks,
        })
    }

    pub(crate) fn conclude(&self) {
        match self.failures {
            0 => println!("\npassed: every byte that was checked is right"),
            failures => println!("\nFAILED: {failures} checks"),
        }
    }
}
