//! Operators that move bytes.

use requant_model::ops::{Concat, Pad, Reshape, Slice, Transpose};
use requant_model::{Graph, Op};
use requant_numerics::DType;

use crate::{Builder, Rng};

const TYPES: [DType; 4] = [DType::U8, DType::I8, DType::I16, DType::I4];

pub(super) fn concat_slice(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("concat_slice", true);
    let kind = rng.pick(&TYPES);
    let axis = rng.size(1, 3);
    let mut dims = [1, rng.size(1, 4), rng.size(1, 5), rng.size(1, 20)];
    let first = b.input(rng, kind, &dims);
    let quant = b.graph.value(first).quant;
    let mut parts = vec![first];
    let mut total = dims[axis];
    for _ in 0..rng.size(1, 3) {
        dims[axis] = rng.size(1, 7);
        total += dims[axis];
        let part = b.value(kind, &dims, quant);
        b.graph.inputs.push(part);
        parts.push(part);
    }
    if rng.one_in(4) {
        parts.push(first);
        total += b.graph.value(first).dims[axis];
    }
    dims[axis] = total;
    let joined = b.value(kind, &dims, quant);
    b.node(Op::Concat(Concat { axis }), &parts, &[joined]);
    let mut op = Slice {
        starts: vec![0],
        steps: vec![1],
        counts: vec![1],
    };
    for &extent in &dims[1..] {
        let step: i64 = rng.pick(&[1, 1, 2, -1, -2]);
        let start = rng.size(0, extent - 1);
        let room = if step > 0 { extent - 1 - start } else { start };
        let most = room / usize::try_from(step.abs()).unwrap_or(1) + 1;
        op.starts.push(start);
        op.steps.push(step);
        op.counts.push(rng.size(1, most));
    }
    let cut = b.value(kind, &op.counts.clone(), quant);
    b.node(Op::Slice(op), &[joined], &[cut]);
    b.finish(&[cut, joined])
}

pub(super) fn pad_transpose_reshape(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("pad_transpose_reshape", true);
    let kind = rng.pick(&TYPES);
    let dims = [1, rng.size(1, 4), rng.size(1, 5), rng.size(1, 20)];
    let x = b.input(rng, kind, &dims);
    let quant = b.graph.value(x).quant;
    let pads = |rng: &mut Rng| vec![0, rng.size(0, 2), rng.size(0, 2), rng.size(0, 3)];
    let (before, after) = (pads(rng), pads(rng));
    let (lo, hi) = kind.range().expect("an integer type");
    let padded: Vec<usize> = (0..4).map(|i| dims[i] + before[i] + after[i]).collect();
    let wide = b.value(kind, &padded, quant);
    let value = rng.range(lo, hi) as i32;
    b.node(
        Op::Pad(Pad {
            before,
            after,
            value,
        }),
        &[x],
        &[wide],
    );
    let perm = rng.pick(&[
        [0, 3, 1, 2],
        [0, 2, 3, 1],
        [0, 1, 3, 2],
        [0, 3, 2, 1],
        [0, 2, 1, 3],
    ]);
    let turned_dims: Vec<usize> = perm.iter().map(|&axis| padded[axis]).collect();
    let turned = b.value(kind, &turned_dims, quant);
    b.node(
        Op::Transpose(Transpose {
            perm: perm.to_vec(),
        }),
        &[wide],
        &[turned],
    );
    let flat = b.value(kind, &[1, padded.iter().product()], quant);
    b.node(Op::Reshape(Reshape {}), &[turned], &[flat]);
    // A view of a view that is also public.
    let back = b.value(kind, &turned_dims, quant);
    b.node(Op::Reshape(Reshape {}), &[flat], &[back]);
    let again = b.value(kind, &padded, quant);
    let mut inverse = vec![0; 4];
    (0..4).for_each(|i| inverse[perm[i]] = i);
    b.node(
        Op::Transpose(Transpose { perm: inverse }),
        &[back],
        &[again],
    );
    b.finish(&[flat, again])
}
