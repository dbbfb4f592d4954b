//! Models, data, places and flags that are refused: with one line that names them, and nothing written.

use std::fs;

use super::onnx::{self, Model};
use super::process::*;

#[test]
fn bad_models_are_refused_by_name() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("text.onnx"), "no model at all").unwrap();
    fs::write(at("empty.onnx"), "").unwrap();
    let whole = onnx::plain().bytes();
    fs::write(at("cut.onnx"), &whole[..whole.len() / 2]).unwrap();
    good(
        &folder,
        "plain.onnx --calibration data.npz --output q --rounding nearest --export-qdq qdq.onnx",
    );
    let one = |build: &dyn Fn(&mut Model)| {
        let mut model = Model::new(9);
        build(&mut model);
        model
    };
    let cases: [(&str, Model); 7] = [
        (
            "through",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"])
                    .conv(("x", "a"), (4, 2, 3, 1))
                    .head("a", 4, 5)
                    .output("x");
            }),
        ),
        (
            "op",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"])
                    .conv(("x", "a"), (4, 2, 3, 1));
                m.node("Frobnicate", "odd_one", &["a"], "b", &[])
                    .head("b", 4, 5);
            }),
        ),
        (
            "dynamic",
            one(&|m| {
                m.input("x", &["N", "2", "height", "8"])
                    .conv(("x", "a"), (4, 2, 3, 1))
                    .head("a", 4, 5);
            }),
        ),
        (
            "nan",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"]);
                m.conv_of(("x", "a"), &[1, 2, 1, 1], &[1.0, f32::NAN], &[0.0], 1)
                    .head("a", 1, 5);
            }),
        ),
        (
            "infinite",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"]);
                m.conv_of(("x", "a"), &[1, 2, 1, 1], &[1.0, 0.5], &[f32::INFINITY], 1)
                    .head("a", 1, 5);
            }),
        ),
        (
            "large",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"]);
                m.conv_of(("x", "a"), &[1, 2, 1, 1], &[3e38, 3e38], &[0.0], 1);
                m.node("Mul", "square", &["a", "a"], "b", &[])
                    .head("b", 1, 5);
            }),
        ),
        (
            "layerless",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"])
                    .relu("x", "y")
                    .output("y");
            }),
        ),
    ];
    for (name, model) in &cases {
        save(&folder, &format!("{name}.onnx"), model);
    }
    for (model, cause) in [
        ("none", "none.onnx: No such file"),
        ("text", "text.onnx: "),
        ("empty", "empty.onnx: "),
        ("cut", "cut.onnx: "),
        ("qdq", "qdq.onnx: "),
        ("op", "Frobnicate"),
        ("through", "through.onnx: output 'x': is an input too"),
        ("dynamic", "height"),
        ("nan", "conv1"),
        ("infinite", "conv1"),
        ("large", "activation 'a': element 1 is inf"),
        ("layerless", "no convolution or matrix product"),
    ] {
        for flags in ["", "--rounding nearest"] {
            let line = format!("{model}.onnx --calibration data.npz --output net {flags}");
            bad(&folder, &line, cause);
        }
    }
    bad(
        &folder,
        "q/1/model.safetensors --calibration data.npz --output net",
        "model.safetensors: ",
    );
    bad(
        &folder,
        ". --calibration data.npz --output net",
        "Is a directory",
    );
}

#[test]
fn bad_data_is_refused_by_name() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let mut values = vec![0.5f32; 4 * 128];
    values[0] = -0.5;
    let dims = [4, 2, 8, 8];
    let with = |value: f32| {
        let mut values = values.clone();
        values[128 + 7] = value;
        reals(&dims, &values)
    };
    archive(&folder, "nan.npz", &[("x", with(f32::NAN))]);
    archive(&folder, "inf.npz", &[("x", with(f32::INFINITY))]);
    archive(&folder, "shape.npz", &[("x", reals(&[8, 64], &values))]);
    archive(&folder, "empty.npz", &[("x", reals(&[0, 2, 8, 8], &[]))]);
    archive(&folder, "nothing.npz", &[]);
    archive(
        &folder,
        "many.npz",
        &[("a", reals(&dims, &values)), ("b", reals(&dims, &values))],
    );
    archive(
        &folder,
        "few.npz",
        &[("x", reals(&dims, &values)), ("y", classes(&[0, 1]))],
    );
    archive(
        &folder,
        "beyond.npz",
        &[("x", reals(&dims, &values)), ("y", classes(&[0, 1, 5, 2]))],
    );
    archive(
        &folder,
        "reals.npz",
        &[("x", reals(&dims, &values)), ("y", reals(&[4], &[0.5; 4]))],
    );
    // Labels count only where accuracy is measured.
    good(
        &folder,
        "plain.onnx --calibration reals.npz --output with --rounding nearest",
    );
    fs::write(at("text.npz"), "no archive").unwrap();
    fs::create_dir(at("void")).unwrap();
    for (flags, cause) in [
        ("--calibration none.npz", "none.npz: No such file"),
        ("--calibration x.npy", "x.npy: neither a .npz archive"),
        ("--calibration text.npz", "text.npz: "),
        ("--calibration void", "void: no samples"),
        ("--calibration empty.npz", "empty.npz: no samples"),
        ("--calibration nothing.npz", "no array for the input 'x'"),
        ("--calibration many.npz", "no array for the input 'x'"),
        (
            "--calibration shape.npz",
            "has shape [8, 64], the input 'x' takes [samples, 2, 8, 8]",
        ),
        (
            "--calibration nan.npz",
            "nan.npz: sample 1 of array 'x' holds NaN at element 7",
        ),
        (
            "--calibration inf.npz",
            "inf.npz: sample 1 of array 'x' holds inf at element 7",
        ),
        (
            "--calibration data.npz --evaluate data.npz",
            "data.npz: no labels",
        ),
        (
            "--calibration data.npz --evaluate none.npz",
            "none.npz: No such file",
        ),
        (
            "--calibration data.npz --evaluate few.npz",
            "labels 'y' are",
        ),
        (
            "--calibration data.npz --evaluate reals.npz",
            "labels 'y' are",
        ),
        (
            "--calibration data.npz --evaluate beyond.npz",
            "beyond.npz: label 5 of sample 2 is no class: the model has 5",
        ),
    ] {
        bad(&folder, &format!("plain.onnx --output net {flags}"), cause);
    }
}

#[test]
fn places_that_take_no_results_are_found_first() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "").unwrap();
    fs::create_dir_all(at("odd")).unwrap();
    fs::write(at("odd/1"), "").unwrap();
    fs::create_dir_all(at("page/report.html")).unwrap();
    fs::create_dir_all(at("table/report.json")).unwrap();
    fs::create_dir_all(at("model/1/model.safetensors")).unwrap();
    let source = fs::read(at("plain.onnx")).unwrap();
    for (flags, cause) in [
        ("--output file", "--output file: file is not a folder"),
        (
            "--output file/net",
            "--output file/net: file is not a folder",
        ),
        ("--output odd", "--output odd: odd/1 is not a folder"),
        (
            "--output page",
            "--output page: page/report.html: is a directory",
        ),
        (
            "--output table",
            "--output table: table/report.json: is a directory",
        ),
        (
            "--output model",
            "--output model: model/1/model.safetensors: is a directory",
        ),
        ("--output /proc/none/net", "--output /proc/none/net: "),
        ("--output ..", "no folder name"),
        (
            "--output net --report none/page.html",
            "none/page.html: No such file",
        ),
        ("--output net --report odd", "odd: is a directory"),
        (
            "--output net --export-qdq none/q.onnx",
            "none/q.onnx: No such file",
        ),
        (
            "--output net --export-qdq plain.onnx",
            "--export-qdq plain.onnx: would overwrite",
        ),
        (
            "--output net --report ./data.npz",
            "--report ./data.npz: would overwrite",
        ),
        (
            "--output net --report a --export-qdq ./a",
            "--export-qdq ./a: would overwrite",
        ),
        (
            "--output net --export-qdq /dev/full",
            "/dev/full: No space left",
        ),
        (
            "--output net --report /dev/full",
            "/dev/full: No space left",
        ),
    ] {
        let line = format!("plain.onnx --calibration data.npz --rounding nearest {flags}");
        bad(&folder, &line, cause);
    }
    assert!(fs::read(at("plain.onnx")).unwrap() == source);
    // What is there is replaced by what is made, and only then.
    good(
        &folder,
        "plain.onnx --calibration data.npz --rounding nearest --output net",
    );
    let made = artefact(&folder, "net");
    bad(
        &folder,
        "plain.onnx --calibration data.npz --output net --weights int4 --report /dev/full",
        "/dev/full",
    );
    assert!(artefact(&folder, "net") == made);
    // A device stays a device.
    good(
        &folder,
        "plain.onnx --calibration data.npz --rounding nearest --output net --report /dev/null --export-qdq /dev/null",
    );
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn bad_flags_are_refused_in_one_line() {
    let folder = folder();
    for (flags, cause) in [
        ("--weights int3", "int3"),
        ("--activations int2", "int2"),
        ("--calibrator best", "best"),
        ("--rounding up", "up"),
        ("--search luck", "luck"),
        ("--budget size=0", "size"),
        ("--budget size=nan", "size"),
        ("--budget size=-1", "size"),
        ("--budget weight=0.5", "weight"),
        ("--budget size", "size"),
        ("--budget size=0.5,size=0.6", "size"),
        ("--fix conv1", "LAYER=PRECISION"),
        ("--tie conv2,conv2", "does not name two layers"),
        ("--fix conv1=w9a8", "w9a8"),
        (
            "--fix conv1=w4a8 --fix conv2=w4a8 --fix conv1=w8a8",
            "--fix names layer 'conv1' twice: conv1=w4a8 and conv1=w8a8",
        ),
        ("--threads 0", "0"),
        ("--seed -1", "-1"),
        ("--backend tpu", "tpu"),
        ("--activations auto", "--budget"),
        ("--weights int2 --activations int4", "--weights int4"),
        ("--budget latency=0.7", "needs --profile"),
        (
            "--budget latency=0.7 --profile none.json",
            "'none.json': No such file",
        ),
        ("--budget latency=0.7 --profile plain.onnx", "plain.onnx"),
    ] {
        let line = format!("plain.onnx --calibration data.npz --output net {flags}");
        bad(&folder, &line, cause);
    }
    bad(&folder, "plain.onnx --calibration data.npz", "--output");
    bad(&folder, "--output net", "MODEL");
}

#[test]
fn what_has_no_effect_is_told_and_strict_refuses_it() {
    let folder = folder();
    // Every sample is the same, and a channel of the first layer has no weights.
    archive(
        &folder,
        "same.npz",
        &[("x", reals(&[SAMPLES, 2, 8, 8], &[0.5; SAMPLES * 128]))],
    );
    let mut dead = Model::new(9);
    dead.input("x", &["N", "2", "8", "8"]);
    dead.conv_of(
        ("x", "a"),
        &[2, 2, 1, 1],
        &[1.0, 0.5, 0.0, 0.0],
        &[0.1, 0.0],
        1,
    )
    .head("a", 2, 5);
    save(&folder, "dead.onnx", &dead);
    // No sum of samples reaches the threshold of its activation.
    let mut stuck = Model::new(9);
    stuck.input("x", &["N", "2", "8", "8"]);
    stuck
        .conv_of(
            ("x", "a"),
            &[2, 2, 1, 1],
            &[0.01, 0.02, 0.03, 0.04],
            &[-1e3, -1e3],
            1,
        )
        .relu("a", "b")
        .head("b", 2, 5);
    save(&folder, "stuck.onnx", &stuck);
    let mut whole = Model::new(9);
    whole.input("x", &["N", "2", "8", "8"]);
    whole
        .conv_of(("x", "a"), &[2, 2, 1, 1], &[0.0; 4], &[0.1, 0.2], 1)
        .head("a", 2, 5);
    save(&folder, "whole.onnx", &whole);
    for (net, found) in [
        ("plain.onnx --calibration same.npz", "holds nothing but 0.5"),
        (
            "whole.onnx --calibration data.npz",
            "layer 'conv1': all its weights are 0",
        ),
        (
            "stuck.onnx --calibration data.npz",
            "the result of 'conv1' is 0 in every sample",
        ),
    ] {
        let line = format!("{net} --output net");
        bad(&folder, &line, found);
        bad(&folder, &line, "--allow-constant");
    }
    for (line, warning) in [
        (
            "plain.onnx --calibration data.npz --search nas",
            "--search changes nothing without a --budget",
        ),
        (
            "plain.onnx --calibration data.npz --sensitivity mse",
            "--sensitivity changes nothing without a --budget",
        ),
        (
            "plain.onnx --calibration data.npz --backend cpu",
            "--backend changes nothing without a --profile",
        ),
        (
            "plain.onnx --calibration data.npz --group 32",
            "--group changes nothing: no layer got weights of 2 or 4 bits",
        ),
        ("plain.onnx", "calibrated on noise"),
        (
            "plain.onnx --calibration same.npz --allow-constant",
            "holds nothing but 0.5",
        ),
        (
            "stuck.onnx --calibration data.npz --allow-constant",
            "the result of 'conv1' is 0 in every sample",
        ),
        (
            "whole.onnx --calibration data.npz --allow-constant",
            "layer 'conv1': all weights of 2 of its 2 output channels are 0",
        ),
        (
            "dead.onnx --calibration data.npz",
            "layer 'conv1': all weights of 1 of its 2 output channels are 0",
        ),
    ] {
        let line = format!("{line} --rounding nearest --output net");
        bad(&folder, &format!("{line} --strict"), warning);
        let outcome = run(&folder, &line);
        assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
        let told = report(&folder, "net").warnings;
        assert!(told.iter().any(|told| told.contains(warning)), "{told:?}");
        fs::remove_dir_all(folder.path().join("net")).unwrap();
    }
    // Nothing to warn of.
    good(
        &folder,
        "plain.onnx --calibration data.npz --rounding nearest --output net --strict",
    );
}

#[test]
fn a_latency_budget_wants_a_profile_of_this_model_and_device() {
    let folder = folder();
    let line = "plain.onnx --calibration data.npz --rounding nearest --output net --backend cpu --threads 1";
    good(&folder, line);
    good(
        &folder,
        "profile net --backend cpu --threads 1 --output latency.json",
    );
    let text = good(
        &folder,
        &format!("{line} --weights int4 --budget latency=1 --profile latency.json"),
    );
    assert!(text.contains("latency"), "{text}");
    let asked = format!("{line} --budget latency=0.7 --profile");
    let refuse = |from: &str, to: &str, cause: &str| {
        let path = folder.path().join("latency.json");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(folder.path().join("other.json"), text.replacen(from, to, 1)).unwrap();
        bad(&folder, &format!("{asked} other.json"), cause);
    };
    refuse(
        "\"threads\": 1",
        "\"threads\": 64",
        "of number of threads 64, this is 1",
    );
    refuse(
        "\"backend\": \"cpu\"",
        "\"backend\": \"cuda\"",
        "of backend cuda",
    );
    refuse("\"format\": 2", "\"format\": 9", "of format 9, this is 2");
    let other = asked.replace("plain.onnx", "residual.onnx");
    bad(&folder, &format!("{other} latency.json"), "conv");
}

#[test]
fn a_layer_of_one_input_is_profiled_like_others() {
    let folder = folder();
    let mut model = Model::new(12);
    let weights = model.reals(8 + 40, 1.0);
    model.input("x", &["N", "1"]);
    model.constant("w", &[8, 1], &weights[..8]);
    model.constant("fc.w", &[5, 8], &weights[8..]);
    model.node("Gemm", "one", &["x", "w"], "a", &[("transB", &[1])]);
    model.relu("a", "b");
    model.node("Gemm", "fc", &["b", "fc.w"], "y", &[("transB", &[1])]);
    save(&folder, "one.onnx", model.output("y"));
    let text = good(
        &folder,
        "profile one.onnx --backend cpu --threads 1 --output one.json",
    );
    let coded = text.lines().find(|line| line.starts_with("wca8: "));
    assert!(
        coded.is_some_and(|line| line.contains("from its steps")),
        "{text}"
    );
}

#[test]
fn finished_steps_that_find_no_room_stop_nothing() {
    let folder = folder();
    fs::write(folder.path().join(".net.work"), "a file").unwrap();
    let line = "plain.onnx --calibration data.npz --output net";
    let outcome = run(&folder, line);
    let warning = "warning: finished steps could not be kept for --resume: ";
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    fs::remove_file(folder.path().join(".net.work")).unwrap();
    let made = artefact(&folder, "net");
    let note = "note: finished steps are kept in .net.work, --resume goes on from them";
    // Results that find no room say what they leave.
    let outcome = run(&folder, &format!("{line} --export-qdq /dev/full"));
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains(note), "{}", outcome.stderr);
    // So does a budget out of reach.
    let outcome = run(&folder, &format!("{line} --budget size=0.01"));
    assert_eq!(outcome.code, Some(2));
    assert!(folder.path().join(".net.work").is_dir());
    assert!(outcome.stderr.contains(note), "{}", outcome.stderr);
    good(&folder, &format!("{line} --resume"));
    assert!(artefact(&folder, "net") == made);
    assert!(!folder.path().join(".net.work").exists());
}

#[test]
fn values_beyond_every_scale_are_named() {
    let folder = folder();
    let mut values = Model::new(3).reals(SAMPLES * 2 * 64, 1.0);
    values[7] = 1e30;
    archive(
        &folder,
        "huge.npz",
        &[("x", reals(&[SAMPLES, 2, 8, 8], &values))],
    );
    for more in ["", "--weights int4 --rounding nearest", "--calibrator mse"] {
        bad(
            &folder,
            &format!("plain.onnx --calibration huge.npz --output net {more}"),
            "activation 'x': values reach 1e30, more than the 2.8037547e14 that a scale can stand for",
        );
    }
}
