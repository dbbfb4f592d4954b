#!/usr/bin/env python3
"""Checks the machine code of the CUDA kernels.

usage: cuda_code.py FOLDER CUOBJDUMP

FOLDER holds what kernels-cuda/compile.sh made, its logs included. The table says for kernels (a regular
expression) and architectures which instructions there must be, and which there must not be. Of every
kernel ptxas must report no spill, no stack and no warning about wgmma or setmaxnreg (C75xx).
"""

import gzip
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Kernels, architectures, (instruction, least count) that must be there, instructions that must not.
FLOATS = r"\b(I2FP|F2I\.NTZ|FMUL|FADD|FFMA|DMUL|DADD|DFMA)\b"  # Division of integers converts with others.
LOCAL = r"\b(LDL|STL)\b"
SINCE_80 = r"sm_(?!75).*"
TABLE = [
    (r".*", r".*", [], [LOCAL]),
    # A slice of 64x64x64 is 16 multiplications of 16x8x32 for each of four warps, one of 128x128x64 is 64;
    # Turing's are a quarter the size.
    (r"product_(w4_)?u8_64_.*", SINCE_80, [(r"IMMA\.16832\.U8\.S8", 16)], [r"IMMA\.16832\.S8\.S8"]),
    (r"product_(w4_)?(i8|any)_64_.*", SINCE_80, [(r"IMMA\.16832\.S8\.S8", 16)], [r"IMMA\.16832\.U8"]),
    (r"product_(w4_)?u8_128_.*", SINCE_80, [(r"IMMA\.16832\.U8\.S8", 64)], [r"IMMA\.16832\.S8\.S8"]),
    (r"product_(w4_)?i8_128_.*", SINCE_80, [(r"IMMA\.16832\.S8\.S8", 64)], [r"IMMA\.16832\.U8"]),
    (r"product_(?!w4a4).*_64_.*", r"sm_75", [(r"IMMA\.8816", 64)], []),
    (r"product_(?!w4a4).*_128_.*", r"sm_75", [(r"IMMA\.8816", 256)], []),
    # Units for 4 bits do twice as much each, and are met as such: later architectures emulate the instruction.
    (r"product_w4a4_u4_64_.*", r"sm_8\d", [(r"IMMA\.16864\.U4\.S4", 8)], [r"IMMA\.16832"]),
    (r"product_w4a4_i4_64_.*", r"sm_8\d", [(r"IMMA\.16864\.S4\.S4", 8)], [r"IMMA\.16832"]),
    (r"product_w4a4_u4_128_.*", r"sm_8\d", [(r"IMMA\.16864\.U4\.S4", 32)], [r"IMMA\.16832"]),
    (r"product_w4a4_i4_128_.*", r"sm_8\d", [(r"IMMA\.16864\.S4\.S4", 32)], [r"IMMA\.16832"]),
    (r"product_w4a4_.*_64_.*", r"sm_75", [(r"IMMA\.8832\.[US]4\.S4", 32)], [r"IMMA\.8816"]),
    (r"product_w4a4_.*_128_.*", r"sm_75", [(r"IMMA\.8832\.[US]4\.S4", 128)], [r"IMMA\.8816"]),
    # Bits of a slice of 64x64x256: one instruction a plane of weights; Hopper counts conjunctions, two for one.
    (r"bit_product_xor_1_.*", r"sm_8\d", [(r"BMMA\.168256\.XOR\.POPC", 8)], [r"BMMA.*\.AND", r"\bIMMA\.1"]),
    (r"bit_product_xor_2_.*", r"sm_8\d", [(r"BMMA\.168256\.XOR\.POPC", 16)], [r"BMMA.*\.AND", r"\bIMMA\.1"]),
    (r"bit_product_xor_1_.*", r"sm_75", [(r"BMMA\.88128\.XOR\.POPC", 32)], [r"\bIMMA\.8"]),
    (r"bit_product_xor_2_.*", r"sm_75", [(r"BMMA\.88128\.XOR\.POPC", 64)], [r"\bIMMA\.8"]),
    (r"bit_product_and_.*", r"sm_90a", [(r"BMMA\.168256\.AND\.POPC", 16)], [r"BMMA.*\.XOR", r"\bIMMA\.1"]),
    (r"bit_product_.*", r".*", [(r"LDSM\.16\.M88\.4", 4)], []),
    # Few rows: a slice of weights is four rows of 16 bytes, read as they are.
    (r"row_product_u8_.*", r".*", [(r"IDP\.4A\.U8\.S8", 16), (r"LDG\.E\.128", 4), (r"SHFL\.BFLY", 20)], [r"\bIMMA\.1"]),
    (r"row_product_i8_.*", r".*", [(r"IDP\.4A\.S8\.S8", 16), (r"LDG\.E\.128", 4), (r"SHFL\.BFLY", 20)], [r"\bIMMA\.1"]),
    (r"row_product_w4_.*", r".*", [(r"IDP\.4A\.[US]8\.S8", 32), (r"LDG\.E\.128", 4), (r"SHFL\.BFLY", 20)], [r"\bIMMA\.1"]),
    (r"product_.*", r".*", [(r"LDSM\.16\.M88\.4", 4)], []),
    (r"(group_)?product_.*", SINCE_80, [(r"LDGSTS\.E\.BYPASS\.128", 2), (r"LDGDEPBAR", 2)], []),
    # Hopper multiplies by warpgroup: four steps of a slice with one arrival, waited for only in the next.
    (r"group_product_(w4_)?u8_128_.*", r"sm_90a", [(r"IGMMA\.64x128x32\.U8\.S8", 4)], [r"\bIMMA"]),
    (r"group_product_(w4_)?i8_128_.*", r"sm_90a", [(r"IGMMA\.64x128x32\.S8\.S8", 4)], [r"\bIMMA"]),
    (r"group_product_(w4_)?u8_64_.*", r"sm_90a", [(r"IGMMA\.64x64x32\.U8\.S8", 4)], [r"\bIMMA"]),
    (r"group_product_(w4_)?i8_64_.*", r"sm_90a", [(r"IGMMA\.64x64x32\.S8\.S8", 4)], [r"\bIMMA"]),
    (r"group_product_.*", r"sm_90a", [(r"FENCE\.VIEW\.ASYNC", 1)], []),
    # Blocks that stay: one thread copies by tile, two warpgroups have its registers and multiply, and all wait at
    # barriers in shared memory; the block as a whole meets once.
    (r"pair_product_u8_256_.*", r"sm_90a", [(r"IGMMA\.64x256x32\.U8\.S8", 4)], [r"IGMMA.*\.S8\.S8"]),
    (r"pair_product_i8_256_.*", r"sm_90a", [(r"IGMMA\.64x256x32\.S8\.S8", 4)], [r"IGMMA.*\.U8"]),
    (r"turn_product_u8_128_.*", r"sm_90a", [(r"IGMMA\.64x128x32\.U8\.S8", 8)], [r"IGMMA.*\.S8\.S8"]),
    (r"turn_product_i8_128_.*", r"sm_90a", [(r"IGMMA\.64x128x32\.S8\.S8", 8)], [r"IGMMA.*\.U8"]),
    (r"turn_product_u8_64_.*", r"sm_90a", [(r"IGMMA\.64x64x32\.U8\.S8", 8)], [r"IGMMA.*\.S8\.S8"]),
    (r"turn_product_i8_64_.*", r"sm_90a", [(r"IGMMA\.64x64x32\.S8\.S8", 8)], [r"IGMMA.*\.U8"]),
    # Two blocks make a cluster; each copies its pixels, and half of the weights to both. No fence of the device in
    # the loop: there is one in each of the two places where the cluster meets.
    (r"pair_product_.*", r"sm_90a",
     [(r"UTMALDG\.2D \[", 1), (r"UTMALDG\.2D\.MULTICAST", 1), (r"UCGABAR_ARV", 2), (r"UCGABAR_WAIT", 2),
      (r"SYNCS\.ARRIVE\.TRANS64\.RED", 2)], [r"BAR\.SYNC"]),
    (r"turn_product_.*", r"sm_90a", [(r"UTMALDG\.2D \[", 2)], [r"MULTICAST", r"UCGABAR", r"MEMBAR.*GPU"]),
    (r"(pair|turn)_product_.*", r"sm_90a",
     [(r"UTMALDG\.2D", 2), (r"SYNCS\.EXCH\.64", 10), (r"SYNCS\.PHASECHK\.TRANS64\.TRYWAIT", 2), (r"SYNCS\.ARRIVE\.TRANS64", 3),
      (r"USETMAXREG\.DEALLOC\.CTAPOOL 0x28", 1), (r"USETMAXREG\.TRY_ALLOC\.CTAPOOL UP\d, 0xe8", 1),
      (r"FENCE\.VIEW\.ASYNC", 1), (r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1", 1)],
     [r"\bIMMA", r"BAR\.SYNC.* 0x[1-9a-f]"]),
    # Windows are gathered by the same thread, a tap at a time.
    (r"(pair|turn)_product_.*", r"sm_90a", [(r"UTMALDG\.4D\.IM2COL \[", 1)], [r"IM2COL\.MULTICAST"]),
    # Nothing but a residual's bytes, which the integer epilogue takes, is copied by the threads themselves.
    (r"(pair|turn)_product_.*_rhu", r"sm_90a", [(r"LDGSTS\.E\.BYPASS\.128", 1)], []),
    (r"(pair|turn)_product_.*_(f32|any)", r"sm_90a", [], [r"LDGSTS"]),
    # The integer epilogue computes with integers.
    (r"(group_|pair_|turn_|bit_)?product_.*_rhu|move|fill|table|tflite_softmax|integer_softmax", r".*", [], [FLOATS]),
    # A warp adds up a row in registers.
    (r"integer_softmax|layer_norm", r".*", [(r"SHFL\.BFLY", 2)], []),
]


def functions(listing):
    """Yields the name and the instructions of each kernel in a listing of machine code."""
    name, lines = None, []
    for line in listing.splitlines():
        start = re.match(r"\s*Function : (\S+)", line)
        if start:
            if name:
                yield name, lines
            name, lines = start.group(1), []
            continue
        instruction = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line)
        if instruction:
            lines.append(instruction.group(1))
    if name:
        yield name, lines


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, cuobjdump = Path(sys.argv[1]), sys.argv[2]
    bad, seen = [], 0
    for log in sorted(folder.glob("*.log")):
        text = log.read_text()
        for line in text.splitlines():
            spill = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
            if spill and any(int(number) for number in spill.groups()) or re.search(r"C75\d\d|warning", line):
                bad.append(f"{log.stem}: {line.strip()}")
    met = [0] * len(TABLE)
    for image in sorted(folder.glob("*.cubin.gz")):
        arch = image.name.split(".")[0]
        with tempfile.NamedTemporaryFile(suffix=".cubin") as unpacked:
            unpacked.write(gzip.decompress(image.read_bytes()))
            unpacked.flush()
            command = [cuobjdump, "-sass", unpacked.name]
            listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name, lines in functions(listing):
            seen += 1
            for index, (kernels, archs, must, must_not) in enumerate(TABLE):
                if not (re.fullmatch(kernels, name) and re.fullmatch(archs, arch)):
                    continue
                met[index] += 1
                for pattern, least in must:
                    count = sum(bool(re.search(pattern, line)) for line in lines)
                    if count < least:
                        bad.append(f"{arch} {name}: {count} of {pattern}, expected {least} or more")
                for pattern in must_not:
                    found = [line for line in lines if re.search(pattern, line)]
                    if found:
                        bad.append(f"{arch} {name}: {found[0]}")
    for (kernels, archs, _, _), count in zip(TABLE, met):
        if count == 0:
            bad.append(f"no kernel {kernels} for {archs}")
    print(f"{seen} kernels in machine code")
    for line in bad:
        print(line)
    sys.exit(1 if bad or seen == 0 else 0)


if __name__ == "__main__":
    main()
