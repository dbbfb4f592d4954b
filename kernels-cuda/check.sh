#!/usr/bin/env bash
# Checks, without a GPU, that the committed images are what nvcc makes of the sources, and that the
# machine code is what it should be: tensor-core instructions where they belong, no spills, no floats in
# the integer kernels. Installs the toolchain where it is missing. Under ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")"
REQUANT_NVCC=${REQUANT_NVCC:-$(./toolchain.sh)}
export REQUANT_NVCC
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
./compile.sh "$fresh"
different=0
for file in prebuilt/*.gz prebuilt/manifest.txt; do
    cmp "$file" "$fresh/$(basename "$file")" || different=1
done
# The portable image is compiled where it runs: by this version's assembler, for devices that have no image of
# their own; it must pass without a warning and spill nothing either.
for arch in sm_103 sm_121; do
    gzip -dc "$fresh/compute_80.ptx.gz" >"$fresh/portable.ptx"
    "$(dirname "$REQUANT_NVCC")/ptxas" -arch=$arch -O3 -v "$fresh/portable.ptx" -o "$fresh/portable.cubin" \
        2>"$fresh/portable_$arch.log" || { cat "$fresh/portable_$arch.log" >&2; exit 1; }
    grep -q 'Compiling entry function' "$fresh/portable_$arch.log"
done
python3 ../.ci/cuda_code.py "$fresh" "$(dirname "$REQUANT_NVCC")/cuobjdump"
[ "$different" = 0 ] || { echo "the committed images are stale: run kernels-cuda/compile.sh" >&2; exit 1; }
