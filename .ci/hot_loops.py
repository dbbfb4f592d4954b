#!/usr/bin/env python3
"""Checks on the disassembly that the kernels' inner loops keep their sums in registers.

usage: hot_loops.py BINARY

BINARY is one that contains the kernels and has symbols: the benchmark `gemm` of requant-kernels-cpu is.
Between the first and the last dot product of each function in the table no vector register may move
to the stack or back. The compiler decides that anew for every change around a kernel, no test of values
notices, and the kernel loses a quarter of its speed or more.
"""

import re
import subprocess
import sys

# Symbol (a regular expression over the demangled name), dot products of the loop, how many such
# functions there must be at least.
HOT = [
    (r"requant_kernels_cpu::arch::x86::avx512::tile", r"\bvpdpbusd\b", 24),
    (r"requant_kernels_cpu::arch::x86::avx_vnni::tile", r"\bvpdpbusd\b", 24),
    (r"requant_kernels_cpu::arch::x86::avx2::tile", r"\bvpmaddwd\b", 6),
    (r"requant_kernels_cpu::arch::x86::avx512_stem::row", r"\bvpdpbusd\b", 20),
    (r"requant_kernels_cpu::arch::x86::avx512_depthwise::sums", r"\bvpdpbusd\b", 1),
]

SPILL = re.compile(r"\b[xyz]mm\d+(\{[^}]*\})*,\s*\S*\s*PTR \[rsp|PTR \[rsp[^\]]*\](\{[^}]*\})*,\s*[xyz]mm\d+")


def functions(binary):
    """Yields the name and the instructions of each function."""
    command = ["objdump", "-d", "-C", "-M", "intel", "--no-show-raw-insn", binary]
    name, lines = None, []
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        start = re.match(r"^[0-9a-f]+ <(.*)>:$", line)
        if start:
            if name:
                yield name, lines
            name, lines = start.group(1), []
        elif "\t" in line:
            lines.append(line.split("\t", 1)[1])
    if name:
        yield name, lines


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found, bad = [0] * len(HOT), []
    for name, lines in functions(sys.argv[1]):
        for index, (symbol, dot, _) in enumerate(HOT):
            if not re.fullmatch(symbol, name):
                continue
            dots = [at for at, line in enumerate(lines) if re.search(dot, line)]
            if not dots:
                continue
            found[index] += 1
            loop = lines[dots[0] : dots[-1] + 1]
            spills = [line for line in loop if SPILL.search(line)]
            if spills:
                bad.append(f"{name}: {len(dots)} dot products, {len(spills)} spills, such as {spills[0]}")
    for count, (symbol, _, least) in zip(found, HOT):
        print(f"{symbol}: {count} functions")
        if count < least:
            bad.append(f"{symbol}: {count} functions, expected {least} or more")
    for line in bad:
        print(line)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
