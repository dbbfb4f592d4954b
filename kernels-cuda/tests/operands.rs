//! Products of two activations on the emulated device against plain loops: packed for the tensor units in each
//! run, and one element a thread where they are few or broadcast.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Arc;

use requant_conformance::Rng;
use requant_conformance::emulator::{self, Form};
use requant_kernels_cuda::ops::maps::{MatMulIo, Operand, Requantized};
use requant_kernels_cuda::ops::operands;
use requant_kernels_cuda::{Command, Context, OpError, Session};
use requant_numerics::{DType, Requantize, Scheme};

/// The shapes of two operands.
type Shapes = (&'static [usize], &'static [usize]);

const SHAPES: &[Shapes] = &[
    // The fewest rows for the units, and one less.
    (&[16, 16], &[16, 8]),
    (&[15, 16], &[16, 8]),
    (&[16, 1], &[1, 1]),
    // As many matrices of both, with tails on every side.
    (&[2, 3, 20, 33], &[2, 3, 33, 70]),
    (&[3, 40, 64], &[3, 64, 130]),
    (&[4, 130, 32], &[4, 32, 64]),
    (&[2, 17, 1000], &[2, 1000, 20]),
    // One second matrix for all.
    (&[2, 5, 7, 48], &[48, 33]),
    (&[3, 9, 80], &[1, 80, 20]),
    // Broadcast both ways, or the first alone; few rows.
    (&[2, 1, 20, 16], &[1, 3, 16, 9]),
    (&[20, 16], &[3, 16, 9]),
    (&[2, 3, 1, 16], &[2, 3, 16, 5]),
    // Large tiles.
    (&[300, 80], &[80, 140]),
    (&[2, 260, 96], &[2, 96, 61]),
];

fn requantize(rng: &mut Rng, kind: usize, dtype: DType) -> Requantize {
    let (lo, hi) = dtype.range().unwrap();
    let scheme = match kind {
        0 => Scheme::Rhu {
            m: vec![rng.range(1 << 20, 1 << 28) as i32],
            s: vec![rng.size(34, 42) as u8],
        },
        1 => Scheme::TfliteDouble {
            m: vec![rng.range(1 << 30, i64::from(i32::MAX)) as i32],
            e: vec![rng.range(-12, -6) as i8],
        },
        2 => Scheme::F32Rne {
            scale: vec![rng.log(1e-4, 1e-2) as f32],
        },
        _ => Scheme::Thresholds {
            levels: 3,
            tau: vec![-3000, 10, 5000],
            falls: vec![rng.one_in(2)],
        },
    };
    Requantize {
        scheme,
        zero_point: rng.range(lo.max(-128), hi.min(127)) as i32,
        lo: lo as i32,
        hi: hi as i32,
    }
}

/// Runs a product three times and gives the names of its kernels.
fn run(
    context: &Arc<Context>,
    (a_dims, b_dims): Shapes,
    kind: usize,
    rng: &mut Rng,
) -> Vec<&'static str> {
    let types = [
        DType::U8,
        DType::I8,
        DType::U8,
        DType::I8,
        DType::U4,
        DType::I4,
    ];
    let (a_type, b_type) = (rng.pick(&types), rng.pick(&types));
    let y_type = rng.pick(&[DType::U8, DType::I8, DType::I16]);
    let (a_range, b_range) = (a_type.range().unwrap(), b_type.range().unwrap());
    let zero_point_a = rng.range(a_range.0, a_range.1) as i32;
    // Where bytes are symmetrical, or read so, there are no rows to add up.
    let symmetrical = if b_range.0 < 0 { 0 } else { b_range.1.min(128) };
    let any = rng.range(b_range.0, b_range.1);
    let zero_point_b = rng.pick(&[any, any, symmetrical]) as i32;
    let rank = a_dims.len().max(b_dims.len());
    let at = |dims: &[usize], axis: usize| -> usize {
        (axis + dims.len())
            .checked_sub(rank)
            .map_or(1, |axis| dims[axis])
    };
    let [m, k] = [a_dims[a_dims.len() - 2], a_dims[a_dims.len() - 1]];
    let n = b_dims[b_dims.len() - 1];
    let mut y_dims: Vec<usize> = (0..rank - 2)
        .map(|axis| at(a_dims, axis).max(at(b_dims, axis)))
        .collect();
    let lead = y_dims.clone();
    y_dims.extend([m, n]);
    let requantize = (kind < 4).then(|| requantize(rng, kind, y_type));
    let y_type = if kind < 4 { y_type } else { DType::I32 };
    let draw = |rng: &mut Rng, dims: &[usize], range: (i64, i64)| {
        rng.integers(dims.iter().product(), range.0, range.1)
    };
    let (a, b) = (draw(rng, a_dims, a_range), draw(rng, b_dims, b_range));
    // The matrix of an operand that belongs to one of the output.
    let matrix_of = |dims: &[usize], matrix: usize| {
        let (mut left, mut index, mut stride) = (matrix, 0, 1);
        for axis in (0..lead.len()).rev() {
            let (here, own) = (left % lead[axis], at(dims, axis));
            left /= lead[axis];
            index += if own == 1 { 0 } else { here * stride };
            stride *= own;
        }
        index
    };
    let mut want = Vec::new();
    for matrix in 0..lead.iter().product() {
        let a = &a[matrix_of(a_dims, matrix) * m * k..][..m * k];
        let b = &b[matrix_of(b_dims, matrix) * k * n..][..k * n];
        for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let terms = (0..k).map(|i| {
                let left = a[row * k + i] - i64::from(zero_point_a);
                left * (b[i * n + column] - i64::from(zero_point_b))
            });
            let acc = i32::try_from(terms.sum::<i64>()).unwrap();
            want.push(requantize.as_ref().map_or(acc, |r| r.apply(acc, 0)));
        }
    }

    let guard = 64;
    let size = y_type.size_in_memory();
    let b_at = a.len().next_multiple_of(256);
    let y_at = (b_at + b.len()).next_multiple_of(256);
    let y_bytes = want.len() * size;
    let end = (y_at + y_bytes + guard).next_multiple_of(256);
    let workspace = operands::workspace_bytes((a_dims, a_type), (b_dims, b_type), &y_dims);
    let prepared = Requantized::new(context, requantize.as_ref(), y_type).unwrap();
    let all = end + workspace + guard;
    let mut session = Session::new(context, all, all).unwrap();
    let operand = |offset: usize, dtype: DType, dims| Operand {
        address: session.address() + offset as u64,
        dtype,
        dims,
    };
    let io = MatMulIo {
        samples: 1,
        a: operand(0, a_type, a_dims),
        b: operand(b_at, b_type, b_dims),
        y: operand(y_at, y_type, &y_dims),
        zero_points: 0,
        zero_point_a,
        zero_point_b,
        workspace: session.address() + end as u64,
        workspace_bytes: workspace,
    };
    let launches = prepared.mat_mul(&io).unwrap();
    if workspace > 0 {
        let less = MatMulIo {
            workspace_bytes: workspace - 1,
            ..io
        };
        let refused = prepared.mat_mul(&less).unwrap_err();
        let there = workspace - 1;
        assert_eq!(
            refused,
            OpError::Scratch {
                needed: workspace,
                there
            }
        );
    }
    let names = launches.iter().map(|launch| launch.kernel.name()).collect();
    let mut commands = vec![Command::Upload {
        from: 0..all,
        to: 0,
    }];
    commands.extend(launches.into_iter().map(Command::Launch));
    commands.push(Command::Download {
        from: 0..all,
        to: 0,
    });
    for turn in 0..3 {
        let staging = session.staging_mut();
        staging.fill(0xA5);
        for (start, values) in [(0, &a), (b_at, &b)] {
            let to = staging[start..].iter_mut();
            to.zip(values).for_each(|(to, &value)| *to = value as u8);
        }
        session.run(&commands).unwrap();
        let got = &session.staging()[y_at..];
        for (index, (bytes, want)) in got.chunks_exact(size).zip(&want).enumerate() {
            assert_eq!(
                bytes,
                &want.to_le_bytes()[..size],
                "{names:?}, {a_dims:?} {a_type} {zero_point_a}, {b_dims:?} {b_type} {zero_point_b}, {requantize:?}, \
                 turn {turn}: element {index}"
            );
        }
        for past in [&got[y_bytes..][..guard], &session.staging()[all - guard..]] {
            assert!(past.iter().all(|&b| b == 0xA5), "{names:?}: past the end");
        }
    }
    names
}

fn all(expected: &[&str]) {
    let context = Context::open(0).unwrap();
    let mut rng = Rng::new(41);
    let mut met = BTreeSet::new();
    for _ in 0..2 {
        for &shapes in SHAPES {
            for kind in 0..5 {
                met.extend(run(&context, shapes, kind, &mut rng));
            }
        }
    }
    for name in ["mat_mul", "pack_operand", "row_sums"] {
        assert!(met.contains(name), "{name} was not met: {met:?}");
    }
    for name in expected {
        assert!(met.contains(name), "{name} was not met: {met:?}");
    }
}

#[test]
fn products_of_activations_equal_plain_loops() {
    let name = "products_of_activations_equal_plain_loops";
    if emulator::is_emulated(name, "major=8") {
        all(&[
            "product_any_64_any",
            "product_u8_64_any",
            "product_i8_64_any",
            "product_u8_128_any",
            "product_i8_128_any",
        ]);
    }
}

#[test]
fn products_of_activations_by_wgmma_equal_plain_loops() {
    let name = "products_of_activations_by_wgmma_equal_plain_loops";
    if emulator::is_emulated(name, "major=9") {
        all(&[
            "product_any_64_any",
            "product_u8_64_any",
            "group_product_u8_128_any",
            "group_product_i8_64_any",
        ]);
    }
}

#[test]
fn products_of_activations_on_turing_equal_plain_loops() {
    let name = "products_of_activations_on_turing_equal_plain_loops";
    if emulator::is_emulated_as(Form::Turing, name, "") {
        all(&["product_any_64_any", "product_u8_128_any"]);
    }
}
