//! Measures ways of rounding weights: relative error of the layer's output on inputs that were not
//! calibrated on, for correlated inputs behind a ReLU, and seconds a layer.
//!
//! `cargo run --release -p requant-quantize --example rounding [O K N]`

use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requant_numerics::DType;
use requant_quantize::exec::kernels::{Matrix, multiply};
use requant_quantize::weights::{
    DAMPING, Gram, Grouping, Hessian, Moments, Order, Recipe, Rounding, ScaleRule, WeightError,
    output_error, round,
};

fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (libm::sqrt(-2.0 * libm::log(1.0 - u)) * libm::cos(std::f64::consts::TAU * v)) as f32
}

/// `[n, k]` inputs: a few shared factors, noise and a bias a channel, behind a ReLU.
fn inputs(rng: &mut ChaCha8Rng, mixing: &[f32], bias: &[f32], n: usize) -> Vec<f32> {
    let k = bias.len();
    let factors = mixing.len() / k;
    let hidden: Vec<f32> = (0..n * factors).map(|_| normal(rng)).collect();
    let mut x: Vec<f32> = (0..n * k).map(|_| 0.5 * normal(rng)).collect();
    let (a, b) = (
        Matrix::row_major(&hidden, factors),
        Matrix::row_major(mixing, k),
    );
    multiply((n, k, factors), a, b, (&mut x, k), true);
    for (i, x) in x.iter_mut().enumerate() {
        *x = (*x + bias[i % k]).max(0.0);
    }
    x
}

fn moments(x: &[f32], k: usize) -> Result<Moments, WeightError> {
    let mut gram = Gram::new(k);
    gram.add_rows(x)?;
    gram.finish()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .map(|s| s.parse())
        .collect::<Result<_, _>>()?;
    let (o, k, n) = match sizes[..] {
        [] => (64, 256, 4096),
        [o, k, n] => (o, k, n),
        _ => return Err("three sizes or none: outputs, inputs, samples".into()),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let factors = k.div_ceil(8).max(1);
    let spread = 1.0 / (factors as f32).sqrt();
    let mixing: Vec<f32> = (0..factors * k)
        .map(|_| spread * normal(&mut rng))
        .collect();
    let bias: Vec<f32> = (0..k).map(|_| 0.5 * normal(&mut rng)).collect();
    let weights: Vec<f32> = (0..o * k)
        .map(|_| normal(&mut rng) / (k as f32).sqrt())
        .collect();

    let clock = Instant::now();
    let seen = moments(&inputs(&mut rng, &mixing, &bias, n), k)?;
    let gathered = clock.elapsed();
    let held = moments(&inputs(&mut rng, &mixing, &bias, n), k)?;
    let clock = Instant::now();
    let hessian = Hessian::new(seen.clone(), DAMPING, Order::Activation)?;
    println!(
        "O {o}, K {k}, N {n}: inputs and Gram matrix {:.2} s, factor {:.2} s",
        gathered.as_secs_f64(),
        clock.elapsed().as_secs_f64()
    );
    let power = output_error(&weights, &vec![0.0; o * k], &held.gram, k)?;
    let ways = [
        ("nearest, max", ScaleRule::MaxAbs, Rounding::Nearest),
        ("nearest, MSE", ScaleRule::Mse, Rounding::Nearest),
        ("GPTQ", ScaleRule::Mse, Rounding::Gptq),
        ("AdaRound", ScaleRule::Mse, Rounding::AdaRound),
        ("descent", ScaleRule::Mse, Rounding::Descent),
    ];
    let slow = k > 1500;
    for (dtype, group) in [
        (DType::I8, None),
        (DType::I4, None),
        (DType::I4, Some(32)),
        (DType::I2, None),
        (DType::Ternary, None),
        (DType::Binary, None),
    ] {
        let suffix = group.map_or(String::new(), |g| format!("/{g}"));
        print!("{:10}", format!("{dtype}{suffix}"));
        for (name, scale, rounding) in ways {
            if slow && rounding == Rounding::AdaRound {
                continue;
            }
            let recipe = Recipe {
                dtype,
                scale,
                rounding,
                group: group.map(|size| Grouping { size, taps: 1 }),
            };
            let clock = Instant::now();
            let rounded = round(&weights, o, std::slice::from_ref(&hessian), recipe)?;
            let seconds = clock.elapsed().as_secs_f64();
            let error = output_error(&weights, &rounded.reals(), &held.gram, k)? / power;
            print!(" | {name} {error:.3e} {seconds:.2} s");
        }
        println!();
    }
    Ok(())
}
