"""Serves the quantized models of the test data and compares every answer with onnxruntime's.

u8 models, which onnxruntime runs with integer kernels, must agree in every element; s8 models, which
it runs in float on x86, in the top class of 99 %, and node by node within one step. Skips where the
test data is absent (REQUANT_TEST_DATA, default ../shared/data beside the checkout).
"""

import csv
import os
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
import tritonclient.grpc as triton
from onnx.utils import Extractor
from PIL import Image

from serving import ROOT, server

DATA = pathlib.Path(os.environ.get("REQUANT_TEST_DATA") or ROOT.parent / "shared" / "data")
MODELS = DATA / "quantized" / "onnx"
BATCH = 32

results = []


def report(name, passed, text):
    results.append(passed)
    print(f"{'PASS' if passed else 'FAIL'} {name}: {text}", flush=True)


# ---------------------------------------------------------------- real inputs


def fashion():
    data = np.load(DATA / "eval/small/fashion_mnist_dev.npz")
    x = (data["x"].astype(np.float32) / np.float32(255) - np.float32(0.2860)) / np.float32(0.3530)
    return x[:, None], data["y"]


def cifar():
    data = np.load(DATA / "eval/small/cifar10_dev.npz")
    return data["x"].astype(np.float32), data["y"]


def keywords():
    data = np.load(DATA / "eval/small/kws12_mfcc_int8_dev.npz")
    return (data["x"].astype(np.float32) - 83) * np.float32(0.5847029), data["y"]


def people():
    data = np.load(DATA / "refs/tflite/mlperf_tiny_vww_int8.npz")
    return (data["input"].astype(np.float32) + 128) / np.float32(255), None


def imagenet():
    with open(DATA / "eval/imagenet/dev_labels.csv", newline="") as file:
        rows = list(csv.reader(file))
    images = np.empty((len(rows), 3, 224, 224), np.float32)
    for index, (name, _) in enumerate(rows):
        pixels = np.asarray(Image.open(DATA / "eval/imagenet/dev" / name).convert("RGB"))
        crop = pixels[1:225, 1:225].astype(np.float32)
        images[index] = ((crop - 127) / 128).transpose(2, 0, 1)
    return images, np.array([int(label) for _, label in rows])


# name of the file, inputs, whether every element must agree, least accuracy
CASES = [
    ("ort_fmnist_resnet_qdq", fashion, True, None),
    ("ort_fmnist_resnet_qoperator", fashion, True, None),
    ("ort_ic_resnet8_qoperator", cifar, True, None),
    ("tfl_ic_resnet8_qdq", cifar, False, None),
    ("tfl_kws_qdq", keywords, False, None),
    ("tfl_vww_qdq", people, False, None),
    ("ort_efficientnet-lite0_qdq_minmax", imagenet, False, 0.85),
]

DATATYPES = {"tensor(float)": "FP32", "tensor(int8)": "INT8", "tensor(uint8)": "UINT8"}


def session(path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def ask(client, model, inputs, output):
    """All samples through the server, batch by batch; `inputs` are (name, datatype, array)."""
    answers = []
    for start in range(0, len(inputs[0][2]), BATCH):
        tensors = []
        for name, datatype, array in inputs:
            part = np.ascontiguousarray(array[start : start + BATCH])
            tensor = triton.InferInput(name, part.shape, datatype)
            tensor.set_data_from_numpy(part)
            tensors.append(tensor)
        answers.append(client.infer(model, tensors).as_numpy(output))
    return np.concatenate(answers)


def whole(client, name, load, exact, least):
    """One model on all its real inputs."""
    theirs = session(MODELS / f"{name}.onnx")
    (tensor,), (result,) = theirs.get_inputs(), theirs.get_outputs()
    x, labels = load()
    want = np.concatenate(
        [theirs.run(None, {tensor.name: x[i : i + BATCH]})[0] for i in range(0, len(x), BATCH)]
    )
    got = ask(client, name, [(tensor.name, "FP32", x)], result.name)
    equal = int((got == want).sum())
    agree = float((got.argmax(1) == want.argmax(1)).mean())
    text = f"{len(x)} inputs, {equal} of {want.size} elements equal, same top class {agree:.2%}"
    passed = equal == want.size if exact else agree >= 0.99
    if labels is not None:
        ours, theirs = (float((y.argmax(1) == labels).mean()) for y in (got, want))
        text += f", accuracy {ours:.2%} (onnxruntime {theirs:.2%})"
        passed = passed and (least is None or ours >= least)
    report(name, passed, text)


# ---------------------------------------------------------------- node by node


def integer_sources(graph, wanted):
    """The integer tensors from which a tensor is computed: cuts the graph into single nodes."""
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    found, stack, first = [], [wanted], True
    while stack:
        name = stack.pop()
        node = makers.get(name)
        if node is None:
            if name not in constants and name not in found:
                found.append(name)
            continue
        if node.op_type == "QuantizeLinear" and not first:
            if name not in found:
                found.append(name)
            continue
        first = False
        stack.extend(reversed([i for i in node.input if i]))
    return found


def cut(name, repository):
    """Splits a QDQ model into one model for each QuantizeLinear, and writes them as models to serve.

    Returns (model, inputs, output) for each; the first one, which takes the float input, is left out.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(MODELS / f"{name}.onnx"))
    public = {tensor.name for tensor in model.graph.input}
    pieces = []
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        sources = integer_sources(model.graph, node.output[0])
        if not sources or public & set(sources):
            continue
        piece = Extractor(model).extract_model(sources, [node.output[0]])
        folder = repository / f"{name}.{len(pieces)}" / "1"
        folder.mkdir(parents=True)
        onnx.save(piece, folder / "model.onnx")
        pieces.append((folder.parent.name, sources, node.output[0]))
    return pieces


def node_by_node(client, name, load, pieces):
    """Every node of an s8 model on onnxruntime's own inputs to it."""
    model = onnx.load(MODELS / f"{name}.onnx")
    wanted = sorted({n for _, sources, output in pieces for n in [*sources, output]})
    for tensor in wanted:
        model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.INT8, None))
    theirs = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, _ = load()
    values = dict(zip(wanted, theirs.run(wanted, {theirs.get_inputs()[0].name: x[:64]})))
    worst, differing, elements = 0, 0, 0
    for piece, sources, output in pieces:
        inputs = [(source, "INT8", values[source]) for source in sources]
        got = ask(client, piece, inputs, output).astype(np.int32)
        steps = np.abs(got - values[output].astype(np.int32))
        worst, differing = max(worst, int(steps.max())), differing + int((steps > 0).sum())
        elements += steps.size
    text = f"{len(pieces)} nodes, {differing} of {elements} elements differ, by {worst} at most"
    report(f"{name} node by node", worst <= 1, text)


def main():
    if not MODELS.is_dir():
        print(f"skipped: no test data at {DATA} (set REQUANT_TEST_DATA)")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        repository = pathlib.Path(folder)
        for name, *_ in CASES:
            version = repository / name / "1"
            version.mkdir(parents=True)
            shutil.copy(MODELS / f"{name}.onnx", version / "model.onnx")
        pieces = {name: cut(name, repository) for name, *_ in CASES if name.startswith("tfl_")}
        with server("--model-repository", repository) as (_, client):
            for name, load, exact, least in CASES:
                whole(client, name, load, exact, least)
                if name in pieces:
                    node_by_node(client, name, load, pieces[name])
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


sys.exit(main())
