"""Builds the networks that cpu.py measures: well-known topologies with random weights, as float ONNX and
as int8 QDQ made by onnxruntime. The same seed gives the same files. Batch normalization counts as folded:
each convolution has a bias. Timing only; the weights compute nothing of use.

python networks.py FOLDER      writes resnet50.onnx, resnet50_qdq.onnx, mobilenetv2.onnx, mobilenetv2_qdq.onnx
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

SIDE = 224


class Network:
    """An ONNX graph under construction, one tensor after the other."""

    def __init__(self, name, seed):
        self.name, self.random = name, np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, name, array):
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op, inputs, **attributes):
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def conv(self, x, channels, out, kernel, stride=1, groups=1, gain=2.0):
        depth = channels // groups * kernel * kernel
        weights = self.random.normal(0, (gain / depth) ** 0.5, (out, channels // groups, kernel, kernel))
        index, pad = len(self.nodes), kernel // 2
        return self.node(
            "Conv",
            [x, self.constant(f"w{index}", weights), self.constant(f"b{index}", self.random.normal(0, 0.05, out))],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=groups,
        )

    def classifier(self, x, channels, classes):
        pooled = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        weights = self.constant("classes.w", self.random.normal(0, channels**-0.5, (classes, channels)))
        bias = self.constant("classes.b", np.zeros(classes))
        return self.node("Gemm", [pooled, weights, bias], transB=1)

    def save(self, output, path):
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 1000])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def resnet50(path):
    """He et al. 2016, with the stride in the 3x3 convolution."""
    net = Network("resnet50", 50)
    x = net.node("Relu", [net.conv("input", 3, 64, 7, 2)])
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = net.node("Relu", [net.conv(x, channels, width, 1)])
            y = net.node("Relu", [net.conv(y, width, width, 3, stride)])
            y = net.conv(y, width, 4 * width, 1, gain=0.2)
            if block == 0:
                x = net.conv(x, channels, 4 * width, 1, stride, gain=1.0)
            channels = 4 * width
            x = net.node("Relu", [net.node("Add", [y, x])])
    net.save(net.classifier(x, channels, 1000), path)


def mobilenetv2(path):
    """Sandler et al. 2018, width 1."""
    net = Network("mobilenetv2", 2)

    def relu6(x):
        limits = [net.constant(f"{side}{len(net.nodes)}", np.array(v)) for side, v in (("lo", 0.0), ("hi", 6.0))]
        return net.node("Clip", [x, *limits])

    x, channels = relu6(net.conv("input", 3, 32, 3, 2)), 32
    for expand, out, blocks, first in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ]:  # fmt: skip
        for block in range(blocks):
            stride, wide = first if block == 0 else 1, channels * expand
            y = relu6(net.conv(x, channels, wide, 1)) if expand > 1 else x
            y = relu6(net.conv(y, wide, wide, 3, stride, groups=wide))
            y = net.conv(y, wide, out, 1, gain=1.0)
            x = net.node("Add", [x, y]) if stride == 1 and channels == out else y
            channels = out
    x = relu6(net.conv(x, channels, 1280, 1))
    net.save(net.classifier(x, 1280, 1000), path)


def samples(count, seed=7):
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(count)]


class Samples(CalibrationDataReader):
    """Eight images of noise."""

    def __init__(self):
        self.left = iter(samples(8))

    def get_next(self):
        image = next(self.left, None)
        return None if image is None else {"input": image}


def build(folder):
    """Writes what is not there yet; returns name -> (float file, QDQ file)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for make in (resnet50, mobilenetv2):
        plain, quantized = folder / f"{make.__name__}.onnx", folder / f"{make.__name__}_qdq.onnx"
        if not quantized.exists():
            make(plain)
            prepared = folder / f"{make.__name__}_prepared.onnx"
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantized,
                Samples(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            prepared.unlink()
        files[make.__name__] = (plain, quantized)
    return files


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    for name, (plain, quantized) in build(pathlib.Path(sys.argv[1])).items():
        print(name, plain, quantized)
