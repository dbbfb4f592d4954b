"""Times int8 products, requantized to 8 bits, beside oneDNN on the same shapes and threads.

python loadtests/peers/gemm.py [--threads 1 2] [--rounds 40] [--shape MxNxK …] [--json FILE]

Both engines are programs that run on request, in turn: slices of some milliseconds, so that other load on the machine
touches both alike. GOP/s are of the median slice, a ratio is the median over rounds of (oneDNN's time / ours), so above
1 Requant is faster. oneDNN requantizes by a float for each channel, Requant exactly. Needs gcc, and the libraries of
loadtests/peers/requirements.txt in the Python that runs this.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile

from cpu import benchmark_binary

HERE = pathlib.Path(__file__).resolve().parent
SLICE = 0.004
# The shapes of `cargo bench -p requant-kernels-cpu` with 32 rows or more.
SHAPES = [
    "32x384x384",
    "128x384x1536",
    "128x1536x384",
    "512x512x512",
    "1024x1024x1024",
    "2048x2048x2048",
    "3136x64x576",
    "784x128x1152",
    "196x256x2304",
    "49x512x4608",
]


class Program:
    """A program that answers a number of runs with the seconds of all of them."""

    def __init__(self, command, **environment):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.kernel = self.process.stdout.readline().strip()
        if not self.kernel:
            raise SystemExit(f"{command[0]} did not start")
        self.run(3)
        times = 1
        while (seconds := self.run(times)) < SLICE / 4:
            times *= 2
        self.times = max(1, round(times * SLICE / seconds))
        self.process.send_signal(signal.SIGSTOP)

    def run(self, times):
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def slice(self):
        """Seconds of one run, over a slice; stopped otherwise, since threads that wait may spin."""
        self.process.send_signal(signal.SIGCONT)
        seconds = self.run(self.times) / self.times
        self.process.send_signal(signal.SIGSTOP)
        return seconds

    def close(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


def build(folder):
    """onednn_gemm.c against the library that pip installed."""
    prefix = pathlib.Path(sys.prefix)
    program = folder / "onednn_gemm"
    library = prefix / "lib"
    flags = ["-I", prefix / "include", "-L", library, f"-Wl,-rpath,{library}", "-ldnnl"]
    subprocess.run(["gcc", "-O2", "-o", program, HERE / "onednn_gemm.c", *flags], check=True)
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--shape", nargs="+", default=SHAPES)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()

    ours = os.environ.get("REQUANT_GEMM_BENCH") or benchmark_binary("requant-kernels-cpu", "gemm")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        peer = build(pathlib.Path(folder))
        print("| M x N x K | threads | Requant GOP/s | oneDNN GOP/s | ratio |\n| --- | --- | --- | --- | --- |")
        for threads in arguments.threads:
            ratios = []
            for shape in arguments.shape:
                m, n, k = shape.split("x")
                engines = [
                    Program([ours, "--serve", shape, "--threads", str(threads)]),
                    Program([peer, m, n, k, str(threads)], OMP_NUM_THREADS=str(threads)),
                ]
                slices = [[engine.slice() for engine in engines] for _ in range(arguments.rounds)]
                for engine in engines:
                    engine.close()
                ratio = statistics.median(theirs / own for own, theirs in slices)
                operations = 2e-9 * int(m) * int(n) * int(k)
                rates = [operations / statistics.median(column) for column in zip(*slices)]
                ratios.append(ratio)
                kernels = [engine.kernel for engine in engines]
                results.append(
                    {"shape": shape, "threads": threads, "gops": rates, "ratio": ratio, "kernels": kernels}
                )
                print(f"| {shape} | {threads} | {rates[0]:.0f} | {rates[1]:.0f} | {ratio:.2f} |", flush=True)
            print(f"| geometric mean | {threads} | | | {statistics.geometric_mean(ratios):.3f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
