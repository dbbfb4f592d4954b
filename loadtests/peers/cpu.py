"""Times Requant's CPU backend beside onnxruntime and OpenVINO on the same models and threads, with random inputs of the same shapes.

python loadtests/peers/cpu.py [--models FOLDER] [--model FILE.onnx …] [--batch 1 8] [--threads 1 2] [--rounds 15]

The engines take turns: each round runs every engine for a slice of time, so that other load on the machine
touches all alike. A time is the median over all runs, a ratio the median over rounds of (peer / ours), so above
1 Requant is faster. Without --model it measures ResNet-50 and MobileNetV2 (networks.py builds them into --models).
OpenVINO runs two int8 forms: onnxruntime's QDQ file, and NNCF's post-training quantization of the float model.
Needs loadtests/peers/requirements.txt, and the benchmark built: cargo bench --no-run -p requant-import --bench network.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SLICE = 0.25


def benchmark_binary(package, name):
    """The newest build of a benchmark, as cargo reports it."""
    command = ["cargo", "bench", "--no-run", "-p", package, "--bench", name, "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [json.loads(line).get("executable") for line in lines if f'"{name}"' in line]
    return next(path for path in found if path)


class Requant:
    """The benchmark as a child process that runs on request."""

    def __init__(self, binary, model, batch, threads, isa=None):
        flags = ["--serve", "--batch", str(batch), "--threads", str(threads)]
        flags += ["--isa", isa] if isa else []
        self.process = subprocess.Popen(
            [binary, str(model), *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, times):
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the benchmark ended")
        return [float(word) for word in line.split()]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Called:
    """A peer inside this process."""

    def __init__(self, call):
        self.call = call

    def run(self, times):
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            self.call()
            seconds.append(time.perf_counter() - start)
        return seconds

    def close(self):
        pass


def onnxruntime_session(model, batch, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    inputs = {}
    for tensor in session.get_inputs():
        shape = [batch] + [d if isinstance(d, int) else 1 for d in tensor.shape[1:]]
        inputs[tensor.name] = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
    return Called(lambda: session.run(None, inputs)), inputs


def openvino_session(model, inputs, threads):
    import openvino as ov

    if isinstance(model, pathlib.Path):
        model = ov.Core().read_model(model)
    model.reshape({name: array.shape for name, array in inputs.items()})
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    return Called(lambda: request.infer(inputs, share_inputs=True))


def nncf_model(plain):
    import nncf
    import openvino as ov
    from networks import samples

    model = ov.Core().read_model(plain)
    return nncf.quantize(model, nncf.Dataset(samples(8)), subset_size=8)


def measure(engines, rounds):
    """Median seconds of each engine, and for each the median over rounds of its time by the first's."""
    counts = {}
    for name, engine in engines.items():
        engine.run(3)
        counts[name] = max(3, round(SLICE / statistics.median(engine.run(5))))
    times = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            # The first runs of a turn meet the caches of the engine before.
            times[name].append(statistics.median(engine.run(counts[name] + 2)[2:]))
    first = next(iter(times.values()))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(theirs / ours for theirs, ours in zip(values, first))
        for name, values in times.items()
    }
    return medians, ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "target" / "peers")
    parser.add_argument("--model", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--isa", help="force Requant's instruction set")
    parser.add_argument("--only", help="of the built networks, only this one")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()

    os.environ.setdefault("NNCF_LOG_LEVEL", "ERROR")
    binary = os.environ.get("REQUANT_NETWORK_BENCH") or benchmark_binary("requant-import", "network")
    if arguments.model:
        files = {path.stem: (None, path) for path in arguments.model}
    else:
        import networks

        files = networks.build(arguments.models)
    results = []
    print("| model | batch | threads | Requant ms | onnxruntime ms | ratio | OpenVINO QDQ ms | ratio | OpenVINO NNCF ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (plain, quantized) in files.items():
        if arguments.only not in (None, name):
            continue
        other_form = nncf_model(plain) if plain else None
        for batch in arguments.batch:
            for threads in arguments.threads:
                session, inputs = onnxruntime_session(quantized, batch, threads)
                engines = {
                    "requant": Requant(binary, quantized, batch, threads, arguments.isa),
                    "onnxruntime": session,
                    "openvino_qdq": openvino_session(quantized, inputs, threads),
                }
                if other_form is not None:
                    engines["openvino_nncf"] = openvino_session(other_form.clone(), inputs, threads)
                medians, ratios = measure(engines, arguments.rounds)
                for engine in engines.values():
                    engine.close()
                row = {"model": name, "batch": batch, "threads": threads, "seconds": medians, "ratios": ratios}
                results.append(row)
                cells = [f"{medians['requant'] * 1e3:.2f}"]
                for peer in ("onnxruntime", "openvino_qdq", "openvino_nncf"):
                    cells += [f"{medians[peer] * 1e3:.2f}", f"{ratios[peer]:.2f}"] if peer in medians else ["", ""]
                print(f"| {name} | {batch} | {threads} | {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
