//! Products of two activations on the tensor units: the second operand is packed as weights are, in each run.

use requant_numerics::DType;

use super::int;
use super::maps::{MatMulIo, Operand};
use super::product::{self, CHANNEL_UNIT, Input, MOST_BLOCKS, Multiply};
use crate::epilogue::Form;
use crate::kernel::{Kernel, Launch};
use crate::layout::SLICE;
use crate::params::{Epilogue, OperandParams, ProductParams, RowSumParams};
use crate::{Context, OpError};

/// Below so many rows most of a tile would be empty, and packing costs as much as the product.
const LEAST_ROWS: usize = 16;
/// Alignment of what lies in the workspace.
const ALIGNMENT: usize = 256;
/// Packed rows of a block that packs, and rows of a block that adds up.
const PACKED_ROWS: usize = 32;
const SUMMED_ROWS: usize = 4;

/// What a choice of tiles depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Units {
    multiprocessors: usize,
    stages: usize,
    wgmma: bool,
}

impl Units {
    pub(crate) fn of(context: &Context) -> Self {
        Units {
            multiprocessors: context.properties().multiprocessors,
            stages: context.stages(),
            wgmma: context.has_wgmma(),
        }
    }
}

/// Matrices `[rows, depth]` times matrices `[depth, columns]`, as many of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Matrices {
    count: usize,
    rows: usize,
    depth: usize,
    columns: usize,
}

/// Where everything is in the workspace.
struct Parts {
    padded: usize,
    slices: usize,
    column_sums: usize,
    row_sums: usize,
    bytes: usize,
}

impl Matrices {
    /// The matrices of a product whose operands meet one by one, or whose second operand is one matrix; none
    /// where they are broadcast otherwise, or are too few, too large or of types for the units.
    fn of(a: (&[usize], DType), b: (&[usize], DType), y: &[usize]) -> Option<Self> {
        let [a_dims, b_dims] = [a.0, b.0];
        let (lead, last) = y.split_at(y.len() - 2);
        let (depth, columns) = (*a_dims.last()?, last[1]);
        let count = |dims: &[usize]| dims[..dims.len() - 2].iter().product::<usize>();
        let all: usize = lead.iter().product();
        if count(a_dims) != all {
            return None;
        }
        let (count, rows) = match count(b_dims) {
            1 => (1, all * last[0]),
            several if several == all => (all, last[0]),
            _ => return None,
        };
        let bytes = |dtype: DType| dtype.size_in_memory() == 1;
        let fits = rows >= LEAST_ROWS
            && depth >= 1
            && columns >= 1
            && (1..=MOST_BLOCKS).contains(&count)
            && bytes(a.1)
            && bytes(b.1);
        fits.then_some(Matrices {
            count,
            rows,
            depth,
            columns,
        })
    }

    fn parts(&self) -> Parts {
        let (padded, slices) = (
            self.columns.next_multiple_of(CHANNEL_UNIT),
            self.depth.div_ceil(SLICE),
        );
        let packed = self.count * padded * slices * SLICE;
        let column_sums = packed.next_multiple_of(ALIGNMENT);
        let row_sums = (column_sums + self.count * padded * 4).next_multiple_of(ALIGNMENT);
        Parts {
            padded,
            slices,
            column_sums,
            row_sums,
            bytes: row_sums + self.count * self.rows * 4,
        }
    }
}

fn unsigned(dtype: DType) -> bool {
    dtype.range().is_some_and(|(min, _)| min >= 0)
}

/// Bytes of the workspace that a product of two activations with these shapes and types has use for.
pub fn workspace_bytes(a: (&[usize], DType), b: (&[usize], DType), y: &[usize]) -> usize {
    Matrices::of(a, b, y).map_or(0, |matrices| matrices.parts().bytes)
}

/// The launches of a product, where the units can take it.
///
/// # Errors
/// Sizes past the kernels' indices.
pub(crate) fn launches(
    units: Units,
    epilogue: Epilogue,
    io: &MatMulIo<'_>,
) -> Result<Option<Vec<Launch>>, OpError> {
    let of = |operand: &Operand<'_>| (operand.dtype, operand.dims.to_vec());
    let ((a_type, a_dims), (b_type, b_dims)) = (of(&io.a), of(&io.b));
    let matrices = Matrices::of((&a_dims, a_type), (&b_dims, b_type), io.y.dims);
    let Some(matrices) = matrices.filter(|_| io.zero_points == 0) else {
        return Ok(None);
    };
    let parts = matrices.parts();
    if parts.bytes > io.workspace_bytes {
        return Err(OpError::Scratch {
            needed: parts.bytes,
            there: io.workspace_bytes,
        });
    }
    let Matrices {
        count,
        rows,
        depth,
        columns,
    } = matrices;
    let input = match (depth % 16 == 0, unsigned(a_type)) {
        (false, _) => Input::Any,
        (true, true) => Input::U8,
        (true, false) => Input::I8,
    };
    // Byte by byte they are read as signed ones.
    let flip_a = input == Input::Any && unsigned(a_type);
    let flip_b = unsigned(b_type);
    let less = |flip: bool| if flip { 128 } else { 0 };
    let zero_point_a = io.zero_point_a - less(flip_a);
    let zero_point_b = io.zero_point_b - less(flip_b);
    let (column_sums, row_sums) = (
        io.workspace + parts.column_sums as u64,
        io.workspace + parts.row_sums as u64,
    );
    let mut launches = vec![Launch {
        kernel: Kernel::PackOperand,
        grid: [(parts.padded / PACKED_ROWS) as u32, count as u32, 1],
        shared_bytes: product::shared_bytes(Kernel::PackOperand, units.stages) as u32,
        params: OperandParams {
            b: io.b.address,
            packed: io.workspace,
            column_sums,
            k: int("depth", depth)?,
            n: int("columns", columns)?,
            padded: int("columns", parts.padded)?,
            slices: int("slices", parts.slices)?,
            flip: if flip_b { 0x80 } else { 0 },
            zero_point_a,
            zero_point_b,
        }
        .into(),
    }];
    let all_rows = count * rows;
    if zero_point_b != 0 {
        let params = RowSumParams {
            a: io.a.address,
            row_sums,
            rows: all_rows as i64,
            k: int("depth", depth)?,
            is_signed: i32::from(input != Input::U8),
            flip: if flip_a { 0x80 } else { 0 },
            zero_point_b,
        };
        int("rows", all_rows)?;
        launches.push(Launch {
            kernel: Kernel::RowSums,
            grid: [all_rows.div_ceil(SUMMED_ROWS) as u32, 1, 1],
            shared_bytes: 0,
            params: params.into(),
        });
    }
    let tiles =
        |side_m: usize, side_n: usize| [rows.div_ceil(side_m), columns.div_ceil(side_n), count];
    let fills = |tiles: [usize; 3]| tiles.iter().product::<usize>() >= units.multiprocessors;
    let large: &[_] = match (input, units.wgmma) {
        (Input::Any, _) => &[],
        (_, true) => &[(Multiply::Group, 128), (Multiply::Group, 64)],
        (_, false) => &[(Multiply::Warp, 128)],
    };
    let mut large = large.iter().copied();
    let large = large.find(|&(_, side)| columns > side / 2 && fills(tiles(128, side)));
    let (kernel, [x, y, z]) = match large {
        Some((multiply, side)) => (
            product::kernel(input, multiply, side, Form::Any),
            tiles(128, side),
        ),
        None => (
            product::kernel(input, Multiply::Warp, 64, Form::Any),
            tiles(64, 64),
        ),
    };
    if y > MOST_BLOCKS {
        return Ok(None);
    }
    let params = ProductParams {
        x: io.a.address,
        weights: io.workspace,
        y: io.y.address,
        x_step: (rows * depth) as i64,
        y_step: (rows * columns) as i64,
        column_sums,
        row_sums: if zero_point_b == 0 { 0 } else { row_sums },
        rows: int("rows", rows)?,
        channels: int("columns", columns)?,
        channels_padded: int("columns", parts.padded)?,
        channels_total: int("columns", columns)?,
        slices: int("slices", parts.slices)?,
        planes: 1,
        splits: 1,
        depth: int("depth", depth)?,
        in_channels: int("depth", depth)?,
        group_channels: int("depth", depth)?,
        in_h: 1,
        in_w: 1,
        out_h: 1,
        out_w: 1,
        kernel_w: 1,
        stride_h: 1,
        stride_w: 1,
        dilation_h: 1,
        dilation_w: 1,
        flip: if flip_a { 0x8080_8080 } else { 0 },
        images_per_sample: 1,
        factor: 1,
        epilogue,
        ..ProductParams::default()
    };
    launches.push(Launch {
        kernel,
        grid: [x as u32, y as u32, z as u32],
        shared_bytes: product::shared_bytes(kernel, units.stages) as u32,
        params: params.into(),
    });
    Ok(Some(launches))
}
