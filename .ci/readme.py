"""Runs the README's commands as they stand: the blocks that follow a `<!-- ci: … -->` line.

`serve` starts in the background and must become ready; `run` and `python` must succeed while it
serves. The python block must print what its comment says.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys

from serving import ROOT, wait_ready

BLOCK = re.compile(r"<!-- ci: (\w+) -->\n```\w+\n(.*?)```", re.DOTALL)
ENVIRONMENT = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(command, **options):
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, check=True, **options)


def main():
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    kinds = [kind for kind, _ in blocks]
    if kinds.count("serve") != 1 or "run" not in kinds or "python" not in kinds:
        raise SystemExit(f"the README's marked blocks are {kinds}")
    serve = dict(blocks)["serve"]
    # A session of its own, so that the signal reaches what cargo starts.
    process = subprocess.Popen(["bash", "-ec", serve], cwd=ROOT, start_new_session=True)
    try:
        wait_ready("127.0.0.1:8001", process, seconds=900)
        for kind, text in blocks:
            if kind == "run":
                run(["bash", "-ec", text])
            elif kind == "python":
                printed = run([sys.executable, "-c", text], stdout=subprocess.PIPE).stdout
                wanted = re.findall(r"print\(.*# (\[.*\])", text)
                if printed.split("\n")[:-1] != wanted:
                    raise SystemExit(f"the python block printed {printed!r}, its comment says {wanted}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
    print(f"{len(blocks)} passed, 0 failed")


main()
