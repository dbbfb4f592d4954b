"""Starts the release build of the server for a script, and stops it."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time

import tritonclient.grpc as triton

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target" / "release" / "requant-server"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_ready(address, process, seconds=60):
    client = triton.InferenceServerClient(address)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode} before it was ready")
        with contextlib.suppress(Exception):
            if client.is_server_ready():
                return client
        time.sleep(0.05)
    raise SystemExit(f"the server is not ready after {seconds} s")


@contextlib.contextmanager
def server(*flags, **environment):
    """A running server: yields (address, client). Stops it with SIGTERM and checks that it drains."""
    address = f"127.0.0.1:{free_port()}"
    command = [BINARY, "--grpc-address", address, "--metrics-address", f"127.0.0.1:{free_port()}"]
    process = subprocess.Popen([*command, *map(str, flags)], env={**os.environ, **environment})
    try:
        yield address, wait_ready(address, process)
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=60) != 0:
            raise SystemExit(f"the server ended with {process.returncode} after SIGTERM")
    finally:
        process.kill()
        process.wait()
