//! Names for an imported graph: what a file says, made fit to stand in a graph and given out once.

use std::collections::{HashMap, HashSet};

use requant_model::limits;

/// The names given out so far.
#[derive(Debug)]
pub(crate) struct Names {
    taken: HashSet<String>,
    counts: HashMap<String, u64>,
}

impl Names {
    /// `reserved` names are given out to nobody.
    pub(crate) fn new(reserved: impl Iterator<Item = String>) -> Self {
        Names {
            taken: reserved.collect(),
            counts: HashMap::new(),
        }
    }

    /// A name that was not given out yet, made from `base`.
    pub(crate) fn unique(&mut self, base: &str) -> String {
        let base = clean(base);
        if self.taken.insert(base.clone()) {
            return base;
        }
        // Counted on from the last name of this base, so that many alike stay cheap.
        let mut count = self.counts.get(&base).copied().unwrap_or(1);
        loop {
            count += 1;
            let name = format!("{base}.{count}");
            if self.taken.insert(name.clone()) {
                self.counts.insert(base, count);
                return name;
            }
        }
    }
}

/// A name that may stand in a graph.
pub(crate) fn clean(name: &str) -> String {
    // Room for suffixes below the limit on names.
    const LONGEST: usize = limits::MAX_NAME - 128;
    let mut out = String::new();
    for c in name.chars() {
        if out.len() + c.len_utf8() > LONGEST {
            break;
        }
        out.push(if c.is_control() { '_' } else { c });
    }
    if out.is_empty() {
        "unnamed".to_owned()
    } else {
        out
    }
}
