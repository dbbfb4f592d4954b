#!/usr/bin/env bash
# Compiles the kernels for every architecture into a folder (default: prebuilt/, whose contents are
# committed), with the manifest that build.rs compares with the sources. nvcc gives the same bytes for
# the same sources wherever it runs, so anyone can check the committed images by compiling them again.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-prebuilt}
nvcc=${REQUANT_NVCC:-$(./toolchain.sh)}
mkdir -p "$out"
rm -f "$out"/*.gz "$out"/manifest.txt "$out"/*.log

one() {
    local what=$1 file
    case $what in
        compute_*) file=$what.ptx; set -- -ptx -DREQUANT_PORTABLE ;;
        *) file=$what.cubin; set -- -cubin ;;
    esac
    # No float is contracted: the imported roundings are defined operation by operation.
    "$nvcc" "$@" -arch="$what" -O3 -std=c++17 -fmad=false -Xptxas -v cuda/requant.cu -o "$out/$file" 2>"$out/$what.log" ||
        { cat "$out/$what.log" >&2; return 1; }
    gzip -9 -n -f "$out/$file"
}

# As many at a time as there are cores, or JOBS.
running=0
for what in sm_75 sm_80 sm_86 sm_89 sm_90a sm_100a sm_120a compute_80; do
    one "$what" &
    running=$((running + 1))
    if [ "$running" -ge "${JOBS:-$(nproc)}" ]; then
        wait -n
        running=$((running - 1))
    fi
done
for ((; running > 0; running--)); do wait -n; done
{
    "$nvcc" --version | sed -n 's/.*release.*, V\(.*\)/nvcc \1/p'
    (cd cuda && sha256sum -- *)
} >"$out/manifest.txt"
