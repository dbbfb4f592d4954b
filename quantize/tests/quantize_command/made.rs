//! Models that are made: the same ones again, within their budget, and what runs them agrees.

use std::fs;

use requant_conformance::npz::test_data;
use requant_import::onnx::{ImportOptions, import_file};
use requant_npy::{Array, Npz};
use requant_quantize::report::Report;
use tempfile::TempDir;

use super::onnx::Model;
use super::process::*;

#[test]
fn the_same_inputs_give_the_same_file() {
    let folder = folder();
    for (model, flags) in [
        ("residual", "--budget size=0.7,bops=0.8 --activations auto"),
        ("plain", "--weights int4 --activations int4"),
        ("residual", "--weights codebook --calibrator entropy"),
    ] {
        let mut made: Vec<Vec<u8>> = Vec::new();
        for (threads, pool) in [
            ("--threads 1", "2"),
            ("--threads 2", "1"),
            ("", "1"),
            ("", "2"),
        ] {
            let line =
                format!("{model}.onnx --calibration data.npz --output net {flags} {threads}");
            let outcome = command(&folder, &line)
                .env("RAYON_NUM_THREADS", pool)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&outcome.stderr);
            assert_eq!(outcome.status.code(), Some(0), "{line}: {text}");
            made.push(artefact(&folder, "net"));
        }
        for other in &made {
            assert!(*other == made[0], "{model} {flags}");
        }
    }
}

#[test]
fn what_is_written_can_be_run_and_read() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let text = good(
        &folder,
        "plain.onnx --calibration data.npz --evaluate labelled.npz --output models/net --export-qdq qdq.onnx",
    );
    assert!(text.ends_with("models/net/1/model.safetensors\n"), "{text}");
    assert!(text.contains("On 40 evaluation samples: float "), "{text}");
    assert_eq!(
        answers(&folder, "models/net", "cpu"),
        answers(&folder, "models/net", "reference")
    );
    let json = fs::read_to_string(at("models/net/report.json")).unwrap();
    let report: Report = serde_json::from_str(&json).unwrap();
    let graph = graph(&folder, "models/net");
    assert_eq!((&report.model[..], &graph.name[..]), ("net", "net"));
    let names: Vec<&str> = report.layers.iter().map(|l| &l.name[..]).collect();
    for layer in ["conv1", "conv2", "conv3", "fc"] {
        assert!(names.contains(&layer), "{names:?}");
    }
    assert_eq!(graph.provenance["source"], "plain.onnx");
    let page = fs::read_to_string(at("models/net/report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg"));
    assert!(!at("models/.net.work").exists());
    // Others run the exported model; so does our importer, which rounds as they do.
    let imported = import_file(&at("qdq.onnx"), &ImportOptions::default()).unwrap();
    imported.validate().unwrap();
    let (ours, theirs) = (
        answers(&folder, "models/net", "cpu"),
        answers(&folder, "qdq.onnx", "cpu"),
    );
    let values = |array: &Array| -> Vec<f32> {
        let (values, _) = array.data.as_chunks();
        values.iter().map(|&v| f32::from_le_bytes(v)).collect()
    };
    let (ours, theirs) = (values(&ours), values(&theirs));
    let largest = ours.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() <= 0.03 * largest, "{a} {b} of {largest}");
    }

    good(
        &folder,
        "residual.onnx --calibration data.npz --output net --report page.html --export-qdq sum.onnx",
    );
    assert!(at("page.html").is_file() && !at("net/report.html").exists());
    assert!(at("sum.onnx").is_file());
    assert_eq!(
        answers(&folder, "net", "cpu"),
        answers(&folder, "net", "reference")
    );
}

#[test]
fn every_word_of_every_flag_makes_a_model() {
    let folder = folder();
    let each = |flag: &str, words: &str| -> Vec<String> {
        words
            .split(' ')
            .map(|word| format!("--{flag} {word}"))
            .collect()
    };
    let mut lines = each("weights", "int8 int4 int2 ternary binary codebook auto");
    lines.extend(each("activations", "int8"));
    lines.push("--weights int4 --activations int4 --rounding nearest".to_owned());
    lines.push("--activations auto --budget bops=0.5".to_owned());
    lines.extend(each("rounding", "nearest gptq adaround descent block auto"));
    lines.extend(each("calibrator", "minmax ema percentile entropy mse"));
    lines.extend(each("equalize", "none weights smooth"));
    for group in ["32", "64"] {
        lines.push(format!("--weights int4 --group {group}"));
        lines.push(format!("--weights int2 --group {group} --rounding gptq"));
    }
    lines.push("--weights int4 --activations int4 --group 32".to_owned());
    for search in ["ilp", "rl", "nas", "greedy"] {
        lines.push(format!("--search {search} --budget size=0.8"));
    }
    for sensitivity in ["kl", "mse", "fisher", "hessian"] {
        lines.push(format!("--sensitivity {sensitivity} --budget size=0.8"));
    }
    lines.push("--budget accuracy=0.9".to_owned());
    lines.push("--fix conv2=w4a4 --fix conv1=w4a8 --fix fc=w1a8".to_owned());
    for line in lines {
        let rest = "--calibration data.npz --output net";
        let text = good(&folder, &format!("residual.onnx {rest} {line}"));
        assert!(text.contains("divergence"), "{line}: {text}");
        let cpu = answers(&folder, "net", "cpu");
        assert_eq!(cpu, answers(&folder, "net", "reference"), "{line}");
        // Something is computed, and not the same for all samples.
        let rows: Vec<_> = cpu.data.chunks_exact(20).collect();
        assert!(rows.iter().any(|row| *row != rows[0]), "{line}");
    }
}

/// Bytes of the layers' weights and of nine more a channel: bias, and what its requantization needs.
fn bytes(folder: &TempDir, name: &str) -> u64 {
    report(folder, name)
        .layers
        .iter()
        .map(|l| l.weight_bytes)
        .sum()
}

#[test]
fn a_budget_is_kept_or_the_smallest_is_named() {
    let folder = folder();
    let line = |output: &str, more: &str| {
        format!("plain.onnx --calibration data.npz --output {output} {more}")
    };
    good(&folder, &line("eight", "--rounding nearest"));
    let all = bytes(&folder, "eight");
    for (output, fraction) in [("a", 0.9), ("b", 0.7)] {
        good(
            &folder,
            &line(
                output,
                &format!("--rounding nearest --budget size={fraction}"),
            ),
        );
        let found = bytes(&folder, output);
        assert!(found as f64 <= fraction * all as f64, "{found} of {all}");
        let mut layers = graph(&folder, output).layers();
        layers.retain(|layer| layer.precision.is_some());
        let ends = [&layers[0], &layers[layers.len() - 1]];
        for end in ends {
            assert_eq!(end.precision.unwrap().label(), "w8a8", "{}", end.name);
        }
    }
    let asked = line("c", "--rounding nearest --budget size=0.05");
    bad(
        &folder,
        &asked,
        "budget size=0.05 cannot be reached: the smallest reachable value is size=",
    );
    // 0.2 is not always what the limit divided by the whole is.
    bad(
        &folder,
        &line("c", "--rounding nearest --budget bops=0.2"),
        "budget bops=0.2 cannot be reached: ",
    );
    let text = run(&folder, &asked).stderr;
    let least = text.trim().rsplit_once('=').unwrap().1;
    good(
        &folder,
        &line("c", &format!("--rounding nearest --budget size={least}")),
    );
    assert!(bytes(&folder, "c") < bytes(&folder, "b"));
    bad(
        &folder,
        &line("d", "--fix conv9=w4a8"),
        "--fix names layer 'conv9', the model has conv1, conv2, conv3, fc",
    );
}

#[test]
fn odd_values_make_a_model_that_runs() {
    let folder = folder();
    // Dead weights beside a large bias; a channel of weights that all but vanish.
    let mut model = Model::new(4);
    model.input("x", &["N", "2", "8", "8"]);
    let weights = [0.0, 0.0, 1e-30, -1e-30, 0.5, -0.25];
    model.conv_of(("x", "a"), &[3, 2, 1, 1], &weights, &[1e4, -3.0, 0.5], 1);
    model
        .relu("a", "b")
        .conv(("b", "c"), (4, 3, 3, 1))
        .relu("c", "d");
    model.head("d", 4, 5);
    save(&folder, "dead.onnx", &model);
    let mut model = Model::new(5);
    model.input("x", &["N", "2", "8", "8"]);
    model.conv_of(("x", "a"), &[3, 2, 1, 1], &[0.0; 6], &[0.0; 3], 1);
    model
        .relu("a", "b")
        .conv(("b", "c"), (4, 3, 3, 1))
        .head("c", 4, 5);
    save(&folder, "zeros.onnx", &model);
    let count = 3 * 2 * 64;
    archive(
        &folder,
        "zero.npz",
        &[("x", reals(&[3, 2, 8, 8], &vec![0.0; count]))],
    );
    archive(
        &folder,
        "same.npz",
        &[("x", reals(&[3, 2, 8, 8], &vec![-7.5; count]))],
    );
    archive(
        &folder,
        "tiny.npz",
        &[("x", reals(&[3, 2, 8, 8], &vec![1e-38; count]))],
    );
    archive(
        &folder,
        "huge.npz",
        &[("x", reals(&[3, 2, 8, 8], &vec![1e12; count]))],
    );
    let kinds = [
        "",
        "--weights int4 --activations int4",
        "--weights int2 --rounding nearest",
        "--weights ternary",
        "--weights binary --calibrator entropy",
        "--weights codebook --calibrator mse",
        "--calibrator percentile",
        "--calibrator ema",
        "--budget size=0.9",
    ];
    for model in ["dead", "zeros", "plain"] {
        for data in ["zero", "same", "tiny", "huge", "data"] {
            for kind in kinds {
                if kind.contains("int4") && data != "zero" {
                    continue;
                }
                let line = format!(
                    "{model}.onnx --calibration {data}.npz --allow-constant --output net {kind}"
                );
                let outcome = run(&folder, &line);
                let text = &outcome.stderr;
                assert!(matches!(outcome.code, Some(0 | 2)), "{line}: {text}");
                assert!(!text.contains("panicked"), "{line}: {text}");
                if outcome.code == Some(2) {
                    // Only what no scale of the format can hold, or no bits can.
                    assert!(data == "huge" || kind.contains("budget"), "{line}: {text}");
                    continue;
                }
                let few = data == "data" || text.contains("warning: only 3 samples");
                assert!(few, "{line}: {text}");
                let said: &[&str] = match model {
                    "dead" => &["'conv1': all weights of 1 of its 3 output channels are 0"],
                    "zeros" => &[
                        "'conv1': all weights of 3 of its 3 output channels are 0",
                        "the result of 'conv1' is 0 in every sample",
                    ],
                    _ => &[],
                };
                let all = said.iter().all(|said| text.contains(said));
                assert!(all, "{line}: {text}");
                let usual = model == "plain" && data == "data";
                assert!(
                    !usual || !text.contains(" in every sample"),
                    "{line}: {text}"
                );
                assert_eq!(
                    answers(&folder, "net", "cpu"),
                    answers(&folder, "net", "reference"),
                    "{line}"
                );
            }
        }
    }
}

#[test]
fn without_data_there_is_a_warning() {
    let folder = folder();
    let outcome = run(&folder, "plain.onnx --output net --rounding nearest");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.starts_with("warning: calibrated on noise"),
        "{}",
        outcome.stderr
    );
    let json = fs::read_to_string(folder.path().join("net/report.json")).unwrap();
    assert!(json.contains("calibrated on noise"));
}

/// Pixels of one image.
const PIXELS: usize = 28 * 28;

#[test]
fn a_trained_network_keeps_its_answers() {
    let Some(data) = test_data("a_trained_network_keeps_its_answers") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let read = |file: &str, count: usize| {
        let mut npz = Npz::open(&data.join("eval/small").join(file)).unwrap();
        let images = npz.read("x").unwrap();
        let real = |&byte: &u8| (f32::from(byte) / 255.0 - 0.2860) / 0.3530;
        let values: Vec<f32> = images.data[..count * PIXELS].iter().map(real).collect();
        (npz, reals(&[count, 1, 28, 28], &values))
    };
    let (_, calibration) = read("fashion_mnist_calib.npz", 128);
    archive(&folder, "calibration.npz", &[("x", calibration)]);
    let (mut npz, images) = read("fashion_mnist_dev.npz", 200);
    let labels = npz.read("y").unwrap();
    let size = labels.element.size();
    let labels = Array {
        shape: vec![200],
        data: labels.data.slice(..200 * size),
        ..labels
    };
    let few = Array {
        shape: vec![8, 1, 28, 28],
        data: images.data.slice(..8 * PIXELS * 4),
        ..images.clone()
    };
    archive(&folder, "evaluation.npz", &[("x", images), ("y", labels)]);
    requant_npy::write(&folder.path().join("x.npy"), &few).unwrap();
    let model = data.join("models/fmnist_resnet.onnx");
    let text = good(
        &folder,
        &format!(
            "{} --calibration calibration.npz --evaluate evaluation.npz --rounding nearest --output net",
            model.display()
        ),
    );
    let line = text
        .lines()
        .find(|l| l.contains("evaluation samples"))
        .unwrap();
    let agreement: f64 = line.rsplit(' ').nth(1).unwrap().parse().unwrap();
    assert!(agreement > 96.0, "{line}");
    let graph = graph(&folder, "net");
    let ports = (
        &graph.value(graph.inputs[0]).name,
        &graph.value(graph.outputs[0]).name,
    );
    let ask = |backend: &str| {
        let (x, y) = ports;
        good(
            &folder,
            &format!("run net --input {x}=x.npy --output {y}=y.npy --backend {backend}"),
        );
        requant_npy::read(&folder.path().join("y.npy")).unwrap()
    };
    assert_eq!(ask("cpu"), ask("reference"));
}

/// An image of half the width made twice as large, which has no gradient here.
fn resized() -> Model {
    let mut model = Model::new(6);
    model.input("x", &["N", "2", "8", "8"]);
    model.conv(("x", "a"), (4, 2, 3, 1)).relu("a", "b");
    model.constant("sizes", &[4], &[1.0, 1.0, 2.0, 2.0]);
    let inputs = ["b", "", "sizes"];
    model.node_of("Resize", "up", &inputs, "c", &[("mode", "linear")]);
    model.conv(("c", "d"), (6, 4, 3, 2)).relu("d", "e");
    model.conv(("e", "f"), (6, 6, 3, 1)).relu("f", "g");
    model.head("g", 6, 5);
    model
}

#[test]
fn the_report_names_the_measure_of_sensitivity() {
    let folder = folder();
    save(&folder, "resized.onnx", &resized());
    let line = |model: &str, measure: &str| {
        format!(
            "{model} --calibration data.npz --output net --budget size=0.8 --sensitivity {measure}"
        )
    };
    let mut seen = Vec::new();
    for measure in ["kl", "mse", "fisher", "hessian"] {
        let text = good(&folder, &line("residual.onnx", measure));
        assert!(
            text.contains(&format!("sensitivity {measure},")),
            "{measure}: {text}"
        );
        let report = report(&folder, "net");
        assert_eq!(report.search.unwrap().details["sensitivity"], measure);
        assert_eq!(report.provenance["sensitivity"], measure);
        let layers = report.layers.iter().filter(|l| l.sensitivity.len() > 1);
        let harms: Vec<_> = layers.map(|layer| layer.sensitivity.clone()).collect();
        assert_eq!(harms.len(), 3);
        for harms in &harms {
            // Two bits hurt more than eight by any measure.
            assert!(harms["w2a8"] > 10.0 * harms["w8a8"], "{measure}: {harms:?}");
        }
        assert!(!seen.contains(&harms), "{measure} is another measure");
        seen.push(harms);
    }
    for measure in ["kl", "mse"] {
        good(&folder, &line("resized.onnx", measure));
    }
    fs::remove_dir_all(folder.path().join("net")).unwrap();
    for measure in ["fisher", "hessian"] {
        let cause = format!(
            "--sensitivity {measure}: node 'up': a resize that is no repetition of elements cannot be differentiated; kl and mse need no gradients"
        );
        bad(&folder, &line("resized.onnx", measure), &cause);
        bad(
            &folder,
            &format!("{} --activations auto", line("residual.onnx", measure)),
            &format!(
                "--sensitivity {measure} sees weights alone: --activations auto needs kl or mse"
            ),
        );
    }
}

/// A layer, and two outputs with three more each.
fn two_headed() -> Model {
    let mut model = Model::new(7);
    model.input("x", &["N", "2", "8", "8"]);
    model.conv(("x", "a"), (8, 2, 3, 1)).relu("a", "b");
    for head in ["p", "q"] {
        let [one, two, three] = [1, 2, 3].map(|step| format!("{head}{step}"));
        let first = ("b", one.as_str());
        model.conv(first, (8, 8, 3, 1)).relu(&one, &two);
        model.conv((two.as_str(), three.as_str()), (8, 8, 3, 1));
        model
            .conv((three.as_str(), head), (8, 8, 3, 1))
            .output(head);
    }
    model
}

#[test]
fn every_output_counts_in_a_search() {
    let folder = folder();
    save(&folder, "heads.onnx", &two_headed());
    for measure in ["kl", "mse", "fisher", "hessian"] {
        let line = format!(
            "heads.onnx --calibration data.npz --output net --budget size=0.6 --sensitivity {measure}"
        );
        good(&folder, &line);
        let report = report(&folder, "net");
        let layers = report.layers.iter().filter(|l| l.sensitivity.len() > 1);
        let harms: Vec<_> = layers.map(|layer| layer.sensitivity["w1a8"]).collect();
        assert_eq!(harms.len(), 5);
        // The heads are alike, so that no layer matters a hundred times as much as another.
        let least = harms.iter().copied().fold(f64::INFINITY, f64::min);
        let most = harms.iter().copied().fold(0.0, f64::max);
        assert!(least > 0.01 * most, "{measure}: {harms:?}");
    }
    // What agrees must agree in both: here the second alone is rough.
    let layer = |number: usize| format!("--fix conv{number}=w1a8");
    let rough = format!("{} {}", layer(5), layer(6));
    good(
        &folder,
        &format!("heads.onnx --calibration data.npz --output net {rough}"),
    );
    let agreement = report(&folder, "net").totals.agreement;
    assert_eq!(agreement, Some(0.0));
}

#[test]
fn tied_layers_have_one_precision() {
    let folder = folder();
    let line = "residual.onnx --calibration data.npz --output net --budget size=0.6";
    let precisions = |ties: &str| -> Vec<String> {
        good(&folder, &format!("{line} {ties}"));
        let layers = report(&folder, "net").layers.into_iter();
        layers.filter_map(|layer| layer.precision).collect()
    };
    let free = precisions("");
    assert_ne!(free[1], free[3], "{free:?}");
    let tied = precisions("--tie conv2,conv4");
    assert_eq!(tied[1], tied[3], "{tied:?}");
    let all = precisions("--tie conv2,conv4 --tie conv4,conv3");
    assert_eq!([&all[1], &all[2]], [&all[3], &all[3]], "{all:?}");
    fs::remove_dir_all(folder.path().join("net")).unwrap();
    for (ties, cause) in [
        (
            "--tie conv2,conv9",
            "--tie names layer 'conv9', the model has conv1, conv2, conv3, conv4, fc",
        ),
        ("--tie conv2", "'conv2' does not name two layers"),
        ("--tie conv1,conv2 --fix conv2=w4a8", "conv1"),
    ] {
        bad(&folder, &format!("{line} {ties}"), cause);
    }
    bad(
        &folder,
        "residual.onnx --calibration data.npz --output net --tie conv2,conv4",
        "--tie needs a --budget",
    );
}

#[test]
fn a_block_without_gradients_keeps_its_rounding() {
    let folder = folder();
    save(&folder, "resized.onnx", &resized());
    let obstacle = "node 'up': a resize that is no repetition of elements cannot be differentiated";
    for rounding in ["auto", "block"] {
        let line = format!(
            "resized.onnx --calibration data.npz --output net --weights int4 --activations int4 --rounding {rounding}"
        );
        let outcome = run(&folder, &line);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let warning = format!("a block is not reconstructed: {obstacle}");
        assert!(outcome.stderr.contains(&warning), "{}", outcome.stderr);
        let warnings = report(&folder, "net").warnings;
        assert_eq!(warnings.iter().filter(|w| **w == warning).count(), 1);
        assert_eq!(
            answers(&folder, "net", "cpu"),
            answers(&folder, "net", "reference")
        );
    }
}

#[test]
fn groups_bring_weights_nearer_and_are_counted() {
    let folder = folder();
    let line = |more: &str| {
        format!("residual.onnx --calibration data.npz --output net --weights int2 {more}")
    };
    let divergence = |more: &str| -> (f64, u64) {
        let text = good(&folder, &line(more));
        let (_, rest) = text.split_once("divergence ").unwrap();
        let figure = rest.split_whitespace().next().unwrap().parse().unwrap();
        (figure, bytes(&folder, "net"))
    };
    let (alone, small) = divergence("");
    let (grouped, large) = divergence("--group 32");
    assert!(grouped < alone, "{grouped} {alone}");
    // 72 weights a channel of three layers with eight channels make three groups each.
    assert_eq!(large - small, 3 * 8 * 3);
    assert_eq!(report(&folder, "net").provenance["group"], "32");
    fs::remove_dir_all(folder.path().join("net")).unwrap();
    for (more, cause) in [
        ("--group 16", "'16' is none of 32, 64 and 128"),
        ("--group all", "'all' is none of 32, 64 and 128"),
        (
            "--group 32 --export-qdq qdq.onnx",
            "--export-qdq goes without --group: ONNX has no groups for convolution 'conv1'",
        ),
        (
            "--group 32 --budget latency=0.9 --profile none.json",
            "--group goes without --budget latency",
        ),
    ] {
        bad(&folder, &line(more), cause);
    }
}

#[test]
fn equalised_models_say_so() {
    let folder = folder();
    let line = "residual.onnx --calibration data.npz --output net --equalize";
    for how in ["weights", "smooth"] {
        good(&folder, &format!("{line} {how}"));
        let report = report(&folder, "net");
        assert_eq!(report.provenance["equalize"], how);
        assert_eq!(report.warnings, [""; 0]);
    }
    let mut model = Model::new(8);
    model.input("x", &["N", "2", "8", "8"]);
    model.conv(("x", "a"), (4, 2, 3, 1)).head("a", 4, 5);
    model.output("a");
    save(&folder, "short.onnx", &model);
    let outcome = run(
        &folder,
        "short.onnx --calibration data.npz --output net --equalize smooth",
    );
    let warning = "warning: --equalize smooth changes nothing";
    assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
}

#[test]
fn a_network_may_end_at_log_probabilities() {
    let folder = folder();
    for (name, op) in [("soft", "Softmax"), ("log", "LogSoftmax")] {
        let mut model = Model::new(1);
        model.input("x", &["N", "2", "8", "8"]);
        model.conv(("x", "a"), (8, 2, 3, 1)).relu("a", "b");
        model.conv(("b", "c"), (8, 8, 3, 2)).relu("c", "d");
        model.logits(("d", "l"), 8, 5);
        model.node(op, "end", &["l"], "y", &[("axis", &[1])]);
        save(&folder, &format!("{name}.onnx"), model.output("y"));
    }
    for more in ["", "--weights int4 --activations int4", "--budget size=0.7"] {
        let [soft, log] = ["soft", "log"].map(|name| {
            let line = format!(
                "{name}.onnx --calibration data.npz --output {name} --export-qdq {name}-qdq.onnx"
            );
            good(&folder, &format!("{line} {more}"));
            let (cpu, reference) = (
                answers(&folder, name, "cpu"),
                answers(&folder, name, "reference"),
            );
            assert!(cpu == reference);
            let floats = cpu.data.as_chunks().0.iter();
            floats
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect::<Vec<f32>>()
        });
        assert_eq!(soft.len(), SAMPLES * 5);
        for (soft, log) in soft.iter().zip(&log) {
            let want = f64::from(*soft).ln();
            assert!(
                (want - f64::from(*log)).abs() < 1e-5 * want.abs().max(1.0),
                "{more}: {soft} {log}"
            );
        }
    }
    let mut inner = Model::new(1);
    inner.input("x", &["N", "2", "8", "8"]);
    inner
        .conv(("x", "a"), (8, 2, 3, 1))
        .logits(("a", "y"), 8, 5);
    inner.node("LogSoftmax", "inner", &["y"], "z", &[("axis", &[1])]);
    save(&folder, "inner.onnx", inner.relu("z", "w").output("w"));
    bad(
        &folder,
        "inner.onnx --calibration data.npz --output net",
        "inner (LogSoftmax): is read by other nodes",
    );
}

#[test]
fn layers_of_very_many_inputs_are_rounded_in_blocks() {
    let folder = folder();
    const INPUTS: usize = 5000;
    let values = Model::new(4).reals(SAMPLES * INPUTS, 1.0);
    for (name, tail) in [("dense", &[][..]), ("conv", &[1, 1])] {
        let dims = [&[SAMPLES, INPUTS][..], tail].concat();
        archive(
            &folder,
            &format!("{name}.npz"),
            &[("x", reals(&dims, &values))],
        );
        let mut model = Model::new(6);
        let weights = model.reals(16 * INPUTS, 0.02);
        let bias = model.reals(16, 0.1);
        if name == "dense" {
            model.input("x", &["N", "5000"]);
            model.constant("w", &[16, INPUTS], &weights);
            model.constant("b", &[16], &bias);
            model.node("Gemm", "conv1", &["x", "w", "b"], "a", &[("transB", &[1])]);
        } else {
            model.input("x", &["N", "5000", "1", "1"]);
            model.conv_of(("x", "c"), &[16, INPUTS, 1, 1], &weights, &bias, 1);
            model.node("Flatten", "flatten", &["c"], "a", &[("axis", &[1])]);
        }
        model.relu("a", "r");
        model.constant("fc.w", &[5, 16], &weights[..80]);
        model.constant("fc.b", &[5], &bias[..5]);
        let inputs = ["r", "fc.w", "fc.b"];
        model.node("Gemm", "fc", &inputs, "y", &[("transB", &[1])]);
        save(&folder, &format!("{name}.onnx"), model.output("y"));
    }
    let divergence = |name: &str, more: &str| -> f64 {
        let line =
            format!("{name}.onnx --calibration {name}.npz --output {name} --fix conv1=w4a8 {more}");
        let text = good(&folder, &line);
        let (_, rest) = text.split_once("divergence ").unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let nearest = divergence("dense", "--rounding nearest");
    let found = ["dense", "conv"].map(|name| divergence(name, ""));
    assert!(found[0] < 0.5 * nearest, "{found:?} {nearest}");
    assert_eq!(found[0], found[1]);
}
