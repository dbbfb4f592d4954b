"""Writes onnx_node_references.npz: what the ONNX project's reference evaluator gives for the float
operator cases on *quantized* inputs, where that differs from the case's own result by more than half an
output step.

usage: make_node_references.py ONNX_NODE_TESTS_DIRECTORY
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

HERE = pathlib.Path(__file__).parent
DATA = {"MatMul": (0, 1), "Add": (0, 1), "Sub": (0, 1), "Mul": (0, 1), "Concat": (0, 1)}


def parameters(x):
    lo, hi = min(np.float32(0), x.min()), max(np.float32(0), x.max())
    scale = np.float32((hi - lo) / np.float32(255)) if hi > lo else np.float32(1)
    return scale, np.rint(-lo / scale)


def through_u8(x):
    scale, zero = parameters(x)
    q = np.clip(np.rint(x / scale) + zero, 0, 255)
    return ((q - zero).astype(np.float32) * scale).astype(np.float32)


def main():
    root = pathlib.Path(sys.argv[1])
    kept = {}
    for directory in sorted(root.iterdir()):
        if not (directory / "model.onnx").is_file():
            continue
        model = onnx.load(directory / "model.onnx")
        graph = model.graph
        op = graph.node[-1].op_type
        if "Linear" in op or "Integer" in op or len(graph.output) != 1:
            continue
        single = len(graph.node) == 1
        feeds = {}
        for index, port in enumerate(graph.input):
            tensor = onnx.TensorProto.FromString(
                (directory / f"test_data_set_0/input_{index}.pb").read_bytes()
            )
            value = numpy_helper.to_array(tensor)
            operand = list(graph.node[0].input).index(port.name) if single else index
            is_data = operand in DATA.get(op, (0,)) if single else index == 0
            weights = single and operand == 1 and op in ("Conv", "Gemm")
            if value.dtype == np.float32 and value.size and (is_data or weights):
                value = through_u8(value)
            feeds[port.name] = value
        want = numpy_helper.to_array(
            onnx.TensorProto.FromString(
                (directory / "test_data_set_0/output_0.pb").read_bytes()
            )
        )
        if want.dtype != np.float32 or not want.size:
            continue
        try:
            got = ReferenceEvaluator(model).run(None, feeds)[0]
        except Exception as error:  # an operator that the evaluator does not have
            print(f"{directory.name}: {error}")
            continue
        # What lies outside the output's range saturates.
        step, zero = parameters(want)
        got = np.clip(got, -zero * step, (255 - zero) * step)
        if np.abs(got - want).max() > 0.5 * step:
            kept[directory.name] = got.astype(np.float32)
    np.savez_compressed(HERE / "onnx_node_references.npz", **kept)
    print(f"{len(kept)} references")


if __name__ == "__main__":
    main()
