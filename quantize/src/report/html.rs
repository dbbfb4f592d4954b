//! The report as one HTML page: style sheet and charts inside, no scripts, nothing fetched. Every word
//! that comes from a model is escaped. The page is well-formed XML too, which tests make use of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::svg::{self, Axis, Bar, GREY, Point, escape};
use super::table::{joules, metric, percent, seconds, shape};
use super::{LayerReport, Report};

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c2024;--bg:#fff;--dim:#667;--rule:#d5d9e0;--bad:#b3261e;--good:#1a7f37}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ee;--bg:#15181c;--dim:#99a3b0;--rule:#353b44;--bad:#ff8a80;--good:#5fd07f}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:1060px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{padding:.2rem .6rem;border-bottom:1px solid var(--rule);text-align:left;overflow-wrap:anywhere}\
td.n,th.n{text-align:right;white-space:nowrap}dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1.2rem}\
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}.scroll{overflow-x:auto}\
.bad{color:var(--bad)}.good{color:var(--good)}\
svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font-size:11px}\
.end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:var(--rule);stroke-width:1}\
.c0{fill:#3b76d6}.c1{fill:#e08a1e}.c2{fill:#2e9e6b}.c3{fill:#c2479b}.c4{fill:#8460d4}.c5{fill:#c9504a}.c6{fill:#3aa6b9}.c7{fill:#8a8f2c}.c8{fill:#9aa3ad}\
.strong{stroke:var(--fg);stroke-width:2}.key{display:inline-block;width:.8em;height:.8em;margin:0 .35em 0 1em}\
.key svg{width:100%;height:100%}.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:.8rem}\
figure{margin:0}figcaption{font-size:.8rem;color:var(--dim);overflow-wrap:anywhere}";

/// The whole page.
pub fn html(report: &Report) -> String {
    let title = escape(&report.model);
    let mut page = format!(
        "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{title}: quantization report</title><style>{STYLE}</style></head>\n<body><main>\n\
         <h1>{title} <small>({})</small></h1>\n",
        escape(&report.precision)
    );
    summary(&mut page, report);
    warnings(&mut page, report);
    proof(&mut page, report);
    bits(&mut page, report);
    sensitivity(&mut page, report);
    pareto(&mut page, report);
    noise(&mut page, report);
    layers(&mut page, report);
    histograms(&mut page, "Weights", &report.layers, |layer| {
        layer.weights.as_ref()
    });
    histograms(&mut page, "Activations", &report.layers, |layer| {
        layer.activations.as_ref()
    });
    provenance(&mut page, report);
    page.push_str("</main></body></html>\n");
    page
}

fn heading(page: &mut String, text: &str) {
    _ = writeln!(page, "<h2>{}</h2>", escape(text));
}

fn term(page: &mut String, name: &str, value: &str) {
    _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
}

fn summary(page: &mut String, report: &Report) {
    let totals = &report.totals;
    page.push_str("<dl>\n");
    let bytes = |bytes: u64| metric(bytes as f64) + "B";
    term(page, "Weights", &bytes(totals.weight_bytes));
    if let Some(float) = totals.float_bytes {
        term(page, "Weights of the float model", &bytes(float));
    }
    for (name, share) in [
        ("Accuracy", totals.accuracy),
        ("Accuracy of the float model", totals.float_accuracy),
        ("Agreement with the float model", totals.agreement),
    ] {
        if let Some(share) = share {
            term(page, name, &percent(share));
        }
    }
    if let Some(samples) = totals.samples {
        term(page, "Samples evaluated", &samples.to_string());
    }
    if let Some(time) = totals.seconds {
        term(page, "Latency", &seconds(time));
    }
    term(page, "Multiply-accumulates", &metric(totals.macs as f64));
    term(page, "Bit operations", &metric(totals.bops as f64));
    term(
        page,
        "Energy of a sample, estimated",
        &joules(totals.energy),
    );
    term(page, "The same in float", &joules(totals.float_energy));
    if let Some(search) = &report.search {
        term(
            page,
            "Search",
            &format!("{} under {}", search.method, search.budget),
        );
        let cost = format!(
            "{}, {} models evaluated",
            seconds(search.seconds),
            search.evaluated
        );
        term(page, "Cost of the search", &cost);
        for (name, value) in &search.details {
            term(page, name, value);
        }
    }
    page.push_str("</dl>\n");
}

fn warnings(page: &mut String, report: &Report) {
    if report.warnings.is_empty() {
        return;
    }
    heading(page, "Warnings");
    page.push_str("<ul>\n");
    for warning in &report.warnings {
        _ = writeln!(page, "<li class=\"bad\">{}</li>", escape(warning));
    }
    page.push_str("</ul>\n");
}

fn proof(page: &mut String, report: &Report) {
    heading(page, "Integers only");
    let class = if report.proof.holds() { "good" } else { "bad" };
    _ = writeln!(
        page,
        "<p class=\"{class}\">{}</p>",
        escape(&report.proof.verdict())
    );
    if report.proof.edges.is_empty() {
        return;
    }
    let edges = report.proof.edges.iter();
    let edges: Vec<String> = edges
        .map(|node| format!("{} ({})", node.name, node.what))
        .collect();
    _ = writeln!(page, "<p>At the edges: {}</p>", escape(&edges.join(", ")));
}

/// A colour for each precision that the report names, the same in every chart.
fn colours(report: &Report) -> BTreeMap<&str, usize> {
    let named = report.layers.iter().flat_map(|layer| {
        let judged = layer.sensitivity.keys().map(String::as_str);
        judged.chain(layer.precision.as_deref())
    });
    let labels: BTreeSet<&str> = named.collect();
    let numbered = labels.into_iter().enumerate();
    numbered
        .map(|(index, label)| (label, index % GREY))
        .collect()
}

fn legend(page: &mut String, colours: &BTreeMap<&str, usize>, shown: &BTreeSet<&str>) {
    page.push_str("<p>");
    for (label, colour) in colours.iter().filter(|(label, _)| shown.contains(*label)) {
        _ = write!(
            page,
            "<span class=\"key\"><svg viewBox=\"0 0 1 1\" aria-hidden=\"true\"><rect class=\"c{colour}\" width=\"1\" height=\"1\"/></svg></span>{}",
            escape(label)
        );
    }
    page.push_str("</p>\n");
}

fn bits(page: &mut String, report: &Report) {
    let layers = || {
        report
            .layers
            .iter()
            .filter_map(|layer| Some((layer, layer.precision.as_deref()?, layer.bits?)))
    };
    if layers().next().is_none() {
        return;
    }
    let colours = colours(report);
    let shown = layers().map(|(_, label, _)| label).collect();
    let bar = |(layer, label, [weights, _]): (&LayerReport, &str, [u32; 2])| Bar {
        label: layer.name.clone(),
        value: f64::from(weights),
        shown: label.to_owned(),
        colour: colours.get(label).copied().unwrap_or(0),
    };
    heading(page, "Precision by layer");
    legend(page, &colours, &shown);
    let bars: Vec<Bar> = layers().map(bar).collect();
    page.push_str(&svg::bars(
        "Bits of a weight, by layer",
        "bits of a weight",
        &bars,
    ));
}

fn sensitivity(page: &mut String, report: &Report) {
    let labels = report
        .layers
        .iter()
        .flat_map(|layer| layer.sensitivity.keys());
    let shown: BTreeSet<&str> = labels.map(String::as_str).collect();
    if shown.is_empty() {
        return;
    }
    let colours = colours(report);
    let mut marks = Vec::new();
    let measured = report
        .layers
        .iter()
        .filter(|layer| !layer.sensitivity.is_empty());
    for (index, layer) in measured.enumerate() {
        for (label, &value) in &layer.sensitivity {
            marks.push(Point {
                x: (index + 1) as f64,
                y: value,
                label: format!("{} {label}: {value:.3e}", layer.name),
                colour: colours.get(label.as_str()).copied().unwrap_or(0),
                strong: layer.precision.as_ref() == Some(label),
            });
        }
    }
    heading(page, "Sensitivity by layer");
    legend(page, &colours, &shown);
    let title = "Sensitivity by layer, one mark a precision, the chosen one large";
    let axes = (
        ("layers, first to last", Axis::Linear),
        ("sensitivity", Axis::Log),
    );
    page.push_str(&svg::points(title, axes.0, axes.1, &marks));
}

fn pareto(page: &mut String, report: &Report) {
    if report.pareto.is_empty() {
        return;
    }
    heading(page, "Accuracy against size and latency");
    page.push_str("<p>Accuracy is here the share of calibration samples (the first 128) answered as the float model answers them. Sizes are those of weights, biases and multipliers; models are named by them as a share of all layers with 8 bits.</p>\n");
    let chart = |name: &str, unit: &str, cost: &dyn Fn(&super::ParetoPoint) -> Option<f64>| {
        let mark = |point: &super::ParetoPoint| {
            Some(Point {
                x: cost(point)?,
                y: 100.0 * point.accuracy,
                label: format!(
                    "{}: {}, {}B",
                    point.label,
                    percent(point.accuracy),
                    metric(point.bytes as f64)
                ),
                colour: if point.front { 0 } else { GREY },
                strong: point.chosen,
            })
        };
        let marks: Vec<Point> = report.pareto.iter().filter_map(mark).collect();
        let title = format!("Accuracy against {name}, the chosen model large, beaten ones grey");
        if marks.is_empty() {
            return String::new();
        }
        let (across, up) = ((unit, Axis::Linear), ("accuracy, %", Axis::Linear));
        svg::points(&title, across, up, &marks)
    };
    page.push_str(&chart("size", "size, kB", &|point| {
        Some(point.bytes as f64 / 1e3)
    }));
    page.push_str(&chart("latency", "latency, ms", &|point| {
        Some(1e3 * point.seconds?)
    }));
    page.push_str("<div class=\"scroll\"><table><tr><th>model</th><th class=\"n\">accuracy</th><th class=\"n\">size</th><th class=\"n\">latency</th></tr>\n");
    for point in &report.pareto {
        _ = writeln!(
            page,
            "<tr><td>{}{}</td><td class=\"n\">{}</td><td class=\"n\">{}B</td><td class=\"n\">{}</td></tr>",
            escape(&point.label),
            match (point.chosen, point.front) {
                (true, _) => " <strong>(chosen)</strong>",
                (false, true) => " (Pareto front)",
                (false, false) => "",
            },
            percent(point.accuracy),
            metric(point.bytes as f64),
            point.seconds.map(seconds).unwrap_or_default()
        );
    }
    page.push_str("</table></div>\n");
}

fn noise(page: &mut String, report: &Report) {
    let mut chart =
        |name: &str, title: &str, unit: &str, value: fn(&LayerReport) -> Option<(f64, String)>| {
            let bar = |layer: &LayerReport| {
                let (value, shown) = value(layer)?;
                Some(Bar {
                    label: layer.name.clone(),
                    value,
                    shown,
                    colour: 2,
                })
            };
            let bars: Vec<Bar> = report.layers.iter().filter_map(bar).collect();
            if !bars.is_empty() {
                heading(page, name);
                page.push_str(&svg::bars(title, unit, &bars));
            }
        };
    let title = "Signal to quantization noise against the float model, by layer";
    chart("Signal to noise", title, "SQNR, dB", |layer| {
        layer.sqnr.map(|db| (db, format!("{db:.1} dB")))
    });
    let title = "Share of results at the ends of their range, by layer";
    chart("Saturation", title, "saturated, %", |layer| {
        layer.saturated.map(|share| (100.0 * share, percent(share)))
    });
}

fn layers(page: &mut String, report: &Report) {
    heading(page, "Layers");
    page.push_str(
        "<div class=\"scroll\"><table><tr><th>name</th><th>op</th><th>precision</th><th>shape</th>",
    );
    for name in ["MACs", "bytes", "time", "SQNR, dB", "saturated"] {
        _ = write!(page, "<th class=\"n\">{name}</th>");
    }
    page.push_str("</tr>\n");
    for layer in &report.layers {
        _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
            escape(&layer.name),
            escape(&layer.op),
            escape(layer.precision.as_deref().unwrap_or_default()),
            shape(&layer.shape)
        );
        let count = |value: u64| {
            if value == 0 {
                String::new()
            } else {
                value.to_string()
            }
        };
        for cell in [
            count(layer.macs),
            count(layer.weight_bytes),
            layer.seconds.map(seconds).unwrap_or_default(),
            layer.sqnr.map(|db| format!("{db:.1}")).unwrap_or_default(),
            layer.saturated.map(percent).unwrap_or_default(),
        ] {
            _ = write!(page, "<td class=\"n\">{cell}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

fn histograms(
    page: &mut String,
    name: &str,
    layers: &[LayerReport],
    of: fn(&LayerReport) -> Option<&super::Histogram>,
) {
    let present: Vec<_> = layers
        .iter()
        .filter_map(|layer| Some((layer, of(layer)?)))
        .collect();
    if present.is_empty() {
        return;
    }
    heading(page, name);
    page.push_str("<div class=\"small\">\n");
    for (layer, histogram) in present {
        let title = format!("{name} of {}, height by the root of the count", layer.name);
        _ = writeln!(
            page,
            "<figure>{}<figcaption>{}</figcaption></figure>",
            svg::histogram(&title, histogram, 0),
            escape(&layer.name)
        );
    }
    page.push_str("</div>\n");
}

fn provenance(page: &mut String, report: &Report) {
    if report.provenance.is_empty() {
        return;
    }
    heading(page, "Provenance");
    page.push_str("<dl>\n");
    for (name, value) in &report.provenance {
        term(page, name, value);
    }
    page.push_str("</dl>\n");
}
