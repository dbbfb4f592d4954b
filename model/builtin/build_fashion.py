"""Makes `fashion.safetensors`, the built-in model, from the float network that was trained for it.

    python build_fashion.py FLOAT.onnx --calibration CALIB.npz --output fashion.safetensors \
        [--evaluate DEV.npz]

Batch norms are folded, activations become unsigned bytes, weights 8 or 4 bits. A hidden layer gets 4
bits where that hurts the logits least, measured on the calibration images; the first and the last
layer keep 8. Layers are made in order, each from the integers that the layers before it really give,
so every layer makes up for the errors before it. The images of `--evaluate` decide nothing: the
accuracy on them is only printed and noted in the file.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import integer
import rounding
from artifact import Artifact, read

MEAN, DEVIATION = 0.2860, 0.3530
# Name, weights and batch norm of each layer in the float file.
LAYERS = [
    ("stem", "0.0", "0.1"),
    ("widen", "2.0", "2.1"),
    ("residual_a", "4.a.0", "4.a.1"),
    ("residual_b", "4.c", "4.b"),
    ("reduce", "5.0", "5.1"),
    ("classifier", "8", None),
]
HIDDEN = [name for name, _, _ in LAYERS[1:-1]]
# A layer stays at 4 bits while the sum over such layers of the mean KL divergence that each alone
# causes on the calibration images is below this many nats.
DIVERGENCE_BUDGET = 0.01
SAME = {"kernel": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1]}
HALVE = {**SAME, "strides": [2, 2]}
POOL = {"kernel": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1]}


def normalise(images):
    """Bytes `[N, 28, 28]` to the network's float input `[N, 1, 28, 28]`."""
    x = (images.astype(np.float64) / 255 - MEAN) / DEVIATION
    return x.astype(np.float32)[:, None]


def folded_layers(model):
    """Name to weights `[O, KH, KW, I]` (or `[O, I]`) and bias, in float64, batch norms folded in."""
    raw = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    epsilon = {
        n.input[1].rsplit(".", 1)[0]: onnx.helper.get_node_attr_value(n, "epsilon")
        for n in model.graph.node
        if n.op_type == "BatchNormalization"
    }
    layers = {}
    for name, weights, norm in LAYERS:
        w = raw[f"{weights}.weight"]
        if norm is None:
            layers[name] = (w, raw[f"{weights}.bias"])
            continue
        variance = raw[f"{norm}.running_var"] + epsilon[norm]
        gain = raw[f"{norm}.weight"] / np.sqrt(variance)
        bias = raw[f"{norm}.bias"] - raw[f"{norm}.running_mean"] * gain
        layers[name] = ((w * gain[:, None, None, None]).transpose(0, 2, 3, 1), bias)
    return layers


def float_activations(layers, x):
    """The float network: every layer's sum before its ReLU, channels last, and `pooled`, the input
    of the residual block."""
    sums = {}

    def conv(name, value, window):
        w, bias = layers[name]
        sums[name] = integer.columns(value, window) @ w.reshape(len(w), -1).T + bias
        return sums[name]

    value = x.astype(np.float64).transpose(0, 2, 3, 1)
    value = integer.max_pool(np.maximum(conv("stem", value, SAME), 0), POOL)
    sums["pooled"] = integer.max_pool(np.maximum(conv("widen", value, SAME), 0), POOL)
    value = np.maximum(conv("residual_a", sums["pooled"], SAME), 0)
    sums["residual_b"] = conv("residual_b", value, SAME) + sums["pooled"]
    value = np.maximum(sums["residual_b"], 0)
    value = np.maximum(conv("reduce", value, HALVE), 0)
    sums["mean"] = value.mean(axis=(1, 2))
    w, bias = layers["classifier"]
    sums["classifier"] = sums["mean"] @ w.T + bias
    return sums


class Builder:
    """Adds nodes to an artefact and runs each on the calibration images at once."""

    def __init__(self, layers, sums, images, bits):
        self.layers, self.sums, self.bits = layers, sums, bits
        self.artifact = Artifact("fashion")
        self.held = {}
        index = self.artifact.value("input", "f32", [1, 1, 28, 28])
        self.held[index] = normalise(images)
        self.artifact.inputs = [index]

    def add(self, name, op, inputs, output):
        """Appends a node and computes its output."""
        self.artifact.node(name, op, inputs, output)
        self.held[output] = integer.step(self.artifact, self.artifact.nodes[-1], self.held)
        return output

    def like(self, source, name, dims):
        """A value with the type, scale and zero point of another."""
        scale, zero_point = self.artifact.quant(source)
        dtype = self.artifact.values[source]["dtype"]
        return self.artifact.value(name, dtype, dims, scale, zero_point)

    def multipliers(self, name, values):
        """The tensors of a rounding `rhu` with these real multipliers."""
        m, s = zip(*(integer.dyadic(value) for value in values))
        scheme = {"round": "rhu", "m": f"{name}.m", "s": f"{name}.s"}
        self.artifact.tensor(scheme["m"], "i32", np.array(m))
        self.artifact.tensor(scheme["s"], "u8", np.array(s))
        return scheme

    def linear(self, name, source, output, window=None, residual=None):
        """A convolution (with a window) or a matrix product whose output value exists already."""
        artifact, bits = self.artifact, self.bits.get(name, 8)
        scale_x, zero_point = artifact.quant(source)
        scale_y, _ = artifact.quant(output)
        centred = self.held[source].astype(np.float64) - zero_point
        patches = centred if window is None else integer.columns(centred, window)
        patches = patches.reshape(-1, patches.shape[-1])
        weights, bias = self.layers[name]
        flat = weights.reshape(len(weights), -1)
        target = self.sums[name].reshape(len(patches), -1)
        if residual is not None:
            scale_r, zero_r = artifact.quant(residual)
            other = (self.held[residual].astype(np.float64) - zero_r) * scale_r
            target = target - other.reshape(target.shape)

        # Sums of products of integers below 2^53: exact in any order.
        gram = patches.T @ patches * scale_x**2 / len(patches)
        error = target - (patches @ flat.T * scale_x + bias)
        cross = (error - error.mean(axis=0)).T @ patches * scale_x / len(patches)
        q, scale_w = rounding.quantize_weights(rounding.refit(flat, gram, cross), gram, bits)
        made = patches @ q.T * (scale_x * scale_w)
        shift = np.rint((target - made).mean(axis=0) / (scale_x * scale_w))

        lowest, highest = (0, 255) if window is not None else (-128, 127)
        spec = {
            "weights": {"tensor": artifact.tensor(f"{name}.w", f"i{bits}", q.reshape(weights.shape))},
            "bias": artifact.tensor(f"{name}.b", "i32", shift.astype(np.int64)),
            "requantize": {
                "scheme": self.multipliers(name, scale_x * scale_w / scale_y),
                "lo": lowest,
                "hi": highest,
            },
        }
        inputs = [source]
        if residual is not None:
            # The residual stands 8 bits to the left, so its mantissa is at the shift less 8.
            shifts = artifact.tensors[f"{name}.s"][1]
            mantissas = np.floor(scale_r / scale_y * 2.0 ** (shifts - 8) + 0.5)
            spec["residual"] = artifact.tensor(f"{name}.r", "i32", mantissas.astype(np.int64))
            inputs.append(residual)
        if window is None:
            return self.add(name, {"kind": "gemm", "linear": spec}, inputs, output)
        return self.add(
            name, {"kind": "conv", "linear": spec, "window": window, "groups": 1}, inputs, output
        )

    def conv(self, name, source, window, residual=None):
        """A convolution with its ReLU, into unsigned bytes with zero point 0."""
        rectified = np.maximum(self.sums[name], 0)
        scale = rounding.activation_scale(rectified, 255)
        output = self.artifact.value(f"{name}.out", "u8", [1, *rectified.shape[1:]], scale)
        return self.linear(name, source, output, window, residual)

    def pool(self, name, source):
        """Halves height and width."""
        _, height, width, channels = self.artifact.values[source]["dims"]
        output = self.like(source, f"{name}.out", [1, height // 2, width // 2, channels])
        return self.add(name, {"kind": "max_pool", "window": POOL}, [source], output)

    def build(self):
        """The whole network."""
        artifact = self.artifact
        # At this scale and zero point the network's integers are the bytes of the image.
        pixels = artifact.value("pixels", "u8", [1, 1, 28, 28], 1 / (255 * DEVIATION), 73)
        op = {"kind": "quantize", "rounding": "half_even"}
        self.add("quantize", op, artifact.inputs, pixels)
        image = self.like(pixels, "image", [1, 28, 28, 1])
        value = self.add("channels_last", {"kind": "reshape"}, [pixels], image)
        value = self.pool("pool_1", self.conv("stem", value, SAME))
        pooled = self.pool("pool_2", self.conv("widen", value, SAME))
        value = self.conv("residual_a", pooled, SAME)
        value = self.conv("residual_b", value, SAME, residual=pooled)
        value = self.conv("reduce", value, HALVE)

        scale = rounding.activation_scale(self.sums["mean"], 255)
        channels = artifact.values[value]["dims"][3]
        mean = artifact.value("mean.out", "u8", [1, 1, 1, channels], scale)
        factor = artifact.quant(value)[0] / artifact.quant(mean)[0]
        count = np.prod(artifact.values[value]["dims"][1:3])
        spec = {"scheme": self.multipliers("mean", [factor / count]), "lo": 0, "hi": 255}
        self.add("mean", {"kind": "mean", "axes": [1, 2], "requantize": spec}, [value], mean)
        flat = self.like(mean, "features", [1, channels])
        self.add("flatten", {"kind": "reshape"}, [mean], flat)

        low, high = self.sums["classifier"].min(), self.sums["classifier"].max()
        scale = 1.05 * (high - low) / 255
        zero_point = np.clip(np.rint(-128 - 1.025 * low / scale), -128, 127)
        classes = self.sums["classifier"].shape[1]
        scores = artifact.value("scores", "i8", [1, classes], scale, zero_point)
        self.linear("classifier", flat, scores)
        logits = artifact.value("logits", "f32", [1, classes])
        artifact.outputs = [self.add("dequantize", {"kind": "dequantize"}, [scores], logits)]
        return artifact, self.held[logits]


def divergence(reference, logits):
    """Mean Kullback-Leibler divergence of the class probabilities, in nats."""

    def log_softmax(z):
        z = z.astype(np.float64) - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def choose_bits(layers, sums, images):
    """4 bits for the hidden layers, the least sensitive for its size first, within the budget."""
    alone = {}
    for name in HIDDEN:
        _, logits = Builder(layers, sums, images, {name: 4}).build()
        alone[name] = divergence(sums["classifier"], logits)
        print(f"{name}: KL {alone[name]:.6f} with 4 bits here alone")
    bits, spent = {}, 0.0
    for name in sorted(HIDDEN, key=lambda name: alone[name] / layers[name][0].size):
        spent += alone[name]
        if spent > DIVERGENCE_BUDGET:
            break
        bits[name] = 4
    return bits, alone


def main():
    """Builds, evaluates, writes."""
    parser = argparse.ArgumentParser(description="Makes the built-in model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluate", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    source = args.model.read_bytes()
    layers = folded_layers(onnx.load_from_string(source))
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    images = np.load(args.calibration)["x"]
    sums = float_activations(layers, normalise(images))
    (expected,) = session.run(["logits"], {"input": normalise(images)})
    np.testing.assert_allclose(sums["classifier"], expected, rtol=1e-3, atol=1e-3)

    bits, alone = choose_bits(layers, sums, images)
    artifact, logits = Builder(layers, sums, images, bits).build()
    sizes = {name: layers[name][0].size for name, _, _ in LAYERS}
    share = sum(sizes[name] for name in bits) / sum(sizes.values())
    table = [
        f"{name} {bits.get(name, 8)} bits, {sizes[name]} weights"
        + (f", KL {alone[name]:.6f} at 4 bits alone" if name in alone else "")
        for name in sizes
    ]
    artifact.provenance = {
        "calibration": f"{len(images)} images of Fashion-MNIST's training split, sha256 of the bytes "
        + hashlib.sha256(images.tobytes()).hexdigest(),
        "calibration_divergence": f"KL {divergence(sums['classifier'], logits):.6f} to the float model",
        "data": "Fashion-MNIST, MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
        "int4_share": f"{share:.4f} of all weights",
        "layers": "; ".join(table),
        "licence": "MIT OR Apache-2.0",
        "source": "fmnist_resnet.onnx, a residual CNN trained for Requant, sha256 "
        + hashlib.sha256(source).hexdigest(),
        "tool": "model/builtin/build_fashion.py: folded batch norms, least-squares refit, GPTQ with "
        "coordinate descent, bias correction",
    }
    if args.evaluate:
        data = np.load(args.evaluate)
        x = normalise(data["x"])
        (expected,) = session.run(["logits"], {"input": x})
        scores = {"float": expected, "integer": integer.run(artifact, x)}
        right = {key: int((s.argmax(axis=1) == data["y"]).sum()) for key, s in scores.items()}
        artifact.provenance["accuracy"] = (
            f"{right['integer']} of {len(x)} test images right, the float model {right['float']}"
        )
    args.output.write_bytes(artifact.write())
    if read(args.output).write() != args.output.read_bytes():
        raise ValueError("the file does not read back as it was written")
    for key, text in sorted(artifact.provenance.items()):
        print(f"{key}: {text}")
    print(f"{args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
