"""Reads an artefact and runs it in numpy, integer by integer: a second opinion on what the engine computes.

It knows the operators of the built-in model only, and shares no code with the engine, so equal bytes
from both say something. Products are summed in float32 where every partial sum stays below 2^24, which
makes them exact, and in float64 otherwise.
"""

import json

import numpy as np

DTYPES = {"u8": np.uint8, "i8": np.int8}
STORED = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "F32": np.float32}


class Artifact:
    """A graph of the file: values and nodes in order, constants by name. Nothing is validated."""

    def __init__(self, path):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        manifest = json.loads(header["__metadata__"]["requant"])
        for field in ("values", "nodes", "inputs", "outputs"):
            setattr(self, field, manifest[field])
        self.tensors = {}
        for name, entry in manifest["tensors"].items():
            begin, end = header[name]["data_offsets"]
            kind = STORED[header[name]["dtype"]]
            stored = np.frombuffer(data[start + begin : start + end], kind)
            stored = stored.reshape(header[name]["shape"])
            if entry["dtype"] == "i4":
                stored = unpack_i4(stored, entry["dims"][-1])
            self.tensors[name] = stored.reshape(entry["dims"])

    def quant(self, index):
        """Scale and zero point of a value."""
        quant = self.values[index]["quant"]
        return quant["scale"], quant["zero_point"]


def unpack_i4(packed, columns):
    """Two elements a byte, the first in the low half; rows of odd length end in an unused half."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8)
    values = halves.reshape(*packed.shape[:-1], -1)[..., :columns]
    return np.where(values > 7, values - 16, values)


def columns(x, window):
    """Patches of `[N, H, W, C]`, zero outside: `[N, OH, OW, KH*KW*C]`, the channel innermost."""
    (kh, kw), (sh, sw) = window["kernel"], window["strides"]
    top, left, bottom, right = window["pads"]
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    oh, ow = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    taps = [
        x[:, i : i + sh * (oh - 1) + 1 : sh, j : j + sw * (ow - 1) + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return np.concatenate(taps, axis=-1)


def max_pool(x, window):
    """Largest element of each window; windows lie inside `x`."""
    patches = columns(x, window)
    return patches.reshape(*patches.shape[:3], -1, x.shape[3]).max(axis=3)


def product(x, weights):
    """Exact `x . weights^T` of integers held in float32 and int8."""
    bound = 255 * np.abs(weights.astype(np.int64)).sum(axis=1).max()
    kind = np.float32 if bound < 2**24 else np.float64
    return (x.astype(kind) @ weights.astype(kind).T).astype(np.int64)


def finish(artifact, spec, total, output, residual=None):
    """Rounding `rhu`, with the residual `(r, m2)` inside the one rounding; zero point and clamp."""
    scheme = spec["scheme"]
    m = artifact.tensors[scheme["m"]].astype(np.int64)
    s = artifact.tensors[scheme["s"]].astype(np.int64)
    total = total * m
    if residual is not None:
        total = total + (residual[0] << 8) * residual[1]
    value = artifact.values[output]
    rounded = (total + (1 << (s - 1))) >> s
    clamped = np.clip(rounded + value["quant"]["zero_point"], spec["lo"], spec["hi"])
    return clamped.astype(DTYPES[value["dtype"]])


def linear(artifact, node, patches, held):
    """The shared end of `conv` and `gemm`: product, bias, residual, requantization."""
    spec = node["op"]["linear"]
    weights = artifact.tensors[spec["weights"]["tensor"]]
    acc = product(patches, weights.reshape(weights.shape[0], -1))
    acc = acc + artifact.tensors[spec["bias"]].astype(np.int64)
    residual = None
    if "residual" in spec:
        index = node["inputs"][1]
        centred = held[index].astype(np.int64) - artifact.quant(index)[1]
        residual = (centred, artifact.tensors[spec["residual"]].astype(np.int64))
    return finish(artifact, spec["requantize"], acc, node["outputs"][0], residual)


def step(artifact, node, held):
    """The value that one node makes from the values held so far."""
    op, source, target = node["op"], node["inputs"][0], node["outputs"][0]
    kind, x = op["kind"], held[source]
    if kind == "quantize":
        scale, zero_point = artifact.quant(target)
        quantized = np.rint(x.astype(np.float32) / np.float32(scale)) + zero_point
        return np.clip(quantized, 0, 255).astype(np.uint8)
    if kind == "reshape":
        return x.reshape(len(x), *artifact.values[target]["dims"][1:])
    if kind == "max_pool":
        return max_pool(x, op["window"])
    scale, zero_point = artifact.quant(source)
    centred = x.astype(np.float32) - np.float32(zero_point)
    if kind == "dequantize":
        return centred * np.float32(scale)
    if kind == "conv":
        return linear(artifact, node, columns(centred, op["window"]), held)
    if kind == "gemm":
        return linear(artifact, node, centred, held)
    if kind == "mean":
        total = centred.astype(np.int64).sum(axis=tuple(op["axes"]), keepdims=True)
        return finish(artifact, op["requantize"], total, target)
    raise ValueError(f"no rule for {kind}")


def run(artifact, x, batch=250):
    """The first output for images `x` in the form of the first input."""
    outputs = []
    for start in range(0, len(x), batch):
        held = {artifact.inputs[0]: x[start : start + batch]}
        for node in artifact.nodes:
            held[node["outputs"][0]] = step(artifact, node, held)
        outputs.append(held[artifact.outputs[0]])
    return np.concatenate(outputs)
