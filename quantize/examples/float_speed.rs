//! Times the float executor on one model, node by node: what calibration and reconstruction wait for.
//!
//! `float_speed MODEL.onnx [SAMPLES] [RUNS]` prints samples a second (median of the runs) and each kind of
//! node's share.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use requant_import::float::{Op, Tensor, read_file};
use requant_import::onnx::ImportOptions;
use requant_quantize::exec::{Executor, Reals};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().ok_or("no model given")?;
    let number =
        |index: usize, default: usize| arguments.get(index).map_or(Ok(default), |n| n.parse());
    let (samples, runs) = (number(1, 8)?, number(2, 7)?);
    let graph = read_file(Path::new(model), &ImportOptions::default())?;
    let inputs: Vec<Tensor> = graph
        .inputs
        .iter()
        .map(|port| {
            let mut dims = graph.value(port.value).dims.clone();
            dims[0] *= samples;
            let elements = dims.iter().product::<usize>();
            let data = (0..elements)
                .map(|i| (i % 251) as f32 / 125.0 - 1.0)
                .collect();
            Tensor { dims, data }
        })
        .collect();
    let executor = Executor::new(&graph)?;
    let mut totals = Vec::new();
    let mut shares: BTreeMap<String, Duration> = BTreeMap::new();
    for _ in 0..runs {
        let mut values = executor.start(inputs.clone(), &Reals::default())?;
        let begin = Instant::now();
        let mut last = begin;
        executor.compute(
            &mut values,
            &executor.outputs(),
            &Reals::default(),
            &mut |id, _| {
                let node = graph.nodes.iter().find(|node| node.output == id);
                let kind = node.map_or_else(String::new, |node| {
                    let Op::Conv(conv) = &node.op else {
                        return node.op.name().to_owned();
                    };
                    let kind = if conv.groups > 1 {
                        "grouped conv"
                    } else {
                        "conv"
                    };
                    format!("{kind} {:?}/{}", conv.window.kernel, conv.window.strides[0])
                });
                let now = Instant::now();
                *shares.entry(kind).or_default() += now - last;
                last = now;
            },
        )?;
        totals.push(begin.elapsed());
    }
    totals.sort();
    let median = totals[runs / 2].as_secs_f64();
    println!("{:.1} samples/s", samples as f64 / median);
    let all: Duration = shares.values().sum();
    for (kind, time) in shares {
        println!(
            "{:5.1} % {kind}",
            100.0 * time.as_secs_f64() / all.as_secs_f64()
        );
    }
    Ok(())
}
