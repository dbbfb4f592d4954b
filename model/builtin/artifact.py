"""Writes and reads Requant's artefact from Python, so that a model can be made with numpy alone.

The file is one safetensors container. The graph is a canonical JSON manifest (sorted keys, no spaces)
in the header's metadata under the key `requant`; 4-bit tensors are packed two a byte, element 0 in the
low half, each row padded to a whole byte. `model/src/artifact` holds the reader that decides what is
valid; this writer makes the same bytes as its writer for the same graph.
"""

import hashlib
import json

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

KEY = "requant"
STORED = {"u8": np.uint8, "i8": np.int8, "i32": np.int32, "f32": np.float32}
RANGES = {"u8": (0, 255), "i8": (-128, 127), "i4": (-8, 7), "i32": (-(2**31), 2**31 - 1)}


def pack_i4(values):
    """Two elements a byte along the last axis; rows of odd length end in a zero half."""
    rows = values.reshape(-1, values.shape[-1]).astype(np.int64) & 15
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    packed = (rows[:, 0::2] | rows[:, 1::2] << 4).astype(np.uint8)
    return packed.reshape(*values.shape[:-1], -1)


def unpack_i4(packed, columns):
    """The inverse of `pack_i4`, sign-extended."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8)
    values = halves.reshape(*packed.shape[:-1], -1)[..., :columns]
    return np.where(values > 7, values - 16, values).astype(np.int8)


class Artifact:
    """A graph under construction: values and nodes in order, constants by name."""

    def __init__(self, name):
        self.name = name
        self.values, self.nodes = [], []
        self.inputs, self.outputs = [], []
        self.tensors = {}
        self.provenance = {}

    def value(self, name, dtype, dims, scale=None, zero_point=0):
        """Adds a batched value (`dims` of one sample, with the leading 1) and returns its index."""
        value = {"name": name, "dtype": dtype, "dims": list(dims), "batched": True}
        if scale is not None:
            value["quant"] = {"scale": float(np.float32(scale)), "zero_point": int(zero_point)}
        self.values.append(value)
        return len(self.values) - 1

    def quant(self, index):
        """Scale and zero point of a value."""
        quant = self.values[index]["quant"]
        return quant["scale"], quant["zero_point"]

    def tensor(self, name, dtype, values):
        """Adds a constant and returns its name; refuses values outside the type's range."""
        values = np.asarray(values)
        low, high = RANGES[dtype]
        if values.min() < low or values.max() > high:
            raise ValueError(f"tensor {name} leaves the range of {dtype}")
        self.tensors[name] = (dtype, values)
        return name

    def node(self, name, op, inputs, output):
        """Appends a node with one output and returns the output's index."""
        self.nodes.append({"name": name, "op": op, "inputs": inputs, "outputs": [output]})
        return output

    def write(self):
        """The bytes of the file."""
        entries, stored = {}, {}
        for name, (dtype, values) in self.tensors.items():
            data = pack_i4(values) if dtype == "i4" else values.astype(STORED[dtype])
            stored[name] = np.ascontiguousarray(data)
            digest = hashlib.sha256(stored[name].tobytes()).hexdigest()
            entries[name] = {"dtype": dtype, "dims": list(values.shape), "sha256": digest}
        manifest = {
            "format": "requant",
            "version": 1,
            "name": self.name,
            "batched": True,
            "values": self.values,
            "nodes": self.nodes,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "tensors": entries,
            "provenance": self.provenance,
        }
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return save(stored, metadata={KEY: text})


def read(path):
    """Reads a file that `write` made; no validation beyond the checksums."""
    with safe_open(path, framework="numpy") as container:
        manifest = json.loads(container.metadata()[KEY])
        artifact = Artifact(manifest["name"])
        for name, entry in manifest["tensors"].items():
            data = container.get_tensor(name)
            if hashlib.sha256(data.tobytes()).hexdigest() != entry["sha256"]:
                raise ValueError(f"tensor {name} does not match its sha256")
            if entry["dtype"] == "i4":
                data = unpack_i4(data, entry["dims"][-1])
            artifact.tensors[name] = (entry["dtype"], data)
    for field in ("values", "nodes", "inputs", "outputs", "provenance"):
        setattr(artifact, field, manifest[field])
    return artifact
