//! Operations: parameters in, packed weights on the device, launches out.
//!
//! An operation is prepared once for a device and launched for any number of samples. Addresses are the
//! device's; nothing here knows of plans or arenas.

pub mod bits;
pub mod conv;
pub mod edges;
pub mod maps;
pub mod nibbles;
pub mod norms;
pub mod operands;
pub(crate) mod persistent;
pub mod pools;
pub mod product;
mod way;

pub use way::{UnknownWay, Way, bucket};

use crate::OpError;

/// Where padding and strides put a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Extent (height, width).
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub strides: [usize; 2],
    /// Border: top, left, bottom, right.
    pub pads: [usize; 4],
    /// Distance between the elements of a window.
    pub dilations: [usize; 2],
}

/// A number as kernels hold it.
pub(crate) fn int(what: &'static str, value: usize) -> Result<i32, OpError> {
    i32::try_from(value).map_err(|_| OpError::TooLarge {
        what,
        value,
        most: i32::MAX as usize,
    })
}

pub(crate) fn expect(what: &'static str, got: usize, expected: usize) -> Result<(), OpError> {
    if got == expected {
        Ok(())
    } else {
        Err(OpError::Length {
            what,
            got,
            expected,
        })
    }
}
