//! The HTML page: a small XML reader walks it, so a page that is not well-formed, a name that is not
//! escaped or a layer that is left out is found.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;

use requant_model::{artifact, builtin};
use requant_quantize::report::{
    Histogram, ParetoPoint, Report, SearchSummary, html, layer_table, totals_text,
};

/// Reads a page as XML and gives the text of every element, by name, in order.
fn elements(page: &str) -> BTreeMap<String, Vec<String>> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap().trim();
    let mut open: Vec<(String, String)> = Vec::new();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    while !rest.is_empty() {
        let at = rest.find('<').unwrap();
        let (text, tail) = rest.split_at(at);
        if let Some((_, inner)) = open.last_mut() {
            inner.push_str(&unescape(text));
        } else {
            assert!(text.trim().is_empty(), "text outside: {text}");
        }
        let end = tail.find('>').unwrap();
        let tag = &tail[1..end];
        rest = &tail[end + 1..];
        assert!(!tag.contains('<'), "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            let (opened, inner) = open.pop().unwrap();
            assert_eq!(opened, name);
            found.entry(opened).or_default().push(inner);
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        // Values stand in double quotes, so there are pairs of them with names before.
        let attributes = attributes.trim_end_matches('/');
        let parts: Vec<&str> = attributes.split('"').collect();
        assert!(
            parts.len() % 2 == 1 && parts.last().unwrap().trim().is_empty(),
            "{tag}"
        );
        for pair in parts[..parts.len() - 1].chunks(2) {
            let key = pair[0].trim().strip_suffix('=').unwrap();
            assert!(
                !key.starts_with("on") && key != "src" && key != "href",
                "{tag}"
            );
            found
                .entry(format!("@{key}"))
                .or_default()
                .push(unescape(pair[1]));
        }
        if tag.ends_with('/') {
            found
                .entry(name.trim_end_matches('/').to_owned())
                .or_default();
        } else {
            open.push((name.to_owned(), String::new()));
        }
    }
    assert!(open.is_empty(), "{open:?}");
    found
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        let (entity, tail) = after.split_once(';').unwrap();
        plain.push_str(before);
        plain.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "#39" => '\'',
            other => panic!("entity {other}"),
        });
        rest = tail;
    }
    plain + rest
}

/// The built-in model's report with everything that can be in one.
fn full() -> Report {
    let graph = artifact::read(builtin::FASHION).unwrap();
    let mut report = Report::of(&graph);
    for (index, layer) in report.layers.iter_mut().enumerate() {
        let value = index as f64;
        layer.seconds = Some(1e-5 * (value + 1.0));
        layer.sqnr = Some(20.0 + value);
        layer.saturated = Some(0.01 * value);
        if layer.precision.is_some() {
            let choice = |label: &str, value: f64| (label.to_owned(), value);
            layer.sensitivity = [choice("w8a8", 1e-4), choice("w4a8", 1e-2 * (value + 1.0))].into();
            layer.weights = Histogram::of(&[-1.0, 0.0, 0.5, 1.0], 8);
            layer.activations = Histogram::of(&[0.0, 2.0], 4);
        }
    }
    let point = |label: &str, accuracy, bytes, chosen| ParetoPoint {
        label: label.to_owned(),
        accuracy,
        seconds: Some(bytes as f64 * 1e-9),
        bytes,
        chosen,
        front: true,
    };
    report.pareto = vec![
        point("all w8a8", 0.91, 42_000, false),
        point("60 %", 0.905, 30_000, true),
    ];
    report.search = Some(SearchSummary {
        method: "ilp".to_owned(),
        budget: "size=0.6".to_owned(),
        seconds: 0.25,
        evaluated: 10,
        details: [("objective".to_owned(), "0.125".to_owned())].into(),
    });
    report.totals.accuracy = Some(0.905);
    report.totals.float_accuracy = Some(0.912);
    report.totals.agreement = Some(0.975);
    report.totals.samples = Some(2000);
    report
}

#[test]
fn every_layer_and_number_is_on_the_page() {
    let report = full();
    let found = elements(&html(&report));
    let cells = &found["td"];
    for layer in &report.layers {
        let at = cells.iter().position(|cell| *cell == layer.name).unwrap();
        assert_eq!(cells[at + 1], layer.op);
        assert_eq!(cells[at + 2], layer.precision.clone().unwrap_or_default());
        let shown = |value: u64| {
            if value == 0 {
                String::new()
            } else {
                value.to_string()
            }
        };
        assert_eq!(cells[at + 4], shown(layer.macs));
        assert_eq!(cells[at + 5], shown(layer.weight_bytes));
        assert_eq!(cells[at + 7], format!("{:.1}", layer.sqnr.unwrap()));
    }
    let layers = report
        .layers
        .iter()
        .filter(|layer| layer.precision.is_some())
        .count();
    // Bits, signal to noise and saturation, then the keys of two legends.
    assert_eq!(found["rect"].len(), layers + 2 * report.layers.len());
    // Two sensitivities a layer, two points on each Pareto chart.
    assert_eq!(found["circle"].len(), 2 * layers + 4);
    assert_eq!(found["figure"].len(), 2 * layers);
    for text in [
        "90.5 %",
        "91.2 %",
        "97.5 %",
        "2000",
        "ilp under size=0.6",
        "0.125",
    ] {
        assert!(found["dd"].iter().any(|value| value == text), "{text}");
    }
    assert!(
        found["p"]
            .iter()
            .any(|text| text == "float ops between the edges: none")
    );
    assert!(!found.contains_key("script"));
    assert_eq!(found["svg"].len(), found["@viewBox"].len());
}

#[test]
fn hostile_names_stay_text() {
    let mut report = full();
    let name = "</title><script>alert('1')</script>&amp;\"\u{1}";
    report.model = name.to_owned();
    for layer in &mut report.layers {
        layer.name = name.to_owned();
    }
    report.provenance = [(name.to_owned(), name.to_owned())].into();
    report.pareto[0].label = name.to_owned();
    report.warnings.push(name.to_owned());
    let page = html(&report);
    let found = elements(&page);
    assert!(!found.contains_key("script"));
    let shown = name.replace('\u{1}', "\u{fffd}");
    for element in ["td", "dt", "dd", "li", "figcaption"] {
        assert!(found[element].contains(&shown), "{element}");
    }
    assert!(
        found["@aria-label"]
            .iter()
            .any(|label| label.contains(&shown))
    );
}

#[test]
fn a_bare_report_has_no_empty_charts() {
    let graph = artifact::read(builtin::FASHION).unwrap();
    let found = elements(&html(&Report::of(&graph)));
    assert_eq!(
        found["h2"],
        [
            "Integers only",
            "Precision by layer",
            "Layers",
            "Provenance"
        ]
    );
    elements(&html(&Report::default()));
}

#[test]
fn the_terminal_has_a_row_a_layer() {
    let report = full();
    let table = layer_table(&report);
    let mut lines = table.lines();
    let header = lines.next().unwrap();
    assert!(
        header.contains("precision") && header.ends_with("saturated"),
        "{header}"
    );
    for (layer, line) in report.layers.iter().zip(lines) {
        assert!(line.trim_start().starts_with(&layer.name), "{line}");
    }
    assert_eq!(table.lines().count(), report.layers.len() + 1);
    let totals = totals_text(&report);
    assert!(
        totals.contains("accuracy: 90.5 % (float 91.2 %) on 2000 samples"),
        "{totals}"
    );
    assert!(
        totals.contains("float ops between the edges: none"),
        "{totals}"
    );
}
