"""An object store on this machine: moto's S3 server, in a process of its own."""
import contextlib
import importlib.util
import json
import subprocess
import sys
import urllib.request
import uuid

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


@contextlib.contextmanager
def s3_server():
    """A context with a running server; yields its address, with which and with any keys clients may read and write.

    Tests are skipped where moto is missing.
    """
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is missing")
    program = ("import moto.server, threading; server = moto.server.ThreadedMotoServer('127.0.0.1', 0, verbose=False); "
               "server.start(); print(server.get_host_and_port()[1], flush=True); threading.Event().wait()")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def new_bucket(address):
    """Makes a bucket; returns its URL."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT")).close()
    return f"s3://{name}"


def use(monkeypatch, address):
    """Makes S3 clients of this process, and of those that it starts, use a server."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)


def refuse_everybody(address, after=0):
    """Makes the server look at keys, of which none is known, after so many more requests."""
    request = urllib.request.Request(f"{address}/moto-api/reset-auth", data=str(after).encode(), method="POST",
                                     headers={"Content-Type": "text/plain"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["status"] == "ok"
