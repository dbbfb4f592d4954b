#!/usr/bin/env bash
# Builds the stand-in for libcuda.so into the file given, from the emulator and the kernels' own sources; with
# `turing` in the form of that architecture.
# Floats are never contracted; signed sums that overflow and shifts past a word trap.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh FILE [turing]}
form=()
[ "${2:-}" != turing ] || form=(-DREQUANT_TURING)
mkdir -p "$(dirname "$out")"
"${CXX:-c++}" -std=c++17 -O2 -shared -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing \
    -U_FORTIFY_SOURCE -fsanitize=signed-integer-overflow,shift-exponent,bounds -fsanitize-undefined-trap-on-error \
    -DREQUANT_EMULATED "${form[@]}" -Wall -Wextra -Wno-missing-field-initializers -Wno-unused-function -Wno-unknown-pragmas \
    "$here/driver.cpp" "$here/device.cpp" "$here/fibers.cpp" "$here/epilogue.cpp" "$here/layout.cpp" \
    "$here/misuse.cpp" \
    -x c++ "$here/../cuda/requant.cu" -o "$out.$$"
# Whoever has the old one open keeps it.
mv "$out.$$" "$out"
