#!/usr/bin/env python3
"""Compares the importer and the reference backend with ONNX Runtime on random small models.

Every operator that is imported is built many times over with random shapes, attributes, scales and zero
points, in the QDQ and in the QOperator form. Where ONNX Runtime runs its integer kernels the results must
be equal in every element; where it runs in float (signed activations in QDQ form, and operators that it
does not fuse) they must be within one step.

usage: ort_differential.py [RUN_ONNX_EXAMPLE] [--seeds N] [--only NAME]

needs numpy, onnx and onnxruntime from PyPI; the example is built where no path to it is given.
"""

import argparse
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

DTYPES = {"u8": (np.uint8, TensorProto.UINT8), "s8": (np.int8, TensorProto.INT8)}
RAW = {"u8": np.uint8, "i8": np.int8, "i32": np.int32, "i64": np.int64, "f32": np.float32,
       "i16": np.int16}
CASES = {}


def case(exact=True, dtypes=("u8",)):
    """Registers a builder; with `exact`, unsigned results must be equal."""

    def register(function):
        for dtype in dtypes:
            # Signed activations in QDQ form run in float on x86.
            CASES[f"{function.__name__}[{dtype}]"] = (function, dtype, exact)
        return function

    return register


class Graph:
    """A model under construction."""

    def __init__(self, rng, dtype, opset=17):
        self.rng, self.dtype, self.opset = rng, dtype, opset
        self.nodes, self.initializers, self.inputs, self.outputs = [], [], [], []
        self.feeds, self.count, self.batch = {}, 0, 3
        # Whether the leading dimension stays symbolic; whether the model loads without a batch then.
        self.symbolic, self.mixes = True, False

    def name(self, base="t"):
        self.count += 1
        return f"{base}{self.count}"

    def constant(self, array, elem=None, dims=None):
        name = self.name("c")
        if elem is None:
            self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        else:
            values = np.asarray(array)
            dims = values.shape if dims is None else dims
            self.initializers.append(helper.make_tensor(name, elem, dims, values.flatten()))
        return name

    def node(self, op, inputs, outputs=1, domain="", **attributes):
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(op, inputs, names, name=f"{op}_{self.count}", domain=domain,
                             **attributes)
        )
        return names[0] if outputs == 1 else names

    def quant(self, dtype=None):
        """A random scale and zero point."""
        dtype = dtype or self.dtype
        numpy_type, _ = DTYPES[dtype]
        scale = np.float32(self.rng.uniform(0.005, 0.08))
        info = np.iinfo(numpy_type)
        zero = numpy_type(self.rng.integers(info.min // 2, info.max // 2 + 1))
        return self.constant(scale), self.constant(zero), scale, int(zero)

    def input(self, dims, quant=None):
        """A float input behind Q and DQ; gives the dequantized name."""
        name = self.name("x")
        shape = [self.batch, *dims]
        symbols = ["N" if self.symbolic else self.batch, *dims]
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, symbols))
        scale, zero, s, z = quant or self.quant()
        info = np.iinfo(DTYPES[self.dtype][0])
        reals = self.rng.uniform((info.min - z - 4) * s, (info.max - z + 4) * s, shape)
        self.feeds[name] = reals.astype(np.float32)
        return self.dq(self.node("QuantizeLinear", [name, scale, zero]), scale, zero)

    def real(self, dims):
        """A float input that nothing quantizes yet."""
        name = self.name("x")
        symbol = "N" if self.symbolic else self.batch
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [symbol, *dims]))
        self.feeds[name] = self.rng.uniform(-12, 12, [self.batch, *dims]).astype(np.float32)
        return name

    def integers(self, dims):
        """An integer input with random parameters."""
        name = self.name("x")
        numpy_type, elem = DTYPES[self.dtype]
        info = np.iinfo(numpy_type)
        symbol = "N" if self.symbolic else self.batch
        self.inputs.append(helper.make_tensor_value_info(name, elem, [symbol, *dims]))
        shape = [self.batch, *dims]
        self.feeds[name] = self.rng.integers(info.min, info.max + 1, shape).astype(numpy_type)
        scale, zero, _, _ = self.quant()
        return name, scale, zero

    def dq(self, name, scale, zero, **attributes):
        return self.node("DequantizeLinear", [name, scale, zero], **attributes)

    def q(self, name, spread=1.0):
        """Quantizes a result and makes the integers an output."""
        scale, zero, _, _ = self.quant()
        if spread != 1.0:
            scale = self.constant(np.float32(self.rng.uniform(0.005, 0.05) * spread))
        out = self.node("QuantizeLinear", [name, scale, zero])
        self.output(out, DTYPES[self.dtype][1])
        return out

    def output(self, name, elem, rank=None):
        self.outputs.append((name, elem))

    def weights(self, dims, axis, kind=None):
        """Quantized constant weights and their scales; gives (integers, scale, zero, attributes)."""
        kind = kind or self.rng.choice(["channel", "tensor", "unsigned"])
        channels = dims[axis]
        if kind == "unsigned":
            values = self.rng.integers(0, 256, dims).astype(np.uint8)
            scale = self.constant(np.float32(self.rng.uniform(0.002, 0.02)))
            zero = self.constant(np.uint8(self.rng.integers(100, 156)))
            return self.constant(values), scale, zero, {}
        values = self.rng.integers(-127, 128, dims).astype(np.int8)
        if kind == "tensor":
            scale = self.constant(np.float32(self.rng.uniform(0.002, 0.02)))
            return self.constant(values), scale, self.constant(np.int8(0)), {}
        scales = self.rng.uniform(0.002, 0.02, channels).astype(np.float32)
        zeros = np.zeros(channels, np.int8)
        return self.constant(values), self.constant(scales), self.constant(zeros), {"axis": axis}

    def array(self, name):
        for tensor in self.initializers:
            if tensor.name == name:
                return numpy_helper.to_array(tensor)
        raise KeyError(name)

    def model(self):
        outputs = [helper.make_tensor_value_info(n, e, None) for n, e in self.outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        ir_version = 10 if self.opset < 23 else 12
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def activation(g, name):
    """Sometimes a clamp."""
    pick = g.rng.integers(0, 4)
    if pick == 0:
        return g.node("Relu", [name])
    if pick == 1:
        limits = [g.constant(np.float32(0)), g.constant(np.float32(6))]
        return g.node("Clip", [name, *limits])
    return name


def window(g, kernel):
    """Random strides, dilations and padding."""
    attributes = {"strides": [int(v) for v in g.rng.integers(1, 3, len(kernel))]}
    if g.rng.integers(0, 2):
        attributes["dilations"] = [int(v) for v in g.rng.integers(1, 3, len(kernel))]
    # ONNX Runtime refuses or forgets dilations under SAME_UPPER and SAME_LOWER.
    if g.rng.integers(0, 4) == 0:
        modes = ["VALID"] if "dilations" in attributes else ["SAME_UPPER", "SAME_LOWER", "VALID"]
        attributes["auto_pad"] = g.rng.choice(modes).item()
    else:
        attributes["pads"] = [int(v) for v in g.rng.integers(0, 2, 2 * len(kernel))]
    return attributes


def conv_parts(g, rank):
    groups = int(g.rng.choice([1, 1, 2, 4]))
    depthwise = g.rng.integers(0, 4) == 0
    per_group = 1 if depthwise else int(g.rng.integers(1, 5))
    channels = 4 * groups if depthwise else per_group * groups
    groups = channels if depthwise else groups
    out = groups * int(g.rng.integers(1, 4))
    kernel = [int(v) for v in g.rng.integers(1, 4, rank)]
    spatial = [int(v) for v in g.rng.integers(7, 13, rank)]
    return groups, channels, out, kernel, spatial


def bias_of(g, x_scale, w_scale, channels):
    """An int32 bias at the accumulator's scale."""
    scale = np.broadcast_to(g.array(x_scale) * g.array(w_scale), (channels,)).astype(np.float32)
    values = g.rng.integers(-3000, 3000, channels).astype(np.int32)
    return g.constant(values), g.constant(scale.copy()), g.constant(np.zeros(channels, np.int32))


@case(dtypes=("u8", "s8"))
def conv(g, rank=2):
    groups, channels, out, kernel, spatial = conv_parts(g, rank)
    quant = g.quant()
    x = g.input([channels, *spatial], quant)
    weights, scale, zero, axis = g.weights([out, channels // groups, *kernel], 0)
    operands = [x, g.dq(weights, scale, zero, **axis)]
    if g.rng.integers(0, 2):
        bias = bias_of(g, quant[0], scale, out)
        operands.append(g.dq(*bias, axis=0))
    y = g.node("Conv", operands, group=groups, kernel_shape=kernel, **window(g, kernel))
    g.q(activation(g, y), 8)


@case(exact=False)
def conv_line(g):
    conv(g, rank=1)


@case(exact=False)
def conv_int4(g):
    g.opset = 21
    groups, channels, out, kernel, spatial = conv_parts(g, 2)
    x = g.input([channels, *spatial])
    dims = [out, channels // groups, *kernel]
    weights = g.constant(g.rng.integers(-8, 8, dims), TensorProto.INT4)
    scale = g.constant(g.rng.uniform(0.02, 0.1, out).astype(np.float32))
    y = g.node("Conv", [x, g.node("DequantizeLinear", [weights, scale], axis=0)], group=groups)
    g.q(y, 8)


@case(exact=False)
def conv_float_bias(g):
    groups, channels, out, kernel, spatial = conv_parts(g, 2)
    x = g.input([channels, *spatial])
    weights, scale, zero, axis = g.weights([out, channels // groups, *kernel], 0)
    bias = g.constant(g.rng.uniform(-1, 1, out).astype(np.float32))
    y = g.node("Conv", [x, g.dq(weights, scale, zero, **axis), bias], group=groups)
    g.q(activation(g, y), 8)


@case(exact=False)
def conv_folded_weights(g):
    """Weights as float constants through Q and DQ."""
    x = g.input([3, 8, 8])
    values = g.constant(g.rng.uniform(-1, 1, [5, 3, 3, 3]).astype(np.float32))
    scale, zero = g.constant(np.float32(1 / 127)), g.constant(np.int8(0))
    q = g.node("QuantizeLinear", [values, scale, zero])
    g.q(g.node("Conv", [x, g.dq(q, scale, zero)]), 8)


@case(dtypes=("u8", "s8"))
def gemm(g):
    k, n = (int(v) for v in g.rng.integers(1, 40, 2))
    quant = g.quant()
    x = g.input([k], quant)
    transposed = int(g.rng.integers(0, 2))
    dims, channel = ([n, k], 0) if transposed else ([k, n], 1)
    weights, scale, zero, axis = g.weights(dims, channel)
    operands = [x, g.dq(weights, scale, zero, **axis)]
    if g.rng.integers(0, 2):
        operands.append(g.dq(*bias_of(g, quant[0], scale, n), axis=0))
    g.q(activation(g, g.node("Gemm", operands, transB=transposed)), 8)


@case(exact=False)
def gemm_blocked_int4(g):
    g.opset = 21
    k, n, block = 32, int(g.rng.integers(1, 9)), 8
    x = g.input([k])
    weights = g.constant(g.rng.integers(0, 16, [k, n]), TensorProto.UINT4)
    unit = 2.0 ** g.rng.integers(-9, -6, n)
    scales = (unit * g.rng.integers(1, 100, [k // block, n])).astype(np.float32)
    zeros = np.broadcast_to(g.rng.integers(0, 16, n), (k // block, n))
    zero = g.constant(zeros, TensorProto.UINT4)
    w = g.dq(weights, g.constant(scales), zero, axis=0, block_size=block)
    g.q(g.node("MatMul", [x, w]), 16)


@case(dtypes=("u8", "s8"))
def mat_mul(g):
    m, k, n = (int(v) for v in g.rng.integers(1, 24, 3))
    x = g.input([m, k])
    weights, scale, zero, axis = g.weights([k, n], 1)
    g.q(g.node("MatMul", [x, g.dq(weights, scale, zero, **axis)]), 8)


@case()
def mat_mul_dynamic(g):
    m, k, n = (int(v) for v in g.rng.integers(1, 24, 3))
    g.q(g.node("MatMul", [g.input([2, m, k]), g.input([2, k, n])]), 16)


@case(exact=False)
def mat_mul_bias(g):
    m, k, n = (int(v) for v in g.rng.integers(1, 24, 3))
    x = g.input([m, k])
    weights, scale, zero, axis = g.weights([k, n], 1)
    y = g.node("MatMul", [x, g.dq(weights, scale, zero, **axis)])
    bias = g.constant(g.rng.uniform(-2, 2, n).astype(np.float32))
    g.q(activation(g, g.node("Add", [y, bias])), 8)


@case(dtypes=("u8", "s8"))
def add(g):
    dims = [int(v) for v in g.rng.integers(1, 6, 3)]
    other = [d if g.rng.integers(0, 3) else 1 for d in dims]
    y = g.node("Add", [g.input(dims), g.input(other)])
    g.q(activation(g, y), 2)


@case(exact=False)
def sub(g):
    dims = [int(v) for v in g.rng.integers(1, 6, 3)]
    g.q(g.node("Sub", [g.input(dims), g.input(dims)]), 2)


@case()
def add_constant(g):
    dims = [int(v) for v in g.rng.integers(1, 6, 3)]
    scale, zero, _, _ = g.quant()
    values = g.constant(g.rng.integers(0, 256, dims[1:]).astype(np.uint8))
    g.q(g.node("Add", [g.input(dims), g.dq(values, scale, zero)]), 2)


@case(dtypes=("u8", "s8"))
def mul(g):
    dims = [int(v) for v in g.rng.integers(1, 6, 3)]
    other = [dims[0], 1, 1] if g.rng.integers(0, 2) else dims
    g.q(g.node("Mul", [g.input(dims), g.input(other)]), 8)


@case()
def concat(g):
    dims = [int(v) for v in g.rng.integers(1, 6, 3)]
    axis = int(g.rng.integers(1, 4))
    parts = []
    for _ in range(int(g.rng.integers(2, 4))):
        own = list(dims)
        own[axis - 1] = int(g.rng.integers(1, 5))
        parts.append(g.input(own))
    g.q(g.node("Concat", parts, axis=axis))


@case()
def global_average_pool(g):
    dims = [int(v) for v in g.rng.integers(1, 9, 3)]
    g.q(g.node("GlobalAveragePool", [g.input(dims)]))


@case(exact=False)
def average_pool(g):
    kernel = [2, 3]
    attributes = window(g, kernel)
    attributes.pop("dilations", None)
    attributes["ceil_mode"] = 0 if "auto_pad" in attributes else int(g.rng.integers(0, 2))
    attributes["count_include_pad"] = int(g.rng.integers(0, 2))
    x = g.input([int(g.rng.integers(1, 5)), 9, 10])
    g.q(g.node("AveragePool", [x], kernel_shape=kernel, **attributes))


@case(exact=False)
def reduce_mean(g):
    axes = sorted({int(v) for v in g.rng.integers(1, 4, 2)})
    x = g.input([int(v) for v in g.rng.integers(1, 7, 3)])
    g.q(g.node("ReduceMean", [x], axes=axes, keepdims=int(g.rng.integers(0, 2))))


@case()
def max_pool(g):
    kernel = [3, 2]
    attributes = window(g, kernel)
    attributes["ceil_mode"] = 0 if "auto_pad" in attributes else int(g.rng.integers(0, 2))
    quant = g.quant()
    x = g.input([3, 9, 10], quant)
    y = g.node("MaxPool", [x], kernel_shape=kernel, **attributes)
    out = g.node("QuantizeLinear", [y, quant[0], quant[1]])
    g.output(out, DTYPES[g.dtype][1])


@case(exact=False)
def moves(g):
    """A chain of operators that move elements."""
    dims = [4, 6, 5]
    x = g.input(dims)
    for _ in range(3):
        pick = g.rng.integers(0, 6)
        if pick == 0:
            perm = [0, *(1 + g.rng.permutation(len(dims)))]
            x = g.node("Transpose", [x], perm=[int(v) for v in perm])
            dims = [dims[int(p) - 1] for p in perm[1:]]
        elif pick == 1:
            dims = [dims[0] * dims[1], *dims[2:]] if len(dims) > 1 else [1, *dims]
            x = g.node("Reshape", [x, g.constant(np.array([-1, *dims], np.int64))])
        elif pick == 2:
            ends = [int(g.rng.integers(1, d + 1)) for d in dims]
            operands = [np.zeros(len(dims)), ends, np.arange(1, len(dims) + 1)]
            x = g.node("Slice", [x, *(g.constant(np.array(v, np.int64)) for v in operands)])
            dims = ends
        elif pick == 3:
            pads = [0, *[1] * len(dims), 0, *[2] * len(dims)]
            x = g.node("Pad", [x, g.constant(np.array(pads, np.int64))])
            dims = [d + 3 for d in dims]
        elif pick == 4:
            x = g.node("Unsqueeze", [x, g.constant(np.array([1], np.int64))])
            dims = [1, *dims]
            if len(dims) > 4:
                x = g.node("Squeeze", [x, g.constant(np.array([1], np.int64))])
                dims = dims[1:]
        else:
            parts = g.node("Split", [x], outputs=2, axis=1) if dims[0] % 2 == 0 else [x, x]
            x = g.node("Concat", parts[::-1], axis=len(dims))
            dims = [dims[0] // 2, *dims[1:]] if dims[0] % 2 == 0 else dims
            dims = [*dims[:-1], dims[-1] * 2] if len(dims) > 1 else dims
            if len(dims) == 1:
                break
    g.q(x)


@case(exact=False)
def resize(g):
    x = g.input([2, 5, 6])
    sizes = [int(v) for v in g.rng.integers(2, 14, 2)]
    nearest = bool(g.rng.integers(0, 2))
    modes = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]
    attributes = {"coordinate_transformation_mode": g.rng.choice(modes).item()}
    attributes["mode"] = "nearest" if nearest else "linear"
    if nearest:
        rounds = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        attributes["nearest_mode"] = g.rng.choice(rounds).item()
    scales = [1, 1, sizes[0] / 5, sizes[1] / 6]
    scales = g.constant(np.array(scales, np.float32))
    g.q(g.node("Resize", [x, "", scales], **attributes))


FUNCTIONS = [
    ("Sigmoid", {}), ("LeakyRelu", {"alpha": 0.1}), ("Tanh", {}), ("HardSigmoid", {}),
    ("HardSwish", {}), ("Elu", {"alpha": 0.7}), ("Erf", {}), ("Softplus", {}), ("Selu", {}),
    ("Exp", {}), ("Abs", {}), ("Neg", {}), ("Relu", {}),
]


@case(exact=False, dtypes=("u8", "s8"))
def function(g):
    op, attributes = FUNCTIONS[int(g.rng.integers(0, len(FUNCTIONS)))]
    g.q(g.node(op, [g.input([3, 50])], **attributes))


@case(exact=False)
def gelu_chain(g):
    x = g.input([3, 50])
    root, one, half = (g.constant(np.float32(v)) for v in (np.sqrt(2), 1, 0.5))
    erf = g.node("Erf", [g.node("Div", [x, root])])
    product = g.node("Mul", [x, g.node("Add", [erf, one])])
    g.q(g.node("Mul", [product, half]))


@case(exact=False)
def silu_and_prelu(g):
    x = g.input([3, 8, 4])
    silu = g.node("Mul", [x, g.node("Sigmoid", [x])])
    slope = g.constant(g.rng.uniform(-0.5, 0.5, [3, 1, 1]).astype(np.float32))
    g.q(silu)
    g.q(g.node("PRelu", [x, slope]))


@case(exact=False)
def batch_normalization(g):
    rows = [g.constant(g.rng.uniform(0.3, 1.5, 3).astype(np.float32)) for _ in range(4)]
    g.q(g.node("BatchNormalization", [g.input([3, 8, 4]), *rows]))


@case(dtypes=("u8",))
def softmax(g):
    dims = [int(v) for v in g.rng.integers(2, 20, 2)]
    y = g.node("Softmax", [g.input(dims)], axis=-1)
    scale, zero = g.constant(np.float32(1 / 256)), g.constant(DTYPES[g.dtype][0](0))
    out = g.node("QuantizeLinear", [y, scale, zero])
    g.output(out, DTYPES[g.dtype][1])


@case(exact=False)
def old_operators(g):
    """Attributes that later opsets turned into operands."""
    g.opset = int(g.rng.choice([10, 11, 12]))
    quant = g.quant()
    x = g.input([3, 6, 8], quant)
    pick = int(g.rng.integers(0, 7))
    if pick == 0:
        x = g.node("Squeeze", [g.node("Unsqueeze", [x], axes=[1])], axes=[1])
    elif pick == 1:
        x = g.node("Split", [x], outputs=2, axis=3, split=[3, 5])[1]
    elif pick == 2 and g.opset == 10:
        x = g.node("Pad", [x], pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.3)
    elif pick == 3 and g.opset == 10:
        x = g.node("Clip", [x], min=-0.5, max=1.5)
    elif pick == 4 and g.opset == 10:
        scales = g.constant(np.array([1, 1, 2, 1.5], np.float32))
        x = g.node("Resize", [x, scales], mode=g.rng.choice(["nearest", "linear"]).item())
    elif pick == 5:
        x = g.node("ReduceMean", [x], axes=[2, -1], keepdims=0)
    elif pick == 6:
        x = g.node("Softmax", [x], axis=int(g.rng.integers(1, 4)))
        scale, zero = g.constant(np.float32(1 / 256)), g.constant(np.uint8(0))
        g.output(g.node("QuantizeLinear", [x, scale, zero]), TensorProto.UINT8)
        return
    g.q(g.node("Dropout", [x]))


@case(exact=False)
def shape_arithmetic(g):
    """A shape computed from the batch, as exporters write it."""
    x = g.input([4, 3, 5])
    shape = g.node("Shape", [x])
    at = g.node("Gather", [shape, g.constant(np.int64(0))], axis=0)
    rows = g.node("Unsqueeze", [at, g.constant(np.array([0], np.int64))])
    channels = g.node("Slice", [shape, *(g.constant(np.array([v], np.int64)) for v in (1, 2))])
    two = g.constant(np.array([2], np.int64))
    doubled = g.node("Mul", [rows, two])
    half = g.node("Div", [channels, two])
    if g.rng.integers(0, 2):
        target = g.node("Concat", [rows, g.constant(np.array([-1], np.int64))], axis=0)
        x = g.node("Reshape", [x, target])
    else:
        # Rows of every sample side by side, and back.
        target = g.node("Concat", [doubled, half, g.constant(np.array([-1], np.int64))], axis=0)
        x = g.node("Reshape", [x, target])
        x = g.node("Reshape", [x, g.constant(np.array([-1, 2, 2, 15], np.int64))])
    g.q(x)


@case(exact=False)
def mixed_samples(g):
    """The batch moves, so it is fixed."""
    g.symbolic, g.batch = False, int(g.rng.integers(1, 4))
    x = g.node("Transpose", [g.input([4, 5])], perm=[1, 0, 2])
    x = g.node("Reshape", [x, g.constant(np.array([4, -1], np.int64))])
    g.q(x)


@case()
def conv_computed_weights(g):
    """Weights that are an input."""
    g.symbolic, g.batch = False, 2
    x = g.input([3, 7, 7])
    g.batch = 4
    w = g.input([3, 3, 2])
    g.q(g.node("Conv", [x, w], pads=[1, 0, 1, 1]), 8)


@case(exact=False)
def sixteen_bit_residual(g):
    g.opset = 21
    x, y = g.input([3, 20]), g.input([3, 20])
    scale = g.constant(np.float32(g.rng.uniform(0.0002, 0.001)))
    zero = g.constant(np.int16(0))
    wide = g.node("QuantizeLinear", [g.node("Add", [x, y]), scale, zero])
    wide = g.dq(wide, scale, zero)
    total = g.node("QuantizeLinear", [g.node("Add", [wide, x]), scale, zero])
    g.output(total, TensorProto.INT16)
    g.q(g.dq(total, scale, zero), 2)


@case()
def integer_image(g):
    """Integers with the channels last, as the network's own input."""
    x, scale, zero = g.integers([8, 9, 3])
    x = g.dq(g.node("Transpose", [x], perm=[0, 3, 1, 2]), scale, zero)
    w, w_scale, w_zero, axis = g.weights([4, 3, 3, 3], 0)
    y = g.node("Conv", [x, g.dq(w, w_scale, w_zero, **axis)], strides=[2, 2])
    g.q(activation(g, y), 8)


@case(exact=False)
def space_and_gather(g):
    quant = g.quant()
    x = g.input([8, 4, 6], quant)
    pick = int(g.rng.integers(0, 5))
    if pick < 2:
        x = g.node("DepthToSpace", [x], blocksize=2, mode=["DCR", "CRD"][pick])
    elif pick == 2:
        x = g.node("SpaceToDepth", [x], blocksize=2)
    elif pick == 3:
        x = g.node("Gather", [x, g.constant(np.array([[5, 1], [-1, 1]], np.int64))], axis=1)
    else:
        x = g.node("Gather", [x, g.constant(np.int64(2))], axis=3)
    g.output(g.node("QuantizeLinear", [x, quant[0], quant[1]]), TensorProto.UINT8)


@case(exact=False)
def reread(g):
    """Integers dequantized with other parameters than they were quantized with."""
    name = g.input([30])
    scale, zero, _, _ = g.quant()
    quantized = g.node("QuantizeLinear", [name, scale, zero])
    other_scale, other_zero, _, _ = g.quant()
    g.q(g.dq(quantized, other_scale, other_zero))


@case(exact=False)
def several_outputs(g):
    """One tensor as several outputs, and in float."""
    x = g.input([6])
    scale, zero, _, _ = g.quant()
    q = g.node("QuantizeLinear", [x, scale, zero])
    g.output(q, TensorProto.UINT8)
    g.output(g.node("Identity", [q]), TensorProto.UINT8)
    g.output(g.dq(q, scale, zero), TensorProto.FLOAT)
    g.output(g.node("Reshape", [g.dq(q, scale, zero), g.constant(np.array([-1, 2, 3]))]),
             TensorProto.FLOAT)


@case(exact=False)
def attention_scores(g):
    """A scaled product of two activations."""
    q, k = g.input([2, 5, 8]), g.input([2, 5, 8])
    scores = g.node("MatMul", [q, g.node("Transpose", [k], perm=[0, 1, 3, 2])])
    scores = g.node("Div", [scores, g.constant(np.float32(np.sqrt(8)))])
    g.q(scores, 8)


# QOperator form


@case(dtypes=("u8", "s8"))
def qlinear_conv(g):
    groups, channels, out, kernel, spatial = conv_parts(g, int(g.rng.integers(1, 3)))
    x, x_scale, x_zero = g.integers([channels, *spatial])
    kind = "channel" if g.dtype == "s8" else None
    w, w_scale, w_zero, _ = g.weights([out, channels // groups, *kernel], 0, kind)
    y_scale, y_zero, _, _ = g.quant()
    y_scale = g.constant(np.float32(g.rng.uniform(0.05, 0.4)))
    operands = [x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero]
    if g.rng.integers(0, 2):
        operands.append(g.constant(g.rng.integers(-3000, 3000, out).astype(np.int32)))
    y = g.node("QLinearConv", operands, group=groups, **window(g, kernel))
    g.output(y, DTYPES[g.dtype][1])


def finish(g, op, operands, domain="com.microsoft", spread=1.0, **attributes):
    y_scale, y_zero, _, _ = g.quant()
    if spread != 1.0:
        y_scale = g.constant(np.float32(g.rng.uniform(0.005, 0.05) * spread))
    y = g.node(op, [*operands, y_scale, y_zero], domain=domain, **attributes)
    g.output(y, DTYPES[g.dtype][1])


@case(dtypes=("u8", "s8"))
def qlinear_mat_mul(g):
    m, k, n = (int(v) for v in g.rng.integers(1, 24, 3))
    x = g.integers([m, k])
    kind = "channel" if g.dtype == "s8" else None
    w, w_scale, w_zero, _ = g.weights([k, n], 1, kind)
    finish(g, "QLinearMatMul", [*x, w, w_scale, w_zero], "", 8)


@case(dtypes=("u8", "s8"))
def qlinear_mat_mul_dynamic(g):
    m, k, n = (int(v) for v in g.rng.integers(1, 24, 3))
    finish(g, "QLinearMatMul", [*g.integers([2, m, k]), *g.integers([2, k, n])], "", 16)


@case(dtypes=("u8", "s8"))
def qlinear_add(g):
    dims = [int(v) for v in g.rng.integers(1, 6, 3)]
    other = [d if g.rng.integers(0, 3) else 1 for d in dims]
    finish(g, "QLinearAdd", [*g.integers(dims), *g.integers(other)], spread=2)


@case(dtypes=("u8", "s8"))
def qlinear_mul(g):
    dims = [int(v) for v in g.rng.integers(1, 6, 3)]
    finish(g, "QLinearMul", [*g.integers(dims), *g.integers(dims)], spread=8)


@case(dtypes=("u8", "s8"))
def qlinear_concat(g):
    dims = [int(v) for v in g.rng.integers(1, 6, 3)]
    parts = []
    for _ in range(3):
        dims[1] = int(g.rng.integers(1, 6))
        parts += g.integers(list(dims))
    y_scale, y_zero, _, _ = g.quant()
    y = g.node("QLinearConcat", [y_scale, y_zero, *parts], domain="com.microsoft", axis=2)
    g.output(y, DTYPES[g.dtype][1])


@case(dtypes=("u8", "s8"))
def qlinear_global_average_pool(g):
    dims = [int(v) for v in g.rng.integers(1, 9, 3)]
    finish(g, "QLinearGlobalAveragePool", g.integers(dims), channels_last=int(g.rng.integers(0, 2)))


@case(exact=False, dtypes=("u8", "s8"))
def qlinear_average_pool(g):
    attributes = {"pads": [int(v) for v in g.rng.integers(0, 2, 4)]}
    attributes["strides"] = [int(v) for v in g.rng.integers(1, 3, 2)]
    attributes["ceil_mode"] = int(g.rng.integers(0, 2))
    attributes["count_include_pad"] = int(g.rng.integers(0, 2))
    finish(g, "QLinearAveragePool", g.integers([3, 9, 10]), kernel_shape=[2, 3], **attributes)


@case(exact=False, dtypes=("u8", "s8"))
def qlinear_sigmoid(g):
    finish(g, "QLinearSigmoid", g.integers([100]))


@case(exact=False, dtypes=("u8", "s8"))
def qlinear_leaky_relu(g):
    finish(g, "QLinearLeakyRelu", g.integers([100]), alpha=0.2)


@case(dtypes=("u8", "s8"))
def qlinear_softmax(g):
    dims = [int(v) for v in g.rng.integers(2, 9, 3)]
    opset = int(g.rng.choice([11, 13]))
    zero = -128 if g.dtype == "s8" else 0
    scale, zero = g.constant(np.float32(1 / 256)), g.constant(DTYPES[g.dtype][0](zero))
    axis = int(g.rng.integers(1, 4)) if opset == 11 else -1
    y = g.node("QLinearSoftmax", [*g.integers(dims), scale, zero], domain="com.microsoft",
               axis=axis, opset=opset)
    g.output(y, DTYPES[g.dtype][1])


@case(dtypes=("u8", "s8"))
def qgemm(g):
    k, n = (int(v) for v in g.rng.integers(1, 40, 2))
    transposed = int(g.rng.integers(0, 2))
    kind = "channel" if g.dtype == "s8" else None
    dims, channel = ([n, k], 0) if transposed else ([k, n], 1)
    w, w_scale, w_zero, _ = g.weights(dims, channel, kind)
    bias = g.constant(g.rng.integers(-3000, 3000, n).astype(np.int32))
    operands = [*g.integers([k]), w, w_scale, w_zero, bias]
    alpha = float(g.rng.choice([1.0, 0.5, 0.3]))
    finish(g, "QGemm", operands, spread=8, transB=transposed, alpha=alpha)


@case(exact=False)
def qgemm_float(g):
    w, w_scale, w_zero, _ = g.weights([7, 5], 1)
    bias = g.constant(g.rng.integers(-3000, 3000, 5).astype(np.int32))
    y = g.node("QGemm", [*g.integers([7]), w, w_scale, w_zero, bias], domain="com.microsoft")
    g.output(y, TensorProto.FLOAT)


@case(exact=False)
def float_logits(g):
    """No quantization after the last layer, then Softmax, its logarithm and ArgMax in float."""
    x = g.input([20])
    w, scale, zero, axis = g.weights([20, 6], 1)
    y = g.node("Gemm", [x, g.dq(w, scale, zero, **axis)])
    g.output(g.node("Softmax", [y], axis=-1), TensorProto.FLOAT)
    g.output(g.node("LogSoftmax", [y], axis=-1), TensorProto.FLOAT)
    g.output(g.node("ArgMax", [y], axis=-1, keepdims=int(g.rng.integers(0, 2))), TensorProto.INT64)


@case()
def conv_integer(g):
    x, _, zero = g.integers([3, 7, 8])
    w = g.constant(g.rng.integers(0, 256, [4, 3, 3, 3]).astype(np.uint8))
    w_zero = g.constant(np.uint8(g.rng.integers(0, 256)))
    y = g.node("ConvInteger", [x, w, zero, w_zero], **window(g, [3, 3]))
    g.output(y, TensorProto.INT32)


@case()
def mat_mul_integer(g):
    x, _, zero = g.integers([5, 9])
    if g.rng.integers(0, 2):
        w = g.constant(g.rng.integers(-128, 128, [9, 4]).astype(np.int8))
        w_zero = g.constant(g.rng.integers(-10, 10, 4).astype(np.int8))
    else:
        w, _, w_zero = g.integers([9, 4])
    y = g.node("MatMulInteger", [x, w, zero, w_zero])
    g.output(y, TensorProto.INT32)


def limited(g, name):
    """A clamp in one of its forms, with limits that are mostly between steps."""
    low, high = np.sort(g.rng.uniform(-4, 4, 2)).astype(np.float32)
    pick = g.rng.integers(0, 5)
    if pick == 0:
        return g.node("Relu", [name])
    if pick == 1:
        return g.node("Clip", [name, g.constant(low), g.constant(high)])
    if pick == 2:
        return g.node("Clip", [name, "", g.constant(high)])
    if pick == 3:
        return g.node("Max", [g.constant(low), name])
    return g.node("Min", [name, g.constant(high)])


@case(dtypes=("u8", "s8"))
def edge_clamps(g):
    """Clamps of a float input before anything quantizes it, each of another kind, and none."""
    x = g.real([4, 3, 5])
    g.q(limited(g, x))
    g.q(limited(g, limited(g, x)))
    g.q(limited(g, g.node("Transpose", [x], perm=[0, 2, 3, 1])))
    g.q(g.node("Transpose", [limited(g, x)], perm=[0, 3, 1, 2]))
    g.q(limited(g, g.node("Concat", [limited(g, x), x], axis=1)))
    pads, value = [0, 0, 1, 0, 0, 0, 0, 2], np.float32(g.rng.uniform(-6, 6))
    padded = g.node("Pad", [limited(g, x), g.constant(np.array(pads)), g.constant(value)])
    g.q(limited(g, padded))
    g.q(x)


@case()
def edge_relu_along_axis(g):
    """A float input quantized along an axis, under a Relu that the zero points make anyway."""
    dims = [3, 4, 2]
    x = g.real(dims)
    axis = int(g.rng.integers(1, 4))
    count = dims[axis - 1]
    scales = g.constant(g.rng.uniform(0.01, 0.08, count).astype(np.float32))
    none = g.constant(np.zeros(count, np.uint8))
    zeros = g.constant(g.rng.integers(0, 200, count).astype(np.uint8))
    for name, zero in ((g.node("Relu", [x]), none), (x, zeros)):
        q = g.node("QuantizeLinear", [name, scales, zero], axis=axis)
        g.output(q, TensorProto.UINT8)
        g.output(g.dq(q, scales, zero, axis=axis), TensorProto.FLOAT)


@case()
def edge_clamp_conv(g):
    """A clamped input of a layer."""
    x = limited(g, g.real([4, 6, 6]))
    scale, zero, _, _ = g.quant()
    x = g.dq(g.node("QuantizeLinear", [x, scale, zero]), scale, zero)
    weights, w_scale, w_zero, axis = g.weights([5, 4, 3, 3], 0)
    g.q(g.node("Conv", [x, g.dq(weights, w_scale, w_zero, **axis)]), 8)


@case(exact=False)
def dynamic_clamp(g):
    """A dynamic layer under a clamp before a fixed quantization."""
    g.batch = 1
    name = g.real([6, 9])
    y, scale, zero = g.node("DynamicQuantizeLinear", [name], outputs=3)
    w = g.constant(g.rng.integers(-127, 128, [9, 5]).astype(np.int8))
    product = g.node("MatMulInteger", [y, w, zero])
    scales = g.node("Mul", [scale, g.constant(np.float32(0.013))])
    name = g.node("Mul", [g.node("Cast", [product], to=TensorProto.FLOAT), scales])
    g.q(limited(g, name), 2)


@case()
def batch_picks(g):
    """Samples picked from the batch: served one at a time, so that a batch of one is what counts."""
    g.batch, g.mixes = 1, True
    x = g.input([4, 3])
    one = [g.constant(np.array([v])) for v in (0, 1)]
    last = [g.constant(np.array([v])) for v in (-1, 2**62)]
    pick = g.rng.integers(0, 5)
    if pick == 0:
        x = g.node("Slice", [x, *one, one[0]])
    elif pick == 1:
        x = g.node("Slice", [x, *last, one[0]])
    elif pick == 2:
        x = g.node("Gather", [x, one[0]], axis=0)
    elif pick == 3:
        x = g.node("Gather", [x, g.constant(np.array(-1))], axis=0)
    else:
        x = g.node("Split", [x, one[1]], axis=0)
    g.q(g.node("Relu", [x]))


@case()
def resize_symmetric(g):
    """Neighbours that hang on the last bit of a coordinate: 5 to 3 rows is one that does."""
    g.opset = 19
    for rows, scale, mode in (
        (5, 0.6, "floor"),
        (
            int(g.rng.integers(3, 12)),
            float(g.rng.choice([0.3, 0.6, 0.7, 1.3, 1.4, 1.7, 2.2])),
            g.rng.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]).item(),
        ),
    ):
        x = g.input([2, rows, 4])
        scales = g.constant(np.array([1, 1, scale, 1], np.float32))
        y = g.node("Resize", [x, "", scales], nearest_mode=mode,
                   coordinate_transformation_mode="half_pixel_symmetric")
        g.q(y)


@case(exact=False)
def batch_size_in_arithmetic(g):
    """The batch size where no rule for every size is known, as in PyTorch's expand: a batch of one."""
    g.batch, g.mixes = 1, True
    x = g.input([4, 3])
    shape = g.node("Shape", [x])
    pick = g.rng.integers(0, 4)
    if pick == 0:
        one = g.constant(np.array([1, 1, 1]))
        wanted = g.node("Where", [g.node("Equal", [shape, one]), one, shape])
        y = g.node("Reshape", [x, wanted])
    elif pick == 1:
        halves = numpy_helper.from_array(np.array([0.5], np.float32))
        y = g.node("Add", [x, g.node("ConstantOfShape", [shape], value=halves)])
    elif pick == 2:
        half = g.constant(np.full([1, 1, 1], 0.5, np.float32))
        y = g.node("Add", [x, g.node("Expand", [half, shape])])
    else:
        count = g.node("Gather", [shape, g.constant(np.array([0]))])
        y = g.node("Mul", [x, g.node("Cast", [count], to=TensorProto.FLOAT)])
    g.q(y)


@case()
def batch_whole(g):
    """Slices that take the whole batch keep it symbolic."""
    x = g.input([4, 3])
    end = int(g.rng.choice([2**31 - 1, 2**62]))
    ranges = [g.constant(np.array(v)) for v in ([0, 1], [end, 3], [0, 1])]
    g.q(g.node("Slice", [x, *ranges]))


@case(exact=False)
def dynamic(g):
    """Dynamic quantization as ONNX Runtime's quantize_dynamic writes it; ranges are per sample."""
    g.batch = 1
    name = g.name("x")
    g.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6, 9]))
    g.feeds[name] = g.rng.normal(0, 2, [1, 6, 9]).astype(np.float32)
    for width in (8, 4):
        inner = 9 if width == 8 else 8
        y, scale, zero = g.node("DynamicQuantizeLinear", [name], outputs=3)
        w = g.constant(g.rng.integers(-127, 128, [inner, width]).astype(np.int8))
        product = g.node("MatMulInteger", [y, w, zero, g.constant(np.int8(0))])
        scales = g.node("Mul", [scale, g.constant(np.float32(0.013))])
        name = g.node("Mul", [g.node("Cast", [product], to=TensorProto.FLOAT), scales])
        name = g.node("Add", [name, g.constant(g.rng.normal(0, 1, width).astype(np.float32))])
        if width == 8:
            name = g.node("Relu", [name])
    g.output(name, TensorProto.FLOAT)


def network(g, opset):
    """A small network in the operators of one opset; 9 has QuantizeLinear in ONNX Runtime's domain only."""
    g.opset = opset
    domain = "com.microsoft" if opset == 9 else ""

    def q(x, scale, zero):
        return g.node("QuantizeLinear", [x, scale, zero], domain=domain)

    def dq(x, scale, zero, **axis):
        return g.node("DequantizeLinear", [x, scale, zero], domain=domain, **axis)

    def again(x, spread=1.0):
        scale, zero, _, _ = g.quant()
        scale = g.constant(np.float32(g.rng.uniform(0.01, 0.05) * spread))
        return dq(q(x, scale, zero), scale, zero)

    def layer(op, x, dims, channel, **attributes):
        values = g.constant(g.rng.integers(-127, 128, dims).astype(np.int8))
        scale, zero = g.constant(np.float32(0.01)), g.constant(np.int8(0))
        return again(g.node(op, [x, dq(values, scale, zero)], **attributes), 8)

    x = again(g.node("Relu", [g.real([3, 9, 9])]), 4)
    x = layer("Conv", x, [4, 3, 3, 3], 0, pads=[1, 1, 1, 1])
    x = again(g.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2]), 4)
    limits = np.float32(-3), np.float32(5)
    if opset < 11:
        clipped = g.node("Clip", [x], min=float(limits[0]), max=float(limits[1]))
    else:
        clipped = g.node("Clip", [x, *(g.constant(limit) for limit in limits)])
    x = again(g.node("Add", [x, again(clipped)]), 2)
    if opset >= 10:
        x = g.node("Slice", [x, *(g.constant(np.array([v])) for v in (0, 3, 1))])
    if opset < 13:
        x = g.node("Unsqueeze", [g.node("Squeeze", [g.node("GlobalAveragePool", [x])],
                                        axes=[3])], axes=[3])
    else:
        axes = g.constant(np.array([3]))
        x = g.node("Unsqueeze", [g.node("Squeeze", [g.node("GlobalAveragePool", [x]), axes]), axes])
    x = g.node("Flatten", [again(x)])
    x = layer("MatMul", x, [3 if opset >= 10 else 4, 5], 1)
    scale, zero, _, _ = g.quant()
    g.output(q(g.node("Softmax", [x], axis=1), g.constant(np.float32(1 / 256)),
               g.constant(np.uint8(0))), TensorProto.UINT8)
    g.output(q(x, scale, zero), TensorProto.UINT8)


def network_of(opset):
    """Registers the network of an opset."""

    def build(g):
        network(g, opset)

    build.__name__ = f"opset_{opset}"
    case(exact=False)(build)


for number in range(9, 26):
    network_of(number)


def run_ours(example, path, graph, directory):
    np.savez(directory / "inputs.npz", **graph.feeds)
    samples = graph.batch if graph.symbolic else 1
    command = [example, str(path), str(directory / "inputs.npz"), str(directory), str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    results = []
    for index, line in enumerate(done.stdout.splitlines()):
        _, dtype, batched, _ = line.split("\t")
        if (batched == "true") != (graph.symbolic and not graph.mixes):
            raise RuntimeError("the batch is not what it was")
        results.append(np.fromfile(directory / f"{index}.bin", RAW[dtype]))
    return results


def compare(got, want, exact):
    """The largest difference in steps; raises where it is too large."""
    want = want.flatten()
    if got.dtype != want.dtype or got.shape != want.shape:
        raise RuntimeError(f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}")
    if want.dtype == np.float32:
        limit = 1e-5 * max(1.0, np.abs(want).max())
        difference = np.abs(got - want).max()
        if difference > limit:
            raise RuntimeError(f"float results differ by {difference}")
        return 0
    steps = int(np.abs(got.astype(np.int64) - want.astype(np.int64)).max())
    if steps > (0 if exact else 1):
        at = np.flatnonzero(got != want)
        raise RuntimeError(f"{len(at)} of {want.size} differ, by up to {steps}: "
                           f"{got[at[:5]]} instead of {want[at[:5]]}")
    return steps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("example", nargs="?")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    example = arguments.example or built("run_onnx")
    ort.set_default_logger_severity(3)
    failures, total = 0, 0
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        for label, (build, dtype, exact) in CASES.items():
            if arguments.only not in label:
                continue
            # Only the QOperator form runs in integers for signed activations.
            integer = build.__name__.startswith(("qlinear", "qgemm"))
            worst = 0
            for seed in range(arguments.seeds):
                graph = Graph(np.random.default_rng([seed, len(label)]), dtype)
                build(graph)
                path = directory / "model.onnx"
                onnx.save(graph.model(), path)
                total += 1
                try:
                    options = ort.SessionOptions()
                    if graph.opset == 9:
                        # The optimizer would write operators that this opset does not have.
                        off = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
                        options.graph_optimization_level = off
                    session = ort.InferenceSession(str(path), options,
                                                   providers=["CPUExecutionProvider"])
                    want = session.run(None, graph.feeds)
                    got = run_ours(example, path, graph, directory)
                    strict = exact and (dtype == "u8" or integer)
                    worst = max([worst, *(compare(a, b, strict) for a, b in zip(got, want))])
                except Exception as error:  # reported, and counted
                    failures += 1
                    print(f"{label} seed {seed}: {error}")
            print(f"{label}: {'equal' if worst == 0 else f'within {worst} step'}")
    print(f"{total} models, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
