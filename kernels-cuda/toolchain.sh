#!/usr/bin/env bash
# Makes kernels-cuda/.cuda, a virtual environment with nvcc and the disassemblers, from pinned wheels
# (100 MB to download, 250 MB on disk), and prints the path of nvcc. Only needed to change the kernels.
# All four parts of the compiler are pinned: their own requirements would bring mismatched ones. The
# disassemblers have no wheel of the same version; newer ones read older images.
set -euo pipefail
cd "$(dirname "$0")"
nvcc=$(echo .cuda/lib/python3.*/site-packages/nvidia/cu13/bin/nvcc)
if [ ! -x "$nvcc" ]; then
    python3 -m venv .cuda
    .cuda/bin/pip install --quiet --disable-pip-version-check --no-deps \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
        nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37
    nvcc=$(echo .cuda/lib/python3.*/site-packages/nvidia/cu13/bin/nvcc)
fi
echo "$PWD/$nvcc"
