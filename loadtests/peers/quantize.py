"""Holds requant-quantize against onnxruntime's static quantization: the same float models, the same calibration
samples, the same labelled images.

python loadtests/peers/quantize.py --binary target/release/requant-quantize [--model NAME …] [--work FOLDER] [--json FILE]

onnxruntime quantizes to QDQ with u8 activations and s8 weights a channel, once by each of its calibrations; ours
runs with its defaults, or with --flags. Agreement is the share of images with the float model's top-1 class, as
onnxruntime runs the float model. The last columns run our --export-qdq file in onnxruntime: its agreement with our
own integer model, class by class, and its accuracy. Exits with 1 where our agreement is more than 0.3 points below
onnxruntime's best, or our accuracy more than 0.5 points below the float model's.

Models and samples come from REQUANT_TEST_DATA. Needs loadtests/peers/requirements.txt.
"""

import argparse
import contextlib
import csv
import json
import logging
import os
import pathlib
import shlex
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BATCH = 16
# Points that ours may lose against onnxruntime's best agreement, and against the float model's accuracy.
AGREEMENT_MARGIN, ACCURACY_MARGIN = 0.3, 0.5


def fashion(data):
    def split(name):
        arrays = np.load(data / f"eval/small/fashion_mnist_{name}.npz")
        x = (arrays["x"].astype(np.float64) / 255 - 0.2860) / 0.3530
        return x.astype(np.float32)[:, None], arrays.get("y")

    return split("calib")[0], *split("dev")


def cifar(data):
    calibration = np.load(data / "eval/small/cifar10_calib.npz")["x"]
    dev = np.load(data / "eval/small/cifar10_dev.npz")
    return calibration.astype(np.float32), dev["x"].astype(np.float32), dev["y"]


def speech(data):
    # There is one set: its first maps calibrate and take no part in the evaluation.
    arrays = np.load(data / "eval/small/kws12_mfcc_int8_dev.npz")
    x = (arrays["x"].astype(np.float32) - 83) * np.float32(0.5847029)
    return x[:96], x[96:], arrays["y"][96:]


def imagenet(data):
    from PIL import Image

    def split(name):
        images, labels = [], []
        with open(data / f"eval/imagenet/{name}_labels.csv", newline="") as file:
            rows = [row for row in csv.reader(file) if row[0].endswith("JPEG")]
        for file, label in rows:
            image = Image.open(data / "eval/imagenet" / name / file).convert("RGB")
            pixels = np.asarray(image)[1:225, 1:225].astype(np.float32)
            images.append(((pixels - 127) / 128).transpose(2, 0, 1))
            labels.append(int(label))
        return np.stack(images), np.array(labels)

    return split("calib")[0], *split("dev")


MODELS = {
    "efficientnet-lite0": ("efficientnet-lite0", imagenet),
    "resnet8": ("mlperf_tiny_ic_resnet8_float", cifar),
    "resnet8-large": ("mlperf_tiny_ic_resnet8_large_float", cifar),
    "fmnist_resnet": ("fmnist_resnet", fashion),
    "kws": ("mlperf_tiny_kws_float", speech),
}


def classes(model, images):
    """Top-1 classes by onnxruntime."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return np.concatenate([session.run(None, {name: batch})[0].argmax(1) for batch in batches])


def static_quantization(model, images, method, path):
    """onnxruntime's quantization of a prepared model by one of its calibrations."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    import onnx

    name = onnx.load(model).graph.input[0].name

    class Reader(CalibrationDataReader):
        """Gives batches; the quantizer asks for one after the other, so that no more is in memory."""

        def __init__(self):
            self.batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
            self.range = iter(self.batches)

        def __len__(self):
            return len(self.batches)

        def set_range(self, start_index, end_index):
            self.range = iter(self.batches[start_index:end_index])

        def get_next(self):
            batch = next(self.range, None)
            return None if batch is None else {name: batch}

    options = {"CalibStridedMinMax": 1}
    if method == "Percentile":
        options |= {"CalibPercentile": 99.99, "CalibTensorRangeSymmetric": False}
    quantize_static(
        str(model),
        str(path),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        extra_options=options,
    )


def onnxruntimes(model, calibration, work, methods):
    """The files that onnxruntime makes, by calibration; a calibration that fails is named and left out."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = work / "prepared.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    files = {}
    for method in methods:
        path = work / f"onnxruntime-{method}.onnx"
        try:
            static_quantization(prepared, calibration, method, path)
        except Exception as error:  # whatever a calibration raises, the others go on
            print(f"onnxruntime {method}: {error}", file=sys.stderr)
            continue
        files[method] = path
    return files


def ours(binary, model, calibration, images, work, flags):
    """Our model, its classes and the file that it is exported to."""
    np.savez(work / "calibration.npz", x=calibration)
    np.save(work / "images.npy", images)
    exported = work / "exported.onnx"
    command = [binary, model, "--calibration", work / "calibration.npz", "--output", work / "requant"]
    start = time.perf_counter()
    subprocess.run([*command, "--export-qdq", exported, *flags], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    import onnx

    graph = onnx.load(exported).graph
    ports = ["--input", f"{graph.input[0].name}={work / 'images.npy'}"]
    ports += ["--output", f"{graph.output[0].name}={work / 'answers.npy'}"]
    artefact = work / "requant" / "1" / "model.safetensors"
    subprocess.run([binary, "run", artefact, *ports], check=True, stdout=subprocess.DEVNULL)
    return artefact, np.load(work / "answers.npy").argmax(1), exported, seconds


def percent(hits):
    return 100 * float(np.mean(hits))


def measure(name, arguments, data):
    file, samples = MODELS[name]
    model = data / "models" / f"{file}.onnx"
    work = arguments.work / name
    work.mkdir(parents=True, exist_ok=True)
    calibration, images, labels = samples(data)
    float_classes = classes(model, images)
    row = {"model": name, "images": len(images), "float": percent(float_classes == labels), "size": model.stat().st_size}
    row["onnxruntime"] = {}
    for method, path in onnxruntimes(model, calibration, work, arguments.methods).items():
        found = classes(path, images)
        agreement, accuracy = percent(found == float_classes), percent(found == labels)
        row["onnxruntime"][method] = {"agreement": agreement, "accuracy": accuracy, "size": path.stat().st_size}
    flags = shlex.split(arguments.flags)
    artefact, found, exported, seconds = ours(arguments.binary, model, calibration, images, work, flags)
    row["ours"] = {
        "agreement": percent(found == float_classes),
        "accuracy": percent(found == labels),
        "size": artefact.stat().st_size,
        "seconds": seconds,
    }
    try:
        theirs = classes(exported, images)
        row["exported"] = {"agreement": percent(theirs == found), "accuracy": percent(theirs == labels)}
    except Exception as error:  # a row without these columns says it
        print(f"{name}: onnxruntime refuses the exported file: {error}", file=sys.stderr)
    return row


def line(row):
    best = max(row["onnxruntime"].values(), key=lambda r: r["agreement"], default=None)
    mine, exported = row["ours"], row.get("exported")
    cells = [row["model"], row["images"], f"{row['float']:.2f}"]
    for method in METHODS:
        peer = row["onnxruntime"].get(method)
        cells.append(f"{peer['agreement']:.2f} / {peer['accuracy']:.2f}" if peer else "")
    cells.append(f"{mine['agreement']:.2f} / {mine['accuracy']:.2f}")
    cells.append(f"{mine['agreement'] - best['agreement']:+.2f}" if best else "")
    cells.append(f"{mine['accuracy'] - row['float']:+.2f}")
    sizes = [row["size"], best["size"] if best else 0, mine["size"]]
    cells.append(" / ".join(f"{size / 1000:.0f}" for size in sizes))
    cells.append(f"{mine['seconds']:.0f}")
    cells += [f"{exported['agreement']:.2f}", f"{exported['accuracy']:.2f}"] if exported else ["refused", ""]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def holds(row):
    best = max((r["agreement"] for r in row["onnxruntime"].values()), default=0.0)
    mine = row["ours"]
    return mine["agreement"] >= best - AGREEMENT_MARGIN and mine["accuracy"] >= row["float"] - ACCURACY_MARGIN


METHODS = ["MinMax", "Percentile", "Entropy"]
COLUMNS = [
    "model",
    "images",
    "float accuracy %",
    *(f"onnxruntime {method} agreement / accuracy %" for method in METHODS),
    "ours agreement / accuracy %",
    "agreement over its best",
    "accuracy over float",
    "kB float / onnxruntime / ours",
    "our seconds",
    "exported in onnxruntime: agreement with ours %",
    "accuracy %",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "release" / "requant-quantize")
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--methods", choices=METHODS, nargs="*", default=METHODS)
    parser.add_argument("--flags", default="", help="further flags of our command, as one word")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "peers" / "quantize")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()

    data = pathlib.Path(os.environ.get("REQUANT_TEST_DATA", ROOT / "shared" / "data"))
    if not (data / "models").is_dir():
        print(f"skipped: no evaluation data at {data}")
        return
    # onnxruntime's quantizer prints and logs as it goes; the table alone goes to the standard output.
    logging.disable(logging.WARNING)
    rows = []
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"| {' | '.join('---' for _ in COLUMNS)} |", flush=True)
    for name in arguments.model:
        with contextlib.redirect_stdout(sys.stderr):
            rows.append(measure(name, arguments, data))
        print(line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    failed = [row["model"] for row in rows if not holds(row)]
    if failed:
        sys.exit(f"below the bounds: {', '.join(failed)}")


if __name__ == "__main__":
    main()
