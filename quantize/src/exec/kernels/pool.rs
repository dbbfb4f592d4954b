//! Pools over windows and means over axes.

use rayon::prelude::*;
use requant_model::ops::Window;

use super::moves::strides;
use super::product::Real;

/// Planes that a task takes at least.
const PLANES: usize = 4;

/// Height, width and output extents of a pool over `[N, C, H, W]` or `[N, C, L]`.
type Extents = ([usize; 2], [usize; 2]);

fn extents(dims: &[usize], window: &Window) -> Option<Extents> {
    let input = match *dims {
        [_, _, h, w] => [h, w],
        [_, _, l] => [1, l],
        _ => return None,
    };
    Some((
        input,
        [window.output(0, input[0])?, window.output(1, input[1])?],
    ))
}

/// Calls `visit(row of outputs, input row, first and last output column, input column of the first)` for
/// every tap of the window and every output row that it meets the input in.
fn taps(
    window: &Window,
    (input, output): Extents,
    mut visit: impl FnMut(usize, usize, (usize, usize), usize),
) {
    for row in 0..output[0] {
        let (first, last) = window.taps(0, row, input[0]);
        for tap in first..last {
            let line = row * window.strides[0] + tap * window.dilations[0] - window.pads[0];
            for column_tap in 0..window.kernel[1] {
                let (shift, left) = (column_tap * window.dilations[1], window.pads[1]);
                let stride = window.strides[1];
                let low = left.saturating_sub(shift).div_ceil(stride);
                let high = (input[1] + left)
                    .saturating_sub(shift)
                    .div_ceil(stride)
                    .min(output[1]);
                if low < high {
                    visit(row, line, (low, high), low * stride + shift - left);
                }
            }
        }
    }
}

/// Largest element of each window; padding never wins.
pub fn max_pool(dims: &[usize], window: &Window, x: &[f32], out: &mut [f32]) {
    each_plane(dims, window, x, out, |extents, x, out| {
        out.fill(f32::NEG_INFINITY);
        taps(window, extents, |row, line, (low, high), first| {
            let from = x[line * extents.0[1]..][first..]
                .iter()
                .step_by(window.strides[1]);
            for (y, &x) in out[row * extents.1[1]..][low..high].iter_mut().zip(from) {
                *y = if x > *y { x } else { *y };
            }
        });
    });
}

/// The sum of each window, padding as zeros, handed to `finish` with the number of elements that count.
pub fn window_sums<T: Real>(
    dims: &[usize],
    (window, include_pad): (&Window, bool),
    x: &[f32],
    out: &mut [f32],
    finish: impl Fn(T, usize) -> f32 + Sync,
) {
    each_plane(dims, window, x, out, |extents, x, out| {
        let (input, output) = extents;
        let mut sums = vec![T::default(); out.len()];
        taps(window, extents, |row, line, (low, high), first| {
            let from = x[line * input[1]..][first..]
                .iter()
                .step_by(window.strides[1]);
            for (sum, &x) in sums[row * output[1]..][low..high].iter_mut().zip(from) {
                *sum += T::from_f32(x);
            }
        });
        for (index, (y, &sum)) in out.iter_mut().zip(&sums).enumerate() {
            let (row, column) = (index / output[1], index % output[1]);
            let count = window.count(0, row, input[0], include_pad)
                * window.count(1, column, input[1], include_pad);
            *y = finish(sum, count);
        }
    });
}

fn each_plane(
    dims: &[usize],
    window: &Window,
    x: &[f32],
    out: &mut [f32],
    plane: impl Fn(Extents, &[f32], &mut [f32]) + Sync,
) {
    let Some(extents) = extents(dims, window) else {
        return;
    };
    let (area, pixels) = (extents.0.iter().product(), extents.1.iter().product());
    if area == 0 || pixels == 0 {
        return;
    }
    let planes = out
        .par_chunks_mut(pixels)
        .zip(x.par_chunks(area))
        .with_min_len(PLANES);
    planes.for_each(|(out, x)| pulp::Arch::new().dispatch(|| plane(extents, x, out)));
}

/// The sum over axes (ascending) of each element that stays, in `f64` and index order, handed to `finish`.
pub fn mean(
    dims: &[usize],
    axes: &[usize],
    x: &[f32],
    out: &mut [f32],
    finish: impl Fn(f64) -> f32 + Sync,
) {
    let step = strides(dims);
    let odometer = |keep: bool| -> Vec<usize> {
        let mut offsets = vec![0];
        for axis in (0..dims.len()).filter(|axis| axes.contains(axis) != keep) {
            let along = |&base: &usize| (0..dims[axis]).map(move |i| (base, i));
            offsets = offsets
                .iter()
                .flat_map(along)
                .map(|(base, i)| base + i * step[axis])
                .collect();
        }
        offsets
    };
    let (kept, summed) = (odometer(true), odometer(false));
    out.par_iter_mut()
        .zip(&kept)
        .with_min_len(64)
        .for_each(|(y, &base)| {
            *y = finish(
                summed
                    .iter()
                    .fold(0.0, |sum, &offset| sum + f64::from(x[base + offset])),
            );
        });
}
