#!/usr/bin/env python3
"""Compares float models, read and run in reals, with ONNX Runtime.

Random small models of every operator that is read and of every pattern that the passes join are run on
both sides; so are the ONNX project's own cases of these operators where they lie beside the checkout
(REQUANT_TEST_DATA). Results must agree within 1e-5 of the largest element.

usage: float_differential.py [RUN_FLOAT_EXAMPLE] [--seeds N] [--only NAME]

needs numpy, onnx and onnxruntime from PyPI; the example is built where no path to it is given.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent.parent / "conformance"))
from example import built  # noqa: E402

TOLERANCE = 1e-5
CASES = {}
# ONNX cases of these operators must be read; what else the data holds may be refused.
READ = {"Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Erf",
        "Flatten", "Gelu", "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "InstanceNormalization",
        "LayerNormalization", "MatMul", "MaxPool", "Mul", "Pad", "Pow", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Sub",
        "Tanh", "Transpose", "Unsqueeze"}
# Cases of them that are refused: empty results, and an exponent for each element.
REFUSED = {"test_pow", "test_reshape_allowzero_reordered", "test_slice_start_out_of_bounds"}
# The operands of these that stay computed; of others only the first does.
COMPUTED = {"Add": (0, 1), "Sub": (0, 1), "Mul": (0, 1), "MatMul": (0, 1), "Concat": (0, 1)}


def case(function):
    CASES[function.__name__] = function
    return function


class Graph:
    """A model under construction."""

    def __init__(self, rng, opset):
        self.rng, self.opset = rng, opset
        self.nodes, self.initializers, self.inputs, self.outputs = [], [], [], []
        self.feeds, self.count, self.batch = {}, 0, 3

    def name(self, base="t"):
        self.count += 1
        return f"{base}{self.count}"

    def constant(self, array):
        name = self.name("c")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def reals(self, *dims, low=-1.0, high=1.0):
        return self.constant(self.rng.uniform(low, high, dims).astype(np.float32))

    def longs(self, *values):
        return self.constant(np.array(values, np.int64))

    def node(self, op, *inputs, outputs=1, domain="", **attributes):
        names = [self.name() for _ in range(outputs)]
        # Some nodes have no name, as in files of some exporters.
        name = f"{op}_{self.count}" if self.rng.random() < 0.7 else ""
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def input(self, *dims, low=-3.0, high=3.0):
        name = self.name("x")
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *dims]))
        self.feeds[name] = self.rng.uniform(low, high, [self.batch, *dims]).astype(np.float32)
        return name

    def output(self, name):
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def image(self, channels=None, least=5):
        channels = channels or int(self.rng.integers(1, 5))
        height, width = (int(v) for v in self.rng.integers(least, least + 5, 2))
        return self.input(channels, height, width), channels, height, width

    def conv(self, x, channels, out=None, kernel=(3, 3), **attributes):
        out = out or int(self.rng.integers(1, 5))
        groups = attributes.get("group", 1)
        weights = self.reals(out, channels // groups, *kernel)
        operands = [weights, self.reals(out)] if self.rng.random() < 0.6 else [weights]
        return self.node("Conv", x, *operands, **attributes), out

    def norm(self, x, channels):
        operands = [self.reals(channels, low=-2, high=2), self.reals(channels), self.reals(channels),
                    self.reals(channels, low=0.01, high=3)]
        return self.node("BatchNormalization", x, *operands, epsilon=float(self.rng.choice([1e-5, 1e-3])))

    def relu6(self, x):
        if self.opset < 11:
            return self.node("Clip", x, min=0.0, max=6.0)
        return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def model(self):
        graph = helper.make_graph(self.nodes, "random", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@case
def conv_windows(g):
    groups = int(g.rng.choice([1, 2]))
    x, c, _, _ = g.image(2 * groups)
    attributes = {"strides": g.rng.integers(1, 3, 2).tolist(), "dilations": g.rng.integers(1, 3, 2).tolist()}
    if g.rng.random() < 0.5:
        attributes["pads"] = g.rng.integers(0, 3, 4).tolist()
    else:
        attributes["dilations"] = [1, 1]
        attributes["auto_pad"] = str(g.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    y, _ = g.conv(x, c, out=2 * groups, kernel=tuple(g.rng.integers(1, 4, 2)), group=groups, **attributes)
    g.output(y)


@case
def conv_line(g):
    x = g.input(4, 12)
    y, _ = g.conv(x, 4, out=6, kernel=(3,), group=2, strides=[2], pads=[1, 2], dilations=[2])
    g.output(g.node("Relu", y))


@case
def norms(g):
    x, c, _, _ = g.image()
    y, c = g.conv(x, c)
    y = g.norm(y, c)
    other = g.norm(y, c) if g.rng.random() < 0.5 else g.relu6(y)
    g.output(other)
    if g.rng.random() < 0.5:
        g.output(g.node("Mul", y, g.reals(c, 1, 1)))


@case
def affine(g):
    x = g.input(7)
    y = g.node("MatMul", x, g.reals(7, 5))
    for _ in range(int(g.rng.integers(1, 5))):
        op = str(g.rng.choice(["Add", "Sub", "Mul", "Div"]))
        dims = [(), (5,), (1, 5), (1,)][int(g.rng.integers(0, 4))]
        operand = g.reals(*dims, low=0.3, high=2)
        swapped = op != "Div" and g.rng.random() < 0.4
        y = g.node(op, operand, y) if swapped else g.node(op, y, operand)
    g.output(g.node("Relu", y))


@case
def gemms(g):
    x = g.input(6)
    turned = int(g.rng.random() < 0.5)
    weights = g.reals(4, 6) if turned else g.reals(6, 4)
    operands = [x, weights]
    if g.opset < 11 or g.rng.random() < 0.7:
        operands.append(g.reals(*[(), (4,), (1, 4)][int(g.rng.integers(0, 3))]))
    alpha, beta = (float(v) for v in g.rng.uniform(0.2, 2, 2))
    g.output(g.node("Gemm", *operands, transB=turned, alpha=alpha, beta=beta))


@case
def products(g):
    x, y = g.input(2, 3, 4), g.input(2, 4, 5)
    z = g.node("MatMul", x, y)
    z = g.node("Div", z, g.constant(np.float32(2)))
    z = g.node("Softmax", z, axis=-1 if g.opset >= 13 else 3)
    z = g.node("MatMul", z, g.reals(5, 3))
    z = g.node("Add", g.reals(3), z)
    g.output(g.node("MatMul", z, g.reals(2, 3, 2)))


@case
def residuals(g):
    x, c, _, _ = g.image()
    a, _ = g.conv(x, c, out=c, pads=[1, 1, 1, 1])
    b, _ = g.conv(x, c, out=c, kernel=(1, 1))
    if g.rng.random() < 0.5:
        a = g.norm(a, c)
    if g.rng.random() < 0.5:
        b = g.node("Relu", b)
    pair = [a, b] if g.rng.random() < 0.5 else [b, a]
    s = g.node("Add", *pair)
    if g.rng.random() < 0.5:
        s = g.relu6(s)
    d, _ = g.conv(s, c, out=c, kernel=(1, 1))
    g.output(g.node("Relu", g.node("Add", d, s)))
    if g.rng.random() < 0.3:
        g.output(a)


@case
def maps(g):
    x, c, _, _ = g.image()
    if g.rng.random() < 0.5:
        x, c = g.conv(x, c)
    y = x
    for _ in range(int(g.rng.integers(1, 7))):
        kind = int(g.rng.integers(0, 8))
        if kind == 0:
            y = g.node("Mul", x, g.node("Sigmoid", y))
        elif kind == 1:
            y = g.node("Mul", y, g.node("Div", g.relu6(g.node("Add", y, g.constant(np.float32(3)))),
                                        g.constant(np.float32(6))))
        elif kind == 2:
            y = g.node("Mul", y, g.node("Add", g.node("Erf", y), g.constant(np.float32(1))))
        elif kind == 3:
            y = g.node("Sub", g.reals(c, 1, 1), y)
        elif kind == 4:
            y = g.node(str(g.rng.choice(["Tanh", "Elu", "Softplus", "Abs", "Neg", "LeakyRelu"])), y)
        elif kind == 5:
            y = g.node("PRelu", y, g.reals(c, 1, 1))
        elif kind == 6:
            y = g.node(str(g.rng.choice(["Max", "Min"])), g.constant(np.float32(0.3)), y)
        else:
            y = g.node("Add", y, x)
    g.output(y)


@case
def broadcasts(g):
    x, c, h, w = g.image()
    dims = [(c, h, w), (h, w), (1, h, w), (c, 1, w), (1, c, h, w)][int(g.rng.integers(0, 5))]
    y = g.node(str(g.rng.choice(["Add", "Sub", "Mul"])), x, g.reals(*dims))
    y = g.node("Div", y, g.reals(h, w, low=0.5, high=2))
    m = g.node("GlobalAveragePool", x)
    g.output(g.node("Sub", m, g.node("Mul", y, m)))


@case
def pools(g):
    x, c, h, w = g.image(least=6)
    attributes = {"kernel_shape": g.rng.integers(2, 4, 2).tolist(), "strides": g.rng.integers(1, 3, 2).tolist(),
                  "pads": g.rng.integers(0, 2, 4).tolist()}
    if g.opset >= 10:
        attributes["ceil_mode"] = int(g.rng.random() < 0.5)
    g.output(g.node("Relu", g.node("MaxPool", x, **attributes)))
    # Runtimes differ where a window counts padding past the end.
    include = int(not attributes.get("ceil_mode") and g.rng.random() < 0.5)
    g.output(g.node("Relu", g.node("AveragePool", x, count_include_pad=include, **attributes)))
    g.output(g.node("GlobalMaxPool", x))
    axes = {"axes": [2, 3]} if g.opset < 18 else {}
    operands = [] if g.opset < 18 else [g.longs(2, 3)]
    g.output(g.node("ReduceMean", x, *operands, keepdims=int(g.rng.random() < 0.5), **axes))


@case
def borders(g):
    x, c, _, _ = g.image()
    pads = [0, 0, *g.rng.integers(0, 2, 2).tolist(), 0, 0, *g.rng.integers(0, 3, 2).tolist()]
    value = float(g.rng.choice([0.0, 0.0, 0.5]))
    if g.opset < 11:
        y = g.node("Pad", x, pads=pads, value=value)
    else:
        y = g.node("Pad", x, g.longs(*pads), g.constant(np.float32(value)))
    kind = int(g.rng.integers(0, 3))
    if kind == 0:
        y, _ = g.conv(y, c, pads=[1, 0, 0, 1])
    elif kind == 1:
        y = g.node("MaxPool", y, kernel_shape=[3, 3], pads=[0, 1, 0, 0])
    else:
        y = g.node("AveragePool", y, kernel_shape=[2, 3], count_include_pad=int(g.rng.random() < 0.5))
    g.output(y)


@case
def moves(g):
    x, c, h, w = g.image(4)
    if g.opset < 10:
        y = g.node("Slice", x, starts=[1, 0], ends=[4, -1], axes=[1, 3])
    else:
        y = g.node("Slice", x, g.longs(1, -1), g.longs(4, -100), g.longs(1, 3), g.longs(1, -2))
    g.output(g.node("Transpose", y, perm=[0, 2, 3, 1]))
    split = {"split": [1, 3]} if g.opset < 13 else {}
    operands = [] if g.opset < 13 else [g.longs(1, 3)]
    a, b = g.node("Split", x, *operands, outputs=2, axis=1, **split)
    g.output(g.node("Concat", b, a, b, axis=1))
    g.output(g.node("Gather", x, g.longs(2, 0, 0), axis=1))
    g.output(g.node("Gather", x, g.constant(np.int64(-1)), axis=2))
    g.output(g.node("Flatten", x))
    g.output(g.node("SpaceToDepth", g.node("DepthToSpace", x, blocksize=2), blocksize=2))
    if g.opset >= 11:
        g.output(g.node("DepthToSpace", x, blocksize=2, mode="CRD"))


@case
def shapes(g):
    x, c, h, w = g.image()
    shape = g.node("Shape", x)
    batch = g.node("Gather", shape, g.constant(np.int64(0)))
    unsqueeze = {"axes": [0]} if g.opset < 13 else {}
    operands = [] if g.opset < 13 else [g.longs(0)]
    batch = g.node("Unsqueeze", batch, *operands, **unsqueeze)
    target = g.node("Concat", batch, g.longs(w, -1), axis=0)
    g.output(g.node("Relu", g.node("Reshape", x, target)))


@case
def resizes(g):
    if g.opset < 11:
        x, _, _, _ = g.image()
        scales = g.constant(np.array([1, 1, 2, 3], np.float32))
        op = "Upsample" if g.opset < 10 else "Resize"
        g.output(g.node(op, x, scales, mode="nearest"))
        return
    x, c, h, w = g.image()
    linear = g.rng.random() < 0.5
    modes = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    attributes = {"mode": "linear" if linear else "nearest",
                  "coordinate_transformation_mode": str(g.rng.choice(modes))}
    if not linear:
        attributes["nearest_mode"] = str(g.rng.choice(["floor", "round_prefer_floor", "ceil"]))
    none = "" if g.opset >= 13 else g.constant(np.array([], np.float32))
    if g.rng.random() < 0.5:
        scales = np.array([1, 1, 2, g.rng.choice([1, 3])], np.float32)
        g.output(g.node("Resize", x, none, g.constant(scales), **attributes))
    else:
        batch = g.node("Slice", g.node("Shape", x), g.longs(0), g.longs(2))
        target = [int(v) for v in g.rng.integers(2, 14, 2)]
        size = g.node("Concat", batch, g.longs(*target), axis=0)
        g.output(g.node("Resize", x, none, none, size, **attributes))


@case
def softmaxes(g):
    x, _, _, _ = g.image()
    kind = ["Softmax", "LogSoftmax"][int(g.rng.integers(0, 2))]
    g.output(g.node(kind, x, axis=int(g.rng.integers(1, 4))))


@case
def mixed_samples(g):
    """A transpose that moves the batch: one sample at a time."""
    g.batch = 1
    x = g.input(3, 4)
    g.output(g.node("Relu", g.node("Transpose", x, perm=[1, 0, 2])))


@case
def transposed_convolutions(g):
    groups = int(g.rng.choice([1, 2]))
    line = g.rng.random() < 0.3
    x, c = (g.input(2 * groups, 7), 2 * groups) if line else g.image(2 * groups)[:2]
    spatial = 1 if line else 2
    kernel = g.rng.integers(1, 5, spatial).tolist()
    strides = g.rng.integers(1, 4, spatial).tolist()
    attributes = {"strides": strides, "group": groups}
    mode = int(g.rng.integers(0, 4))
    if mode == 0:
        attributes["auto_pad"] = str(g.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        kernel = [k + s for k, s in zip(kernel, strides)]
    elif mode == 1:
        attributes["dilations"] = g.rng.integers(1, 3, spatial).tolist()
        attributes["output_padding"] = [int(g.rng.integers(0, s)) for s in strides]
    elif mode == 2:
        kernel = [k + 1 for k in kernel]
        attributes["pads"] = [1, 0, 1, 1] if spatial == 2 else [1, 0]
    else:
        kernel = [k + 2 for k in kernel]
        attributes["output_shape"] = [2 + s * 4 for s in strides]
    operands = [x, g.reals(c, 3, *kernel)]
    if g.rng.random() < 0.7:
        operands.append(g.reals(3 * groups))
    g.output(g.node("Relu", g.node("ConvTranspose", *operands, **attributes)))


@case
def own_norms(g):
    """Normalizations over a sample's own elements."""
    x, c, h, w = g.image(4)
    g.output(g.node("InstanceNormalization", x, g.reals(c), g.reals(c), epsilon=1e-3))
    if g.opset >= 17:
        y = g.node("LayerNormalization", x, g.reals(w), g.reals(w), axis=-1)
        g.output(y)
        g.output(g.node("LayerNormalization", y, g.reals(h, w), axis=2, epsilon=1e-4))
    if g.opset >= 21:
        g.output(g.node("GroupNormalization", x, g.reals(c), g.reals(c), num_groups=2))
    # As exporters take a layer norm apart.
    axes = {"axes": [-1]} if g.opset < 18 else {}
    operands = [] if g.opset < 18 else [g.longs(-1)]
    centred = g.node("Sub", x, g.node("ReduceMean", x, *operands, **axes))
    squares = g.node("Pow", centred, g.constant(np.float32(2)))
    spread = g.node("Add", g.node("ReduceMean", squares, *operands, **axes), g.constant(np.float32(1e-5)))
    g.output(g.node("Mul", g.node("Div", centred, g.node("Sqrt", spread)), g.reals(w)))


@case
def reductions(g):
    x, c, h, w = g.image()
    listed = lambda op: g.opset >= (13 if op == "ReduceSum" else 18)
    for op, choices in [("ReduceSum", [[1], [2, 3]]), ("ReduceL2", [[1], [3]]), ("ReduceMax", [[2, 3], [3]])]:
        axes = choices[int(g.rng.integers(0, 2))]
        keep = int(g.rng.random() < 0.5)
        if listed(op):
            g.output(g.node(op, x, g.longs(*axes), keepdims=keep))
        else:
            g.output(g.node(op, x, axes=axes, keepdims=keep))


@case
def quotients(g):
    x, y = g.input(3, 4), g.input(3, 4, low=0.5, high=2)
    z = g.node("Div", x, g.node("Add", y, g.reals(4, low=0.1)))
    g.output(g.node("Div", g.reals(3, 4), g.node("Exp", z)))


@case
def repeats(g):
    x = g.input(1, 5)
    shape = g.node("Concat", g.node("Slice", g.node("Shape", x), g.longs(0), g.longs(1)) if g.opset >= 10
                   else g.node("Slice", g.node("Shape", x), starts=[0], ends=[1]), g.longs(3, 5), axis=0)
    g.output(g.node("Expand", x, shape))
    g.output(g.node("Expand", g.node("Relu", x), g.longs(1, 4, 1)))
    y, _, _, _ = g.image(least=6)
    mode = str(g.rng.choice(["reflect", "edge"]))
    pads = [0, 0, *g.rng.integers(-1, 4, 2).tolist(), 0, 0, *g.rng.integers(0, 4, 2).tolist()]
    if g.opset < 11:
        pads = [max(pad, 0) for pad in pads]
        g.output(g.node("Pad", y, pads=pads, mode=mode))
    else:
        g.output(g.node("Pad", y, g.longs(*pads), mode=mode))
    if g.opset >= 15:
        g.output(g.node("Mul", y, g.node("CastLike", g.longs(3), y)))


def run_ours(example, path, feeds, directory):
    np.savez(directory / "inputs.npz", **feeds)
    command = [example, str(path), str(directory / "inputs.npz"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    results = []
    for index, line in enumerate(done.stdout.splitlines()):
        dims = json.loads(line.split("\t")[2])
        results.append(np.fromfile(directory / f"{index}.bin", np.float32).reshape(dims))
    return results


def difference(got, want):
    """The largest difference as a share of the largest element; raises where it is too large."""
    worst = 0.0
    if len(got) != len(want):
        raise RuntimeError(f"{len(got)} results instead of {len(want)}")
    for a, b in zip(got, want):
        if a.shape != b.shape:
            raise RuntimeError(f"{a.shape} instead of {b.shape}")
        share = float(np.abs(a - b).max() / max(1e-3, np.abs(b).max()))
        if not share <= TOLERANCE:
            raise RuntimeError(f"results differ by {share} of the largest")
        worst = max(worst, share)
    return worst


def random_models(example, directory, seeds, only):
    failures = total = 0
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for number, (label, build) in enumerate(CASES.items()):
        if only not in label:
            continue
        worst = 0.0
        for seed in range(seeds):
            graph = Graph(np.random.default_rng([seed, number]), 9 + (seed * 5) % 13)
            build(graph)
            path = directory / "model.onnx"
            onnx.save(graph.model(), path)
            total += 1
            try:
                session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
                want = session.run(None, graph.feeds)
                worst = max(worst, difference(run_ours(example, path, graph.feeds, directory), want))
            except Exception as error:  # reported, and counted
                failures += 1
                print(f"{label} seed {seed} opset {graph.opset}: {error}")
        print(f"{label}: within {worst:.1e}")
    return total, failures


def onnx_cases(example, directory, data, only):
    """The ONNX project's cases; operands that are no data become constants."""
    failures = passed = refused = 0
    for path in sorted(data.glob("*/model.onnx")):
        label = path.parent.name
        model = onnx.load(path)
        ops = {node.op_type for node in model.graph.node}
        if only not in label or any(op.startswith(("Quantize", "Dequantize", "QLinear")) for op in ops):
            continue
        tensors = lambda kind: [numpy_helper.to_array(onnx.load_tensor(str(file))) for file in
                                sorted(path.parent.glob(f"test_data_set_0/{kind}_*.pb"))]
        first = model.graph.node[0]
        stay = COMPUTED.get(first.op_type, (0,)) if len(model.graph.node) == 1 else (0,)
        inputs, feeds = list(model.graph.input), {}
        del model.graph.input[:]
        for index, (port, array) in enumerate(zip(inputs, tensors("input"))):
            single = len(model.graph.node) == 1
            operand = list(first.input).index(port.name) if single else index
            if operand in stay and array.dtype == np.float32:
                model.graph.input.append(port)
                feeds[port.name] = array
            else:
                model.graph.initializer.append(numpy_helper.from_array(array, port.name))
        want = tensors("output")
        if not feeds or any(array.dtype != np.float32 for array in want) or len(want) > 1:
            continue
        onnx.save(model, directory / "model.onnx")
        try:
            difference(run_ours(example, directory / "model.onnx", feeds, directory), want)
            passed += 1
            if label in REFUSED:
                failures += 1
                print(f"{label}: listed as refused, but agrees")
        except RuntimeError as error:
            if len(ops) == 1 and ops <= READ and label not in REFUSED:
                failures += 1
                print(f"{label}: {error}")
            else:
                refused += 1
    print(f"ONNX cases: {passed} agree, {failures} fail, {refused} are refused")
    return failures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("example", nargs="?")
    parser.add_argument("--seeds", type=int, default=26)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    example = arguments.example or built("run_float")
    ort.set_default_logger_severity(3)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        total, failures = random_models(example, directory, arguments.seeds, arguments.only)
        print(f"{total} models, {failures} failures")
        data = pathlib.Path(os.environ.get("REQUANT_TEST_DATA", HERE.parents[2] / "shared" / "data"))
        if (data / "onnx-node-tests").is_dir():
            failures += onnx_cases(example, directory, data / "onnx-node-tests", arguments.only)
        else:
            print(f"ONNX cases: skipped, none at {data}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
