"""Builds an example of the workspace for the scripts that compare it with others' programs."""

import json
import pathlib
import subprocess
import sys


def built(name):
    """The path of an example, built as the tests of the whole workspace build it, so that nothing is built anew."""
    command = ["cargo", "build", "--quiet", "--workspace", "--example", name, "--message-format", "json"]
    here = pathlib.Path(__file__).resolve().parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return message["executable"]
    sys.exit(f"cargo built no {name}")
