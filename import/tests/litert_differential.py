#!/usr/bin/env python3
"""Compares the TFLite importer and the reference backend with LiteRT's reference kernels.

Every operator that is imported is built many times over with random shapes, options, scales and zero
points, as int8 and as uint8, and run on random inputs by LiteRT's interpreter with the resolver
BUILTIN_REF. Every element must be equal. (TANH follows the C library's tanhf there, which may be off by its
last bit: over thousands of seeds an element at a tie may differ.)

usage: litert_differential.py [RUN_TFLITE_EXAMPLE] [--kernels litert|tflm] [--seeds N] [--only NAME]
                              [--keep DIRECTORY]

needs numpy and ai-edge-litert 2.3 from PyPI; with `--kernels tflm` tflite-runtime 2.14 beside its schema,
whose FULLY_CONNECTED rounds as that of the microcontrollers does. The example is built where no path to
it is given.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent.parent / "conformance"))
from example import built  # noqa: E402

SAMPLES = 3
TYPES = {
    "i8": (schema.TensorType.INT8, np.int8),
    "u8": (schema.TensorType.UINT8, np.uint8),
    "i4": (schema.TensorType.INT4, np.int8),
    "i32": (schema.TensorType.INT32, np.int32),
    "f32": (schema.TensorType.FLOAT32, np.float32),
}
CASES = {}


def case(types=("i8", "u8")):
    def register(function):
        for dtype in types:
            CASES[f"{function.__name__}[{dtype}]"] = (function, dtype)
        return function

    return register


class Model:
    """A model under construction."""

    def __init__(self, rng, dtype):
        self.rng, self.dtype = rng, dtype
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.buffers, self.codes, self.feeds = [schema.BufferT()], [], []

    def tensor(self, dims, dtype=None, scale=None, zero=None, data=None, axis=0):
        tensor = schema.TensorT()
        tensor.name = f"t{len(self.graph.tensors)}".encode()
        tensor.shape = [int(d) for d in dims]
        tensor.type = TYPES[dtype or self.dtype][0]
        tensor.buffer = 0
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [float(s) for s in scales]
            zeros = np.zeros(len(scales), np.int64) if zero is None else np.atleast_1d(zero)
            tensor.quantization.zeroPoint = [int(z) for z in zeros]
            tensor.quantization.quantizedDimension = axis
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(bytes(data), np.uint8)
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def quant(self, dtype=None, spread=1.0):
        info = np.iinfo(TYPES[dtype or self.dtype][1])
        scale = np.float32(np.exp(self.rng.uniform(np.log(0.004), np.log(0.2))) * spread)
        if self.rng.integers(4) == 0:
            # Powers of two make ties.
            scale = np.float32(2.0 ** np.round(np.log2(scale)))
        zero = self.rng.choice([info.min, info.max, 0, self.rng.integers(info.min, info.max + 1)])
        return scale, int(zero)

    def input(self, dims, dtype=None, quant=None):
        dtype = dtype or self.dtype
        shape = [SAMPLES, *dims[1:]] if dims[0] == 1 else [SAMPLES, *dims]
        if dtype == "f32":
            data = (self.rng.normal(size=shape) * 3).astype(np.float32)
            index = self.tensor(dims, dtype)
        else:
            info = np.iinfo(TYPES[dtype][1])
            data = self.rng.integers(info.min, info.max + 1, shape).astype(TYPES[dtype][1])
            index = self.tensor(dims, dtype, *(quant or self.quant(dtype)))
        self.feeds.append(data.reshape(SAMPLES, *dims))
        self.graph.inputs.append(index)
        return index

    def constant(self, values, dtype="i32", **quant):
        values = np.asarray(values, TYPES[dtype][1])
        return self.tensor(values.shape, dtype, data=values.tobytes(), **quant)

    def random(self, dims, dtype=None, quant=None):
        dtype = dtype or self.dtype
        info = np.iinfo(TYPES[dtype][1])
        scale, zero = quant or self.quant(dtype)
        values = self.rng.integers(info.min, info.max + 1, dims)
        return self.constant(values, dtype, scale=scale, zero=zero)

    def quant_of(self, index):
        quantization = self.graph.tensors[index].quantization
        return np.float32(quantization.scale[0]), int(quantization.zeroPoint[0])

    def dims(self, index):
        return list(self.graph.tensors[index].shape)

    def operator(self, name, inputs, outputs, options=None, **fields):
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        # The newest versions there are of some, and one that every kernel of the others knows.
        code.version = {"LEAKY_RELU": 2, "HARD_SWISH": 1, "RELU_N1_TO_1": 1, "RESHAPE": 1,
                        "EXPAND_DIMS": 1, "SQUEEZE": 1, "QUANTIZE": 2}.get(name, 3)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.codes)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array(outputs, np.int32)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, options + "T")()
            for field, value in fields.items():
                assert hasattr(operator.builtinOptions, field), field
                setattr(operator.builtinOptions, field, value)
        self.codes.append(code)
        self.graph.operators.append(operator)

    def output(self, *indices):
        self.graph.outputs = list(indices)

    def bytes(self):
        model = schema.ModelT()
        model.version, model.description = 3, b"random"
        model.operatorCodes, model.subgraphs = self.codes, [self.graph]
        model.buffers = self.buffers
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def image(self, most=9, channels=(1, 2, 3, 8, 17)):
        return [1, int(self.rng.integers(1, most)), int(self.rng.integers(1, most)),
                int(self.rng.choice(channels))]

    def activation(self):
        return int(self.rng.choice([0, 0, 1, 2, 3]))

    def window(self, dims, filter_dims, dilations=(1, 1)):
        """Padding, strides and the output's extents, or None where nothing fits."""
        padding = int(self.rng.integers(2))
        strides = self.rng.integers(1, 4, 2)
        extents = []
        for size, taps, stride, dilation in zip(dims[1:3], filter_dims, strides, dilations):
            span = (taps - 1) * dilation + 1
            extents.append(-(-size // stride) if padding == 0 else (size - span) // stride + 1)
        if min(extents) < 1:
            return None
        fields = {"padding": padding, "strideH": int(strides[0]), "strideW": int(strides[1])}
        return fields, [int(e) for e in extents]


def weights(model, dims, channels, axis, narrow=False, biased=False):
    """Weights, their scales, and a bias of all output channels (now and then none)."""
    rng = model.rng
    if model.dtype == "u8":
        scale, zero = model.quant()
        w = model.random(dims, quant=(scale, zero))
        scales = np.float32([scale])
    else:
        count = channels if rng.integers(3) else 1
        scales = np.exp(rng.uniform(np.log(0.002), np.log(0.1), count)).astype(np.float32)
        if narrow:
            values = rng.integers(-8, 8, dims).astype(np.int8)
            flat = np.append(values.reshape(-1), [0] * (values.size % 2)).astype(np.int8)
            packed = (flat[0::2] & 15) | ((flat[1::2] & 15) << 4)
            w = model.tensor(dims, "i4", scales, data=packed.astype(np.uint8).tobytes(), axis=axis)
        else:
            values = rng.integers(-127, 128, dims)
            w = model.constant(values, "i8", scale=scales, axis=axis)
    if rng.integers(4) == 0 and not (biased or narrow):
        return w, scales, None
    return w, scales, rng.integers(-3000, 3000, channels)


def finish_linear(model, name, x, w, scales, bias, out_dims, depth, options, **fields):
    x_scale, _ = model.quant_of(x)
    inputs = [x, w]
    if bias is not None:
        inputs.append(model.constant(bias, "i32", scale=x_scale * scales))
    else:
        inputs.append(-1)
    spread = float(np.mean(scales)) * float(x_scale) * 60 * np.sqrt(depth)
    scale = np.float32(spread * model.rng.uniform(0.5, 2.0))
    if model.rng.integers(3) == 0:
        scale = np.float32(2.0 ** np.round(np.log2(scale)))
    _, zero = model.quant()
    y = model.tensor(out_dims, None, scale, zero)
    model.operator(name, inputs, [y], options, **fields)
    model.output(y)


@case()
def conv(model, narrow=False):
    rng = model.rng
    dims = model.image()
    groups = int(rng.choice([g for g in (1, 1, 1, 2) if dims[3] % g == 0]))
    kernel = [int(k) for k in rng.integers(1, 4, 2)]
    dilations = [int(d) for d in rng.choice([1, 1, 2], 2)]
    found = model.window(dims, kernel, dilations)
    if found is None:
        return False
    fields, extents = found
    channels = int(rng.choice([1, 2, 5, 16])) * groups
    x = model.input(dims)
    depth = dims[3] // groups
    w, scales, bias = weights(model, [channels, *kernel, depth], channels, 0, narrow, biased=True)
    finish_linear(model, "CONV_2D", x, w, scales, bias, [1, *extents, channels],
                  kernel[0] * kernel[1] * depth, "Conv2DOptions",
                  fusedActivationFunction=model.activation(), dilationHFactor=dilations[0],
                  dilationWFactor=dilations[1], **fields)


@case(["i8"])
def conv_int4(model):
    return conv(model, narrow=True)


@case()
def depthwise_conv(model):
    rng = model.rng
    dims = model.image()
    multiplier = int(rng.choice([1, 1, 1, 2, 3]))
    kernel = [int(k) for k in rng.integers(1, 4, 2)]
    dilations = [int(d) for d in rng.choice([1, 1, 2], 2)]
    found = model.window(dims, kernel, dilations)
    if found is None:
        return False
    fields, extents = found
    channels = dims[3] * multiplier
    x = model.input(dims)
    w, scales, bias = weights(model, [1, *kernel, channels], channels, 3, biased=True)
    finish_linear(model, "DEPTHWISE_CONV_2D", x, w, scales, bias, [1, *extents, channels],
                  kernel[0] * kernel[1], "DepthwiseConv2DOptions", depthMultiplier=multiplier,
                  fusedActivationFunction=model.activation(), dilationHFactor=dilations[0],
                  dilationWFactor=dilations[1], **fields)


@case()
def fully_connected(model):
    rng = model.rng
    lead = [int(d) for d in rng.integers(1, 5, rng.integers(0, 3))]
    depth, units = int(rng.integers(1, 70)), int(rng.integers(1, 20))
    keep = bool(rng.integers(2))
    x = model.input([1, *lead, depth])
    w, scales, bias = weights(model, [units, depth], units, 0)
    rows = int(np.prod([1, *lead]))
    out_dims = [1, *lead, units] if keep else [rows, units]
    finish_linear(model, "FULLY_CONNECTED", x, w, scales, bias, out_dims, depth,
                  "FullyConnectedOptions", fusedActivationFunction=model.activation(),
                  keepNumDims=keep)


def binary(model, name, options, product=False):
    rng = model.rng
    dims = model.image()
    other = [dims, dims, [1, 1, 1, dims[3]], [1, dims[1], 1, 1]][rng.integers(4)]
    x = model.input(dims)
    y = model.random(other) if rng.integers(3) == 0 else model.input(other)
    (a, _), (b, _) = model.quant_of(x), model.quant_of(y)
    scale = a * b * 100 if product else max(a, b) * np.float32(rng.uniform(0.6, 2.5))
    _, zero = model.quant()
    out = model.tensor(dims, None, np.float32(scale), zero)
    pair = [x, y] if rng.integers(2) else [y, x]
    model.operator(name, pair, [out], options, fusedActivationFunction=model.activation())
    model.output(out)


@case()
def add(model):
    binary(model, "ADD", "AddOptions")


@case()
def sub(model):
    binary(model, "SUB", "SubOptions")


@case()
def mul(model):
    binary(model, "MUL", "MulOptions", product=True)


def pool(model, name):
    dims = model.image()
    kernel = [int(k) for k in model.rng.integers(1, 5, 2)]
    found = model.window(dims, kernel)
    if found is None:
        return False
    fields, extents = found
    x = model.input(dims)
    y = model.tensor([1, *extents, dims[3]], None, *model.quant_of(x))
    model.operator(name, [x], [y], "Pool2DOptions", filterHeight=kernel[0], filterWidth=kernel[1],
                   fusedActivationFunction=model.activation(), **fields)
    model.output(y)


@case()
def average_pool(model):
    return pool(model, "AVERAGE_POOL_2D")


@case()
def max_pool(model):
    return pool(model, "MAX_POOL_2D")


@case()
def mean(model):
    rng = model.rng
    dims = model.image(most=14)
    axes = [[1, 2], [1, 2], [2, 1], [1], [3], [1, 2, 3], [-1], [-2, 1]][rng.integers(8)]
    keep = bool(rng.integers(2))
    x = model.input(dims)
    whole = [a % 4 for a in axes]
    out = [1 if i in whole else d for i, d in enumerate(dims) if keep or i not in whole]
    scale, zero = model.quant()
    a, z = model.quant_of(x)
    scale, zero = (a, z) if rng.integers(3) == 0 else (np.float32(a * rng.uniform(0.3, 1.5)), zero)
    y = model.tensor(out, None, scale, zero)
    model.operator("MEAN", [x, model.constant(axes)], [y], "ReducerOptions", keepDims=keep)
    model.output(y)


@case()
def pad(model):
    rng = model.rng
    dims = model.image()
    paddings = rng.integers(0, 4, (4, 2))
    paddings[0] = 0
    x = model.input(dims)
    quant = model.quant_of(x)
    y = model.tensor([d + int(p.sum()) for d, p in zip(dims, paddings)], None, *quant)
    inputs = [x, model.constant(paddings)]
    if rng.integers(2):
        inputs.append(model.random([1], quant=quant))
        model.operator("PADV2", inputs, [y], "PadV2Options")
    else:
        model.operator("PAD", inputs, [y], "PadOptions")
    model.output(y)


@case()
def reshape(model):
    dims = model.image()
    x = model.input(dims)
    quant = model.quant_of(x)
    kind = model.rng.integers(3)
    if kind == 0:
        out = [1, int(np.prod(dims))]
        y = model.tensor(out, None, *quant)
        model.operator("RESHAPE", [x, model.constant(out)], [y], "ReshapeOptions", newShape=out)
    elif kind == 1:
        y = model.tensor([*dims[:2], 1, *dims[2:]], None, *quant)
        model.operator("EXPAND_DIMS", [x, model.constant([2])], [y], "ExpandDimsOptions")
    else:
        axes = [i for i in (1, 2) if dims[i] == 1]
        y = model.tensor([d for i, d in enumerate(dims) if i not in axes], None, *quant)
        if not axes:
            return False
        model.operator("SQUEEZE", [x], [y], "SqueezeOptions", squeezeDims=axes)
    model.output(y)


@case()
def softmax(model):
    rng = model.rng
    lead = [1] if rng.integers(2) else [1, int(rng.integers(1, 5))]
    length = int(rng.choice([1, 2, 10, 33, 200, 1001]))
    scale, zero = model.quant(spread=float(rng.choice([0.2, 1.0, 5.0])))
    x = model.input([*lead, length], quant=(scale, zero))
    if rng.integers(4) == 0:
        # Rows of equal values.
        model.feeds[-1][0] = model.feeds[-1].flat[0]
    # LiteRT's kernel aborts where the sum of exponentials reaches 512.
    beta = float(rng.choice([1.0, 1.0, 0.5, 2.0]))
    below = model.feeds[-1].astype(float) - model.feeds[-1].max(-1, keepdims=True)
    if np.exp(below * scale * beta).sum(-1).max() > 500:
        return False
    y = model.tensor([*lead, length], None, 1 / 256, -128 if model.dtype == "i8" else 0)
    model.operator("SOFTMAX", [x], [y], "SoftmaxOptions", beta=beta)
    model.output(y)


def mapped(model, name, quant, options=None, **fields):
    dims = [1, 16, 16]
    x = model.input(dims)
    if model.rng.integers(2):
        # Every value there is.
        info = np.iinfo(TYPES[model.dtype][1])
        model.feeds[-1][0] = np.arange(info.min, info.max + 1).reshape(16, 16)
    y = model.tensor(dims, None, *quant)
    model.operator(name, [x], [y], options, **fields)
    model.output(y)


@case()
def logistic(model):
    mapped(model, "LOGISTIC", (1 / 256, -128 if model.dtype == "i8" else 0))


@case()
def tanh(model):
    mapped(model, "TANH", (1 / 128, 0 if model.dtype == "i8" else 128))


@case()
def relu(model):
    name = ["RELU", "RELU6", "RELU_N1_TO_1"][model.rng.integers(3)]
    mapped(model, name, model.quant())


@case()
def leaky_relu(model):
    alpha = float(np.float32(model.rng.uniform(0.01, 0.9)))
    mapped(model, "LEAKY_RELU", model.quant(), "LeakyReluOptions", alpha=alpha)


@case()
def hard_swish(model):
    mapped(model, "HARD_SWISH", model.quant(), "HardSwishOptions")


@case(["i8", "u8"])
def quantize(model):
    dims = model.image()
    source = ["f32", "i8", "u8"][model.rng.integers(3)]
    x = model.input(dims, source)
    y = model.tensor(dims, None, *model.quant())
    model.operator("QUANTIZE", [x], [y], "QuantizeOptions")
    model.output(y)


@case()
def dequantize(model):
    dims = model.image()
    x = model.input(dims)
    y = model.tensor(dims, "f32")
    model.operator("DEQUANTIZE", [x], [y], "DequantizeOptions")
    model.output(y)


@case()
def concatenation(model):
    rng = model.rng
    dims = model.image()
    axis = int(rng.choice([1, 2, 3, -1]))
    quant = model.quant()
    inputs, total = [], 0
    for _ in range(rng.integers(1, 4)):
        own = list(dims)
        own[axis] = int(rng.integers(1, 5))
        total += own[axis]
        # Unsigned operands may have scales of their own.
        own_quant = None if model.dtype == "u8" and rng.integers(2) else quant
        inputs.append(model.input(own, quant=own_quant))
    out = list(dims)
    out[axis] = total
    y = model.tensor(out, None, *quant)
    model.operator("CONCATENATION", inputs, [y], "ConcatenationOptions", axis=axis)
    model.output(y)


@case()
def transpose(model):
    dims = model.image()
    perm = [0, *(int(p) + 1 for p in model.rng.permutation(3))]
    x = model.input(dims)
    y = model.tensor([dims[p] for p in perm], None, *model.quant_of(x))
    model.operator("TRANSPOSE", [x, model.constant(perm)], [y], "TransposeOptions")
    model.output(y)


@case()
def strided_slice(model):
    rng = model.rng
    dims = model.image()
    begin, end, strides, counts = [0], [1], [1], [1]
    masks = {"beginMask": int(rng.integers(16)), "endMask": int(rng.integers(16))}
    shrink = int(rng.integers(8)) << 1 if rng.integers(2) else 0
    for axis, d in enumerate(dims[1:], 1):
        step = int(rng.choice([1, 1, 2, 3, -1, -2]))
        start, stop = int(rng.integers(-d - 1, d + 2)), int(rng.integers(-d - 1, d + 2))
        if shrink >> axis & 1:
            step, start = 1, int(rng.integers(0, d))
            stop = start + 1
            masks["beginMask"] &= ~(1 << axis)
        begin.append(start), end.append(stop), strides.append(step)
        taken = slice(None if masks["beginMask"] >> axis & 1 else start,
                      None if masks["endMask"] >> axis & 1 else stop, step)
        counts.append(1 if shrink >> axis & 1 else len(range(d)[taken]))
    if min(counts) < 1:
        return False
    x = model.input(dims)
    out = [c for axis, c in enumerate(counts) if not shrink >> axis & 1]
    y = model.tensor(out, None, *model.quant_of(x))
    inputs = [x, model.constant(begin), model.constant(end), model.constant(strides)]
    model.operator("STRIDED_SLICE", inputs, [y], "StridedSliceOptions", shrinkAxisMask=shrink,
                   **masks)
    model.output(y)


@case()
def slice_(model):
    rng = model.rng
    dims = model.image()
    begin = [0, *(int(rng.integers(0, d)) for d in dims[1:])]
    counts = [int(rng.integers(1, d - b + 1)) for d, b in zip(dims, begin)]
    size = [-1 if c == d - b and rng.integers(2) else c for c, d, b in zip(counts, dims, begin)]
    x = model.input(dims)
    y = model.tensor(counts, None, *model.quant_of(x))
    model.operator("SLICE", [x, model.constant(begin), model.constant(size)], [y], "SliceOptions")
    model.output(y)


@case()
def split(model):
    rng = model.rng
    parts, axis = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    dims = model.image()
    dims[axis] = parts * int(rng.integers(1, 4))
    x = model.input(dims)
    out = list(dims)
    out[axis] //= parts
    ys = [model.tensor(out, None, *model.quant_of(x)) for _ in range(parts)]
    at = axis - 4 if rng.integers(2) else axis
    model.operator("SPLIT", [model.constant(np.int32(at).reshape(())), x], ys, "SplitOptions",
                   numSplits=parts)
    model.output(*ys)


def resize(model, name, options):
    rng = model.rng
    dims = model.image()
    size = [int(s) for s in rng.integers(1, 14, 2)]
    align, half = [(False, False), (True, False), (False, True)][rng.integers(3)]
    x = model.input(dims)
    y = model.tensor([1, *size, dims[3]], None, *model.quant_of(x))
    model.operator(name, [x, model.constant(size)], [y], options, alignCorners=align,
                   halfPixelCenters=half)
    model.output(y)


@case(["i8"])
def resize_bilinear(model):
    resize(model, "RESIZE_BILINEAR", "ResizeBilinearOptions")


@case()
def resize_nearest(model):
    resize(model, "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")


def reference(content, feeds, kernels="litert"):
    """LiteRT's results, all samples of each output one after the other."""
    if kernels == "litert":
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    else:
        from tflite_runtime.interpreter import Interpreter, OpResolverType
    interpreter = Interpreter(model_content=content, num_threads=1,
                              experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    results = []
    for sample in range(SAMPLES):
        for detail, feed in zip(interpreter.get_input_details(), feeds):
            interpreter.set_tensor(detail["index"], feed[sample].reshape(detail["shape"]))
        interpreter.invoke()
        outputs = interpreter.get_output_details()
        results.append([interpreter.get_tensor(o["index"]).copy() for o in outputs])
    return [np.stack(output) for output in zip(*results)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("example", nargs="?")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--kernels", choices=["litert", "tflm"], default="litert")
    parser.add_argument("--keep")
    arguments = parser.parse_args()
    example = arguments.example or built("run_tflite")
    folder = pathlib.Path(tempfile.mkdtemp() if arguments.keep is None else arguments.keep)
    folder.mkdir(exist_ok=True)
    wanted = {}
    for index, (name, (build, dtype)) in enumerate(sorted(CASES.items())):
        if arguments.only not in name:
            continue
        for seed in range(arguments.seeds):
            rng = np.random.default_rng([index, seed])
            for _ in range(50):
                model = Model(rng, dtype)
                if build(model) is not False:
                    break
            else:
                sys.exit(f"{name}: no model fits")
            if arguments.kernels == "tflm" and name == "fully_connected[i8]":
                # tflite-runtime 2.14 mishandles weights with several scales here.
                if len(model.graph.tensors[model.graph.operators[0].inputs[1]].quantization.scale) > 1:
                    continue
            content = model.bytes()
            stem = f"{name}-{seed}"
            try:
                results = reference(content, model.feeds, arguments.kernels)
            except (RuntimeError, ValueError) as error:
                print(f"{stem}: LiteRT refuses it: {str(error).splitlines()[0][:150]}")
                continue
            (folder / f"{stem}.tflite").write_bytes(content)
            for i, feed in enumerate(model.feeds):
                (folder / f"{stem}.in{i}").write_bytes(feed.tobytes())
            wanted[stem] = results
    subprocess.run([example, str(folder), arguments.kernels], check=True)
    bad, refused, elements, by_case = 0, 0, 0, {}
    for stem, results in wanted.items():
        reason = folder / f"{stem}.refused"
        if reason.exists():
            refused += 1
            print(f"{stem}: refused: {reason.read_text()}")
            continue
        for i, want in enumerate(results):
            got = np.frombuffer((folder / f"{stem}.out{i}").read_bytes(), want.dtype)
            elements += want.size
            differing = int((got != want.reshape(-1)).sum()) if got.size == want.size else want.size
            if differing:
                bad += 1
                print(f"{stem}: output {i}: {differing} of {want.size} differ")
        case_name = stem.rsplit("-", 1)[0]
        by_case[case_name] = by_case.get(case_name, 0) + 1
    print(f"{len(wanted) - refused} models of {len(by_case)} kinds, {elements} elements: "
          f"{bad} outputs differ, {refused} models refused")
    if arguments.keep is None:
        shutil.rmtree(folder)
    sys.exit(bool(bad or refused))


if __name__ == "__main__":
    main()
