#!/usr/bin/env python3
"""Compares exported ONNX QDQ files in ONNX Runtime with the native integer graph.

The file says in floats what the graph computes in integers: ONNX Runtime rounds half to even after f32
arithmetic, the graph half up after exact sums. So results differ only where a sum lies next to the middle
between two steps, by one step, and what follows passes that on.

usage: ort_qdq.py [WRITE_QDQ_EXAMPLE] [--seeds N]

needs numpy, onnx and onnxruntime from PyPI; the example is built where no path to it is given.
"""

import argparse
import collections
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent.parent / "conformance"))
from example import built  # noqa: E402

# Of an output's elements, how many may differ, and by how many steps.
MOST_DIFFERING, MOST_STEPS = 0.01, 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("example", nargs="?")
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    program = arguments.example or built("write_qdq")
    ort.set_default_logger_severity(4)
    kinds = collections.defaultdict(lambda: [0, 0, 0])
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        listing = subprocess.run([program, folder, str(arguments.seeds)], check=True,
                                 stdout=subprocess.PIPE, text=True).stdout
        results = {}
        for line in listing.splitlines():
            net, _, port, scale = line.split("\t")
            if net not in results:
                path = folder / f"{net}.onnx"
                onnx.checker.check_model(onnx.load(path), full_check=True)
                # It must load as users load it. The optimizer then merges roundings that follow one
                # another, so the comparison is with what the file says.
                ort.InferenceSession(path, providers=["CPUExecutionProvider"])
                options = ort.SessionOptions()
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
                session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                feeds = {}
                for info in session.get_inputs():
                    raw = np.fromfile(folder / f"{net}.{info.name}.bin", np.float32)
                    feeds[info.name] = raw.reshape([-1] + info.shape[1:])
                names = [info.name for info in session.get_outputs()]
                results[net] = dict(zip(names, session.run(names, feeds)))
            want = np.fromfile(folder / f"{net}.{port}.bin", np.float32)
            steps = np.abs(np.rint((results[net][port].ravel() - want) / float(scale)))
            kind = kinds[net.rstrip("0123456789")]
            kind[0] += steps.size
            kind[1] += int((steps > 0).sum())
            kind[2] = max(kind[2], int(steps.max()))
            if (steps > 0).mean() > MOST_DIFFERING or steps.max() > MOST_STEPS:
                print(f"{net} {port}: {(steps > 0).mean():.2%} differ, by up to {steps.max():.0f}")
                failed = True
    for kind, (elements, differing, most) in sorted(kinds.items()):
        print(f"{kind:10} {elements:7} elements, {differing:5} differ ({differing / elements:.3%}), "
              f"by at most {most}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
