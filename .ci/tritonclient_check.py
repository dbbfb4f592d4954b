"""Runs server/tests/triton_client.py against the release build, over a repository of its own."""

import pathlib
import shutil
import subprocess
import sys
import tempfile

from serving import ROOT, server

with tempfile.TemporaryDirectory() as folder:
    version = pathlib.Path(folder, "fashion", "1")
    version.mkdir(parents=True)
    shutil.copy(ROOT / "model/builtin/fashion.safetensors", version / "model.safetensors")
    flags = ["--model-repository", folder, "--model-control", "explicit", "--load-model", "fashion"]
    with server(*flags) as (address, _):
        script = [sys.executable, ROOT / "server/tests/triton_client.py"]
        subprocess.run([*script, "--server", address, "--repository", folder], check=True)
