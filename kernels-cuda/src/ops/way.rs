//! A way to compute a product: which kernel, and among how many blocks the depth of each tile is split.
//!
//! Every way that serves gives the same bytes, so which is taken is a matter of time alone: a rule that
//! knows the number of multiprocessors decides, a table of measurements where there is one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::kernel::Kernel;

/// A kernel and how the depth of its tiles is split. Written `product_u8_64_rhu/4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks that share a tile; 1 where it is not split.
    pub splits: usize,
}

/// A text that names no way.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' is not the name of a kernel, a slash and a number of blocks")]
pub struct UnknownWay(pub String);

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kernel.name(), self.splits)
    }
}

impl FromStr for Way {
    type Err = UnknownWay;

    fn from_str(text: &str) -> Result<Self, UnknownWay> {
        let way = || {
            let (name, splits) = text.split_once('/')?;
            let kernel = Kernel::ALL.iter().find(|kernel| kernel.name() == name)?;
            let splits = splits.parse().ok().filter(|&splits| splits > 0)?;
            Some(Way {
                kernel: *kernel,
                splits,
            })
        };
        way().ok_or_else(|| UnknownWay(text.to_owned()))
    }
}

/// The bucket of a number of samples: the numbers up to a power of two and above half of it are computed
/// by the same way.
pub fn bucket(samples: usize) -> usize {
    samples.max(1).next_power_of_two()
}

/// Ways that were found to be faster than the rule's, by the bucket of the samples.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preferred(BTreeMap<usize, Way>);

impl Preferred {
    pub(crate) fn set(&mut self, samples: usize, way: Way) {
        self.0.insert(bucket(samples), way);
    }

    pub(crate) fn get(&self, samples: usize) -> Option<Way> {
        self.0.get(&bucket(samples)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_written_and_read() {
        for &kernel in Kernel::ALL {
            for splits in [1, 2, 31] {
                let way = Way { kernel, splits };
                assert_eq!(way.to_string().parse(), Ok(way));
            }
        }
        for text in [
            "",
            "product_u8_64_rhu",
            "product_u8_64_rhu/0",
            "product/1",
            "fill/-1",
            "fill/1/1",
        ] {
            assert_eq!(text.parse::<Way>(), Err(UnknownWay(text.to_owned())));
        }
    }

    #[test]
    fn buckets_end_at_powers_of_two() {
        let buckets: Vec<usize> = (0..=9).map(bucket).collect();
        assert_eq!(buckets, [1, 1, 2, 4, 4, 8, 8, 8, 8, 16]);
    }
}
