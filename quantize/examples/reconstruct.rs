//! What rounding is worth below 8 bits: a classifier's accuracy in reals, with weights rounded to the nearest,
//! rounded layer by layer, and reconstructed block by block. The first and the last layer keep 8 bits.
//!
//! `cargo run --release -p requant-quantize --example reconstruct -- MODEL.onnx --calibration C.npz
//! --evaluate E.npz --mean 0 --deviation 1`; the archives hold `x`, bytes, and `y`, class indices.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use requant_import::float::{ActivationQuant, Graph, LayerQuant, Op, Quantized, Tensor, ValueId};
use requant_import::onnx::ImportOptions;
use requant_npy::Npz;
use requant_numerics::{ActivationPrecision, DType};
use requant_quantize::assemble::{Candidate, Grids, assemble};
use requant_quantize::calibrate::{Calibrator, Histogram, quantization};
use requant_quantize::exec::kernels::{Columns, ConvShape, im2col};
use requant_quantize::exec::{Arithmetic, Exact, Executor, Reals};
use requant_quantize::judge::top1;
use requant_quantize::placement::Placement;
use requant_quantize::reconstruct::{Effort, Samples, reconstruct_model};
use requant_quantize::weights::{DAMPING, Gram, Hessian, Order, Recipe, ScaleRule, round};

/// Samples that run together.
const BATCH: usize = 16;

#[derive(Parser)]
struct Arguments {
    /// Float ONNX file.
    model: PathBuf,
    /// Samples to quantize on.
    #[arg(long)]
    calibration: PathBuf,
    /// Samples and labels to judge by.
    #[arg(long)]
    evaluate: PathBuf,
    /// Subtracted from every byte.
    #[arg(long, default_value_t = 0.0)]
    mean: f32,
    /// Divides what is left.
    #[arg(long, default_value_t = 1.0)]
    deviation: f32,
    /// Bits of weights: 4 or 2.
    #[arg(long, default_value_t = 4)]
    weights: u32,
    /// Bits of activations that layers read: 8 or 4.
    #[arg(long, default_value_t = 4)]
    activations: u32,
    /// Steps a block.
    #[arg(long, default_value_t = Effort::default().iterations)]
    iterations: usize,
    /// Samples a step.
    #[arg(long, default_value_t = Effort::default().batch)]
    batch: usize,
    /// Rate of roundings.
    #[arg(long, default_value_t = Effort::default().weight_rate)]
    weight_rate: f32,
    /// Rate of activation scales.
    #[arg(long, default_value_t = Effort::default().scale_rate)]
    scale_rate: f32,
    /// Rate of biases.
    #[arg(long, default_value_t = Effort::default().bias_rate)]
    bias_rate: f32,
    /// Weight of the decision term.
    #[arg(long, default_value_t = Effort::default().rounding)]
    rounding: f32,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let graph = requant_import::float::read_file(&arguments.model, &ImportOptions::default())?;
    let (calibration, _) = read(&arguments.calibration, &arguments)?;
    let (images, labels) = read(&arguments.evaluate, &arguments)?;
    let labels = labels.context("no y to judge by")?;
    let judged = Judged {
        executor: Executor::new(&graph)?,
        images: &images,
        labels: &labels,
    };
    println!(
        "float            {:6.2} %",
        judged.accuracy(&Reals::default())?
    );
    let elements = graph.value(graph.inputs[0].value).elements();
    let samples = Samples::new(&graph, calibration.len() / elements, vec![&calibration])?;
    let observed = observe(&graph, &samples)?;
    for (name, informed) in [("nearest", false), ("layer by layer", true)] {
        let start = Instant::now();
        let mut quantized = quantize(&graph, &observed, &arguments, informed)?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name:16} {:6.2} % {seconds:7.1} s",
            judged.exact(&quantized)?
        );
        let effort = Effort {
            iterations: arguments.iterations,
            batch: arguments.batch,
            weight_rate: arguments.weight_rate,
            scale_rate: arguments.scale_rate,
            bias_rate: arguments.bias_rate,
            rounding: arguments.rounding,
            seed: arguments.seed,
            ..Effort::default()
        };
        let start = Instant::now();
        let reports = reconstruct_model(&mut quantized, &samples, &effort, &())?;
        let seconds = start.elapsed().as_secs_f64();
        for report in &reports {
            println!(
                "  nodes {:?}: error {:.5} -> {:.5}{}",
                report.block.nodes,
                report.before,
                report.after,
                if report.kept { "" } else { ", not kept" }
            );
        }
        let simulated = judged.accuracy(&Reals::fake(&quantized))?;
        println!(
            "  reconstructed  {:6.2} % (simulated {simulated:.2} %) {seconds:7.1} s",
            judged.exact(&quantized)?
        );
    }
    Ok(())
}

/// `x` as the network takes it, and `y`.
fn read(path: &Path, arguments: &Arguments) -> Result<(Vec<f32>, Option<Vec<usize>>)> {
    let mut archive = Npz::open(path)?;
    let bytes = archive.read("x")?;
    let scale = |&byte: &u8| (f32::from(byte) - arguments.mean) / arguments.deviation;
    let labels = archive.read("y").ok();
    let labels = labels.map(|y| y.data.iter().map(|&y| usize::from(y)).collect());
    Ok((bytes.data.iter().map(scale).collect(), labels))
}

struct Judged<'a> {
    executor: Executor<'a>,
    images: &'a [f32],
    labels: &'a [usize],
}

impl Judged<'_> {
    fn exact(&self, quantized: &Quantized<'_>) -> Result<f64> {
        self.accuracy(&Exact::new(&self.executor, quantized)?)
    }

    fn accuracy(&self, arithmetic: &dyn Arithmetic) -> Result<f64> {
        let graph = self.executor.graph();
        let elements = graph.value(graph.inputs[0].value).elements();
        let mut right = 0;
        let batches = self.images.chunks(BATCH * elements);
        for (images, labels) in batches.zip(self.labels.chunks(BATCH)) {
            let input = tensor(graph, images);
            let outputs = self.executor.run(vec![input], arithmetic)?;
            let rows = outputs[0].data.chunks(outputs[0].data.len() / labels.len());
            right += rows
                .zip(labels)
                .filter(|(row, label)| top1(row) == **label)
                .count();
        }
        Ok(100.0 * right as f64 / self.labels.len() as f64)
    }
}

fn tensor(graph: &Graph, data: &[f32]) -> Tensor {
    let mut dims = graph.value(graph.inputs[0].value).dims.clone();
    dims[0] *= data.len() / dims.iter().product::<usize>();
    Tensor {
        dims,
        data: data.to_vec(),
    }
}

/// What calibration saw.
struct Observed {
    grids: Vec<Grids>,
    /// By layer, one a group.
    hessians: BTreeMap<usize, Vec<Hessian>>,
}

fn observe(graph: &Graph, samples: &Samples<'_>) -> Result<Observed> {
    let executor = Executor::new(graph)?;
    let placement = Placement::new(graph);
    let mut histograms = vec![Histogram::new(); placement.len()];
    let mut grams: BTreeMap<usize, Vec<Gram>> = BTreeMap::new();
    let all: Vec<ValueId> = (0..graph.values.len()).map(ValueId).collect();
    let elements = graph.value(graph.inputs[0].value).elements();
    for batch in samples.inputs[0].chunks(BATCH * elements) {
        let mut values = executor.start(vec![tensor(graph, batch)], &Reals::default())?;
        executor.compute(&mut values, &all, &Reals::default(), &mut |_, _| ())?;
        for (group, histogram) in histograms.iter_mut().enumerate() {
            for id in placement.sources(group) {
                if let Some(value) = values.get(*id) {
                    histogram.add(&value.data)?;
                }
            }
        }
        for index in graph.layers() {
            let node = &graph.nodes[index];
            let Some(x) = values.get(node.inputs[0]) else {
                continue;
            };
            gather(&node.op, x, grams.entry(index).or_default())?;
        }
    }
    let grids = histograms.iter().map(|seen| {
        let grid = |dtype: DType, by: Calibrator| -> Result<ActivationQuant> {
            let quant = quantization(by.range(seen, dtype)?, dtype)?;
            Ok(ActivationQuant { dtype, quant })
        };
        Ok(Grids {
            a8: grid(DType::U8, Calibrator::MinMax)?,
            a4: grid(DType::U4, Calibrator::Mse)?,
            a16: grid(DType::I16, Calibrator::MinMax)?,
        })
    });
    let hessian = |gram: Gram| -> Result<Hessian> {
        Ok(Hessian::new(&gram.finish()?, DAMPING, Order::default())?)
    };
    let hessians = grams.into_iter().map(|(index, grams)| {
        let hessians: Result<Vec<_>> = grams.into_iter().map(hessian).collect();
        Ok((index, hessians?))
    });
    Ok(Observed {
        hessians: hessians.collect::<Result<_>>()?,
        grids: grids.collect::<Result<_>>()?,
    })
}

/// Adds a layer's inputs to what is known of them.
fn gather(op: &Op, x: &Tensor, grams: &mut Vec<Gram>) -> Result<()> {
    match op {
        Op::Conv(conv) => {
            let shape = ConvShape::new(&x.dims, &conv.weights.dims, &conv.window, conv.groups);
            let shape = shape.context("a convolution that does not fit")?;
            grams.resize_with(shape.groups, || Gram::new(shape.depth()));
            let mut panel = vec![0.0f32; shape.depth() * shape.pixels()];
            for sample in x.data.chunks(shape.input_elements()) {
                for (group, gram) in grams.iter_mut().enumerate() {
                    let place = Columns {
                        start: 0,
                        length: shape.pixels(),
                        pitch: shape.pixels(),
                        first: 0,
                    };
                    im2col(&shape, sample, group, place, &mut panel);
                    gram.add_columns(&panel)?;
                }
            }
        }
        Op::Gemm(gemm) => {
            grams.resize_with(1, || Gram::new(gemm.weights.dims[1]));
            grams[0].add_rows(&x.data)?;
        }
        Op::Constant(_)
        | Op::MatMul(_)
        | Op::Binary(_)
        | Op::Map(_)
        | Op::MaxPool(_)
        | Op::AveragePool(_)
        | Op::Mean { .. }
        | Op::Concat { .. }
        | Op::Slice(_)
        | Op::Gather { .. }
        | Op::Pad { .. }
        | Op::Reshape
        | Op::Transpose(_)
        | Op::Resize(_)
        | Op::Softmax { .. } => {}
    }
    Ok(())
}

fn quantize<'g>(
    graph: &'g Graph,
    observed: &Observed,
    arguments: &Arguments,
    informed: bool,
) -> Result<Quantized<'g>> {
    let layers: Vec<usize> = graph.layers().collect();
    let mut candidates = BTreeMap::new();
    for &index in &layers {
        let node = &graph.nodes[index];
        let weights = node.op.weights().context("a layer without weights")?;
        let narrow = ![layers.first(), layers.last()].contains(&Some(&index));
        let bias = if let Op::Conv(conv) = &node.op {
            conv.bias.clone()
        } else if let Op::Gemm(gemm) = &node.op {
            gemm.bias.clone()
        } else {
            Vec::new()
        };
        let mut recipe = Recipe::new(match (narrow, arguments.weights) {
            (false, _) | (true, 8) => DType::I8,
            (true, 2) => DType::I2,
            (true, _) => DType::I4,
        });
        if !informed {
            recipe.scale = ScaleRule::MaxAbs;
        }
        let hessians = if informed {
            &observed.hessians[&index][..]
        } else {
            &[]
        };
        let rounded = round(&weights.data, weights.dims[0], hessians, recipe)?;
        let quant = LayerQuant {
            dtype: rounded.dtype,
            weights: rounded.weights,
            scales: rounded.scales,
            bias: Vec::new(),
            groups: rounded.groups,
            codebook: None,
        };
        let activations = if narrow && arguments.activations == 4 {
            ActivationPrecision::A4
        } else {
            ActivationPrecision::A8
        };
        let candidate = Candidate {
            activations,
            quant,
            bias,
        };
        candidates.insert(index, candidate);
    }
    let placement = Placement::new(graph);
    let streams = vec![false; placement.len()];
    let layers = candidates.iter().map(|(&index, c)| (index, c)).collect();
    Ok(assemble(
        graph,
        &placement,
        &observed.grids,
        &streams,
        &layers,
    ))
}
