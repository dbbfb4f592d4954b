//! Bounds on what a model file may ask for, checked before anything is allocated from its numbers.

/// Most dimensions of a value or tensor.
pub const MAX_RANK: usize = 8;
/// Most elements of one value (per sample) or tensor.
pub const MAX_ELEMENTS: usize = 1 << 32;
/// Most nodes of a graph; planning takes time that grows with their square.
pub const MAX_NODES: usize = 1 << 14;
/// Most values of a graph.
pub const MAX_VALUES: usize = 1 << 17;
/// Most inputs, and most outputs, of a graph.
pub const MAX_PORTS: usize = 1 << 10;
/// Most constant tensors of a graph.
pub const MAX_TENSORS: usize = 1 << 18;
/// Longest name in bytes.
pub const MAX_NAME: usize = 1024;
/// Largest kernel extent, stride, dilation or padding.
pub const MAX_WINDOW: usize = 1 << 15;
/// Most multiply-accumulates of one node per sample.
pub const MAX_MACS: u64 = 1 << 44;
/// Largest artefact file in bytes.
pub const MAX_FILE: u64 = 1 << 33;
/// Smallest and largest scale of a value.
pub const SCALE_RANGE: core::ops::RangeInclusive<f32> = 9.094947e-13..=1.0995116e12;

/// Most elements that the nodes of a graph read from its tensors, given the tensors' elements: a tensor
/// may serve several nodes, but a small file must not ask for the work and memory of a large one.
pub const fn max_reads(elements: usize) -> usize {
    (1usize << 24).saturating_add(elements.saturating_mul(16))
}

/// The number of elements of `dims`, or `None` above [`MAX_ELEMENTS`] or [`MAX_RANK`] or where a
/// dimension is 0.
pub fn elements(dims: &[usize]) -> Option<usize> {
    if dims.len() > MAX_RANK || dims.contains(&0) {
        return None;
    }
    let mut count = 1usize;
    for &dim in dims {
        count = count.checked_mul(dim)?;
        if count > MAX_ELEMENTS {
            return None;
        }
    }
    Some(count)
}
