#!/usr/bin/env python3
"""Checks on the disassembly that the kernels' inner loops keep their sums in registers.

usage: hot_loops.py BINARY | --self-test

BINARY is one that contains the kernels and has symbols: the benchmark `gemm` of requant-kernels-cpu is.
In every innermost loop of the kernels that multiplies or counts, no vector register may move to the stack
or back, and no memory may be both written from and read into vector registers at the same address
expression (sums that live in an array). The compiler decides that anew for every change around a kernel,
no test of values notices, and the kernel loses a quarter of its speed or more.
"""

import re
import subprocess
import sys

DOT = r"\bvpdpbusd\b"
WORD = r"\bvpmaddwd\b"
COUNT = r"\bvpopcnt[dq]\b"

# Symbol (a regular expression over the demangled name), the instruction that does the work, how often
# a loop must have it to be looked at, and how many such loops there must be at least.
HOT = [
    (r"requant_kernels_cpu::arch::x86::avx512::tile", DOT, 4, 60),
    (r"requant_kernels_cpu::arch::x86::avx_vnni::tile", DOT, 2, 24),
    (r"requant_kernels_cpu::arch::x86::avx2::tile", WORD, 2, 6),
    (r"requant_kernels_cpu::arch::x86::avx512_words::tile", WORD, 2, 6),
    (r"requant_kernels_cpu::arch::x86::avx512_beside::.*", DOT, 4, 10),
    (r"requant_kernels_cpu::arch::x86::avx512_turns::.*", DOT, 4, 12),
    (r"requant_kernels_cpu::arch::x86::avx512_stem::row", DOT, 4, 40),
    (r"requant_kernels_cpu::arch::x86::avx512_grouped::row", DOT, 4, 20),
    (r"requant_kernels_cpu::arch::x86::avx512_depthwise::.*", DOT, 2, 1),
    (r"requant_kernels_cpu::arch::x86::avx512_depthwise_taps::.*", DOT, 2, 1),
    (r"requant_kernels_cpu::arch::x86::avx2_depthwise::.*", WORD, 2, 1),
    (r"requant_kernels_cpu::bits::avx512::.*", COUNT, 2, 6),
]

# Loops that are known to spill: 16 registers are one too few for six rows of nibbles and their masks.
KNOWN = {
    "requant_kernels_cpu::arch::x86::avx2::tile": 1,
    "requant_kernels_cpu::arch::x86::avx_vnni::tile": 1,
}

VECTOR = r"[xyz]mm\d+"
FRAME = re.compile(r"^(mov\s+rbp,rsp|lea\s+rbp,\[rsp)")
STORE = re.compile(rf"^(vmov\S+|mov\S+)\s+(?:\S+ PTR )?(\[[^\]]*\])(?:\{{[^}}]*\}})*,\s*{VECTOR}")
LOAD = re.compile(rf"\b{VECTOR}\b.*,\s*(?:\S+ PTR )?(\[[^\]]*\])")
JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)\b")


def functions(lines):
    """Yields the name and the instructions (address, text) of each function of a listing."""
    name, code = None, []
    for line in lines:
        start = re.match(r"^[0-9a-f]+ <(.*)>:$", line)
        if start:
            if name:
                yield name, code
            name, code = start.group(1), []
        elif "\t" in line:
            address, text = line.split("\t", 1)
            code.append((int(address.strip(" :"), 16), text.strip()))
    if name:
        yield name, code


def innermost_loops(code):
    """The instructions between a backward jump's target and the jump, where no other such jump lies within."""
    places = {address: index for index, (address, _) in enumerate(code)}
    spans = set()
    for index, (_, text) in enumerate(code):
        jump = JUMP.match(text)
        target = places.get(int(jump.group(1), 16)) if jump else None
        if target is not None and target <= index:
            spans.add((target, index))
    for start, end in sorted(spans):
        if not any((start, end) != other and start <= other[0] and other[1] <= end for other in spans):
            yield [text for _, text in code[start : end + 1]]


def faults(loop, framed):
    """What is wrong with a loop, in a function whose frame is or is not behind rbp."""
    stack = re.compile(r"\[r[sb]p\b" if framed else r"\[rsp\b")
    stored, loaded = {}, {}
    for text in loop:
        store, load = STORE.match(text), LOAD.search(text)
        if store:
            stored.setdefault(store.group(2), text)
        elif load:
            loaded.setdefault(load.group(1), text)
    for operand, text in [*stored.items(), *loaded.items()]:
        if stack.search(operand):
            yield f"spill: {text}"
    moved = {match.group(1) for text in loop if (match := re.match(r"(?:mov|lea)\s+(r\w+),", text))}
    for operand in stored.keys() & loaded.keys():
        # The same words for two places, where the base is another pointer in between.
        if moved & set(re.findall(r"\br\w+", operand)):
            continue
        yield f"sums in memory: {stored[operand]} and {loaded[operand]}"


def check(lines, table):
    """The number of loops found for each row of the table, and everything that is wrong."""
    found, bad, known = [0] * len(table), [], dict(KNOWN)
    for name, code in functions(lines):
        for index, (symbol, instruction, least, _) in enumerate(table):
            if not re.fullmatch(symbol, name):
                continue
            framed = any(FRAME.match(text) for _, text in code)
            for loop in innermost_loops(code):
                if sum(bool(re.search(instruction, text)) for text in loop) < least:
                    continue
                found[index] += 1
                wrong = [f"{name}: {fault}" for fault in faults(loop, framed)]
                if wrong and known.get(name, 0) > 0:
                    known[name] -= 1
                else:
                    bad += wrong
    for count, (symbol, _, _, least) in zip(found, table):
        if count < least:
            bad.append(f"{symbol}: {count} loops, expected {least} or more")
    return found, bad


def self_test():
    """Listings with planted faults must be refused, the one without passes."""
    clean = [
        "0000000000001000 <k::tile>:",
        "    0ffc:\tmov    rbp,rsp",
        "    1000:\tvmovdqu64 zmm9,ZMMWORD PTR [rsp+0x40]",
        "    1008:\tvpdpbusd zmm0,zmm1,DWORD PTR [rax]{1to16}",
        "    1010:\tvpdpbusd zmm2,zmm1,DWORD PTR [rbx]{1to16}",
        "    1018:\tjne    1008 <k::tile+0x8>",
        "    1020:\tvmovdqu64 ZMMWORD PTR [rdi],zmm0",
    ]
    table = [("k::tile", DOT, 2, 1)]
    planted = {
        "": 0,
        "vmovdqa64 ZMMWORD PTR [rsp+0x40],zmm3": 1,
        "vpaddd zmm4,zmm4,ZMMWORD PTR [rbp-0x80]": 1,
        "vpdpbusd zmm0,zmm1,ZMMWORD PTR [rdx];vmovdqu64 ZMMWORD PTR [rdx],zmm0": 1,
    }
    for texts, expected in planted.items():
        extra = [f"    1012:\t{text}" for text in texts.split(";") if text]
        _, bad = check(clean[:5] + extra + clean[5:], table)
        assert len(bad) == expected, (texts, bad)
    assert check(clean[:3], table)[1], "a loop that is gone must be missed"


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    self_test()
    command = ["objdump", "-d", "-C", "-M", "intel", "--no-show-raw-insn", sys.argv[1]]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, bad = check(listing.splitlines(), HOT)
    for count, (symbol, _, _, _) in zip(found, HOT):
        print(f"{symbol}: {count} loops")
    for line in bad:
        print(line)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
