//! The report in a terminal: one row a node, then the sums.

use comfy_table::{CellAlignment, Table, presets};

use super::{LayerReport, Report};

/// A number with a metric prefix and three digits: `11.8 M`.
pub fn metric(value: f64) -> String {
    let prefixes = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match prefixes.iter().find(|(unit, _)| value >= *unit) {
        Some((unit, prefix)) => format!("{} {prefix}", digits(value / unit)),
        None => digits(value),
    }
}

/// An energy or time with a metric prefix and three digits: `3.42 µ`.
fn small(value: f64) -> String {
    let prefixes = [
        (1.0, ""),
        (1e-3, "m"),
        (1e-6, "µ"),
        (1e-9, "n"),
        (1e-12, "p"),
    ];
    match prefixes.iter().find(|(unit, _)| value >= *unit) {
        Some((unit, prefix)) => format!("{} {prefix}", digits(value / unit)),
        None => "0 ".to_owned(),
    }
}

/// An energy.
pub fn joules(value: f64) -> String {
    small(value) + "J"
}

/// A time.
pub(super) fn seconds(value: f64) -> String {
    small(value) + "s"
}

fn digits(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Extents with a cross between them.
pub(super) fn shape(dims: &[usize]) -> String {
    let extents: Vec<String> = dims.iter().map(usize::to_string).collect();
    extents.join("×")
}

/// One row a node: name, operator, precision, shape, multiply-accumulates and bytes with their shares,
/// and what was measured of any node.
pub fn layer_table(report: &Report) -> String {
    let layers = &report.layers;
    type Column = (&'static str, fn(&LayerReport) -> Option<String>);
    let measured: [Column; 3] = [
        ("time", |layer| layer.seconds.map(seconds)),
        ("SQNR dB", |layer| layer.sqnr.map(|db| format!("{db:.1}"))),
        ("saturated", |layer| layer.saturated.map(percent)),
    ];
    let present = measured
        .iter()
        .filter(|(_, cell)| layers.iter().any(|layer| cell(layer).is_some()));
    let present: Vec<&Column> = present.collect();

    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec!["name", "op", "precision", "shape", "MACs", "", "bytes", ""];
    header.extend(present.iter().map(|(name, _)| *name));
    let columns = header.len();
    table.set_header(header);
    let share = |part: u64, whole: u64| {
        if part == 0 {
            String::new()
        } else {
            percent(part as f64 / whole as f64)
        }
    };
    let count = |value: u64| {
        if value == 0 {
            String::new()
        } else {
            metric(value as f64)
        }
    };
    for layer in layers {
        let mut row = vec![
            layer.name.clone(),
            layer.op.clone(),
            layer.precision.clone().unwrap_or_default(),
            shape(&layer.shape),
            count(layer.macs),
            share(layer.macs, report.totals.macs),
            count(layer.weight_bytes),
            share(layer.weight_bytes, report.totals.weight_bytes),
        ];
        row.extend(
            present
                .iter()
                .map(|(_, cell)| cell(layer).unwrap_or_default()),
        );
        table.add_row(row);
    }
    for index in 4..columns {
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

/// Sums, measurements, the integer-only proof, warnings and provenance, one a line.
pub fn totals_text(report: &Report) -> String {
    let totals = &report.totals;
    let mut lines = vec![
        format!("model: {} ({})", report.model, report.precision),
        format!("multiply-accumulates: {}", metric(totals.macs as f64)),
        format!("bit operations: {}", metric(totals.bops as f64)),
        match totals.float_bytes {
            Some(float) if float > 0 => format!(
                "weights: {}B, {} of the float model's {}B",
                metric(totals.weight_bytes as f64),
                percent(totals.weight_bytes as f64 / float as f64),
                metric(float as f64)
            ),
            Some(_) | None => format!("weights: {}B", metric(totals.weight_bytes as f64)),
        },
        format!(
            "energy, estimated: {} a sample ({} in float)",
            joules(totals.energy),
            joules(totals.float_energy)
        ),
    ];
    lines.extend(
        totals
            .seconds
            .map(|time| format!("latency: {}", seconds(time))),
    );
    let samples = totals.samples.unwrap_or(0);
    match (totals.accuracy, totals.float_accuracy) {
        (Some(accuracy), Some(float)) => lines.push(format!(
            "accuracy: {} (float {}) on {samples} samples",
            percent(accuracy),
            percent(float)
        )),
        (Some(accuracy), None) => {
            lines.push(format!(
                "accuracy: {} on {samples} samples",
                percent(accuracy)
            ));
        }
        (None, Some(_) | None) => {}
    }
    lines.extend(totals.agreement.map(|share| {
        format!(
            "agreement with the float model: {} of {samples} samples",
            percent(share)
        )
    }));
    if let Some(search) = &report.search {
        let details = search.details.iter();
        let details = details.map(|(name, value)| format!(", {name} {value}"));
        lines.push(format!(
            "search: {} under {}{}, {} models evaluated in {}",
            search.method,
            search.budget,
            details.collect::<String>(),
            search.evaluated,
            seconds(search.seconds)
        ));
    }
    lines.push(report.proof.verdict());
    lines.extend(
        report
            .warnings
            .iter()
            .map(|warning| format!("warning: {warning}")),
    );
    for (key, value) in &report.provenance {
        lines.push(format!("{key}: {value}"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (1500.0, "1.50 k"),
            (11_800_000.0, "11.8 M"),
            (385e6, "385 M"),
            (2.5e13, "25 T"),
        ] {
            assert_eq!(metric(value), text);
        }
        assert_eq!(joules(3.42e-6), "3.42 µJ");
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(seconds(0.0), "0 s");
    }
}
