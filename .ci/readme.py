"""Runs the README's commands as they stand, in order: the blocks that follow a `<!-- ci: … -->` line.

`serve` ends the server before it, starts in the background and must become ready; `run` and `python`
must succeed. A python block must print what its comments say, and nothing else.
"""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

from serving import ROOT, wait_ready

HOST, PORT = "127.0.0.1", 8001
BLOCK = re.compile(r"<!-- ci: (\w+) -->\n```\w+\n(.*?)```", re.DOTALL)
ENVIRONMENT = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(command, **options):
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, check=True, **options)


def start(text):
    # A session of its own, so that the signal reaches what cargo starts.
    process = subprocess.Popen(["bash", "-ec", text], cwd=ROOT, start_new_session=True)
    try:
        wait_ready(f"{HOST}:{PORT}", process, seconds=900)
    except BaseException:
        stop(process)
        raise
    return process


def stop(process):
    if process is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)
    # Cargo goes before the server has drained; the next server needs the port.
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, PORT)) != 0:
                return
        time.sleep(0.1)
    raise SystemExit("the server is there a minute after SIGTERM")


def check_python(text):
    printed = run([sys.executable, "-c", text], stdout=subprocess.PIPE).stdout
    wanted = re.findall(r"print\(.*# (\[.*\])", text)
    if printed.split("\n")[:-1] != wanted:
        raise SystemExit(f"the python block printed {printed!r}, its comment says {wanted}")


def main():
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    kinds = {kind for kind, _ in blocks}
    if kinds != {"serve", "run", "python"}:
        raise SystemExit(f"the README's marked blocks are {kinds}")
    server = None
    try:
        for kind, text in blocks:
            if kind == "serve":
                stop(server)
                server = None
                server = start(text)
            elif kind == "run":
                run(["bash", "-ec", text])
            else:
                check_python(text)
    finally:
        stop(server)
    print(f"{len(blocks)} passed, 0 failed")


main()
