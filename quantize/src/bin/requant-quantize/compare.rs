//! `requant-quantize compare`: two models layer by layer, and on data where there is some.

use std::path::PathBuf;

use comfy_table::{CellAlignment, Table, presets};
use requant_quantize::compare::{Comparison, LayerPair, compare, input_specs};
use requant_quantize::data::Data;
use requant_quantize::files;
use requant_quantize::report::metric;

use crate::device::Device;

/// What to compare.
#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// The first model, which counts as the true one on data
    first: PathBuf,
    /// The second model
    second: PathBuf,
    /// Samples: a .npz archive or a folder of .npy files
    #[arg(long, value_name = "DATA.npz")]
    data: Option<PathBuf>,
    #[command(flatten)]
    device: Device,
}

impl Compare {
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        let (first, second) = (
            files::read_model(&self.first)?,
            files::read_model(&self.second)?,
        );
        let mut comparison = compare(&first, &second);
        if let Some(path) = &self.data {
            let data = Data::read(path, &input_specs(&first))?;
            comparison.run(&first, &second, &data, &*self.device.open()?)?;
        }
        Ok(rows(&comparison) + "\n" + &summary(&comparison))
    }
}

fn decibels(db: f64) -> String {
    if db.is_infinite() {
        "equal".to_owned()
    } else {
        format!("{db:.1}")
    }
}

/// One word where both sides say the same, two with an arrow otherwise.
fn pair(sides: &[Option<String>; 2]) -> String {
    let [first, second] = sides.each_ref().map(|side| side.as_deref().unwrap_or("–"));
    if sides.iter().all(Option::is_none) {
        String::new()
    } else if first == second {
        first.to_owned()
    } else {
        format!("{first} → {second}")
    }
}

fn rows(comparison: &Comparison) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["name", "op", "precision", "bytes", "weights", "SQNR dB"]);
    let bytes = |row: &LayerPair| {
        pair(
            &row.weight_bytes
                .map(|bytes| (bytes > 0).then(|| bytes.to_string())),
        )
    };
    for row in &comparison.layers {
        table.add_row([
            row.name.clone(),
            pair(&row.ops),
            pair(&row.precisions),
            bytes(row),
            match row.same_weights {
                Some(true) => "same".to_owned(),
                Some(false) => "differ".to_owned(),
                None => String::new(),
            },
            row.sqnr.map(decibels).unwrap_or_default(),
        ]);
    }
    for index in [3, 5] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n") + "\n"
}

fn summary(comparison: &Comparison) -> String {
    let sum = |side: usize| {
        comparison
            .layers
            .iter()
            .map(|row| row.weight_bytes[side])
            .sum::<u64>()
    };
    let mut lines = vec![format!(
        "weights: {}B → {}B",
        metric(sum(0) as f64),
        metric(sum(1) as f64)
    )];
    if let Some(on_data) = &comparison.on_data {
        for output in &on_data.outputs {
            lines.push(format!(
                "{}: same top class for {:.2} % of {} samples, {:.2} % equal to the byte, \
                 largest difference {}, SQNR {}",
                output.name,
                100.0 * output.agreement,
                on_data.samples,
                100.0 * output.same,
                output.max_difference,
                match output.sqnr {
                    db if db.is_infinite() => "infinite".to_owned(),
                    db => format!("{db:.1} dB"),
                }
            ));
        }
        if let Some([first, second]) = on_data.accuracy {
            lines.push(format!(
                "accuracy: {:.2} % → {:.2} %",
                100.0 * first,
                100.0 * second
            ));
        }
    }
    lines.join("\n") + "\n"
}
