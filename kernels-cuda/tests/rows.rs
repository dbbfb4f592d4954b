//! Softmax and layer normalization in integers on the emulated device against the specification.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/rows.rs"]
mod rows;

use requant_conformance::{Rng, emulator};
use requant_kernels_cuda::ops::maps::Operand;
use requant_kernels_cuda::ops::norms::LayerNorm;
use requant_kernels_cuda::{Context, OpError};
use requant_numerics::{DType, Requantize, Scheme};

#[test]
fn every_row_equals_the_specification() {
    if emulator::is_emulated("every_row_equals_the_specification", "") {
        let context = Context::open(0).unwrap();
        let count = rows::all(&context, 3, &mut Rng::new(31));
        println!("{count} cases");
    }
}

#[test]
fn coefficients_that_do_not_fit_are_refused() {
    if !emulator::is_emulated("coefficients_that_do_not_fit_are_refused", "") {
        return;
    }
    let context = Context::open(0).unwrap();
    let requantize = Requantize {
        scheme: Scheme::Shift { k: vec![3] },
        zero_point: 0,
        lo: 0,
        hi: 255,
    };
    let make = |gamma: &[i32], beta: &[i32], dtype: DType| {
        LayerNorm::new(&context, 1, (gamma, beta), &requantize, dtype)
    };
    let refused = make(&[1, 2], &[3], DType::U8).unwrap_err();
    let lengths = OpError::Length {
        what: "beta",
        got: 1,
        expected: 2,
    };
    assert_eq!(refused, lengths);
    assert!(matches!(
        make(&[1], &[1], DType::F32),
        Err(OpError::Type { .. })
    ));
    let norm = make(&[1, 2], &[3, 4], DType::U8).unwrap();
    let x = Operand {
        address: 0,
        dtype: DType::U8,
        dims: &[2, 3],
    };
    let refused = norm.launch(1, x, 0).unwrap_err();
    let lengths = OpError::Length {
        what: "gamma",
        got: 2,
        expected: 3,
    };
    assert_eq!(refused, lengths);
}
