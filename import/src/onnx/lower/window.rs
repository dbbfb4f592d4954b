//! Tensors `[N, C, L]` or `[N, C, H, W]` as the graph's `[N, H, W, C]`.

use requant_model::ValueId;
use requant_model::ops::Window;

use super::Lowering;
use super::value::{Lowered, Placed};
use crate::onnx::error::Reason;

impl Lowering<'_> {
    /// A tensor `[N, C, L]` or `[N, C, H, W]` as `[N, H, W, C]`.
    pub(super) fn image(&mut self, source: &Placed, channels_last: bool) -> Lowered<ValueId> {
        let rank = source.perm.len();
        let perm = image_perm(rank, channels_last);
        let id = self.builder.arranged(source, &perm);
        if rank == 4 {
            return Ok(id);
        }
        let dims = self.builder.get(id).dims.clone();
        let [n, l, c] = dims[..] else {
            let tensor = self.builder.get(id).name.clone();
            return Err(Reason::Rank { tensor, rank }.into());
        };
        Ok(self.builder.reshaped(id, vec![n, 1, l, c]))
    }

    /// A value `[N, H, W, C]` as the tensor of `rank` that it stands for.
    pub(super) fn unimage(&mut self, id: ValueId, rank: usize, channels_last: bool) -> Placed {
        let perm = image_perm(rank, channels_last);
        let dims = self.builder.get(id).dims.clone();
        match dims[..] {
            [n, _, l, c] if rank == 3 => Placed {
                id: self.builder.reshaped(id, vec![n, l, c]),
                perm,
            },
            _ => Placed { id, perm },
        }
    }

    /// The dims of a value `[N, H, W, C]` after a window.
    pub(super) fn pooled_dims(&self, id: ValueId, window: &Window) -> Lowered<Vec<usize>> {
        let dims = &self.builder.get(id).dims;
        let none = || Reason::Shapes {
            a: dims.clone(),
            b: window.kernel.to_vec(),
        };
        let h = window
            .output(0, dims[1])
            .filter(|&h| h > 0)
            .ok_or_else(none)?;
        let w = window
            .output(1, dims[2])
            .filter(|&w| w > 0)
            .ok_or_else(none)?;
        Ok(vec![dims[0], h, w, dims[3]])
    }
}

/// The order of ONNX axes in an image (or line) with the channels last.
fn image_perm(rank: usize, channels_last: bool) -> Vec<usize> {
    match (rank, channels_last) {
        (4, false) => vec![0, 2, 3, 1],
        (3, false) => vec![0, 2, 1],
        (rank, _) => (0..rank).collect(),
    }
}
