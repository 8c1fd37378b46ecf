"""A search on a Ray cluster, whose nodes share neither code nor folders with the driver."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from paths import ROOT
from searches import begin, finish, journal, peek, wait_until, workers

from tune.cluster import PACKAGES

pytestmark = pytest.mark.timeout(600)  # a slow one takes about a minute, beside other work several


def another_copy(folder: Path) -> Path:
    """This project as it is, but for a worker that says where its code lies."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    worker = folder / "tune" / "workers" / "worker.py"
    told = 'if __name__ == "__main__":\n    print("another copy, in", __file__)\n'
    worker.write_text(worker.read_text().replace('if __name__ == "__main__":\n', told))
    return folder


@contextmanager
def ray_node(log: Path, **around: str) -> Iterator[str]:
    """A node of a Ray cluster that knows nothing of the driver's code; gives its address."""
    with socket.socket() as free, socket.socket() as client:
        free.bind(("127.0.0.1", 0))
        client.bind(("127.0.0.1", 0))
        port, client_port = free.getsockname()[1], client.getsockname()[1]
    words = [
        "start",
        "--head",
        "--block",
        f"--port={port}",
        f"--ray-client-server-port={client_port}",
    ]
    words += ["--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000"]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | around
    with log.open("w") as printed:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=environment,
            cwd=tempfile.gettempdir(),
            stdout=printed,
            stderr=printed,
        )
    try:
        until = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait()


def run_dirs(trial: str, shards: Path) -> set[Path]:
    """Where processes of a trial with this number run on these shards, wherever that is."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(shards) in word for word in words):
            folders = [word.partition("=")[2] for word in words if word.startswith('run_dir="')]
            found |= {Path(json.loads(folder)) for folder in folders}
    return {path for path in found if path.parent.name == trial}


@pytest.mark.slow
def test_a_search_joins_a_cluster_with_its_own_code_and_keeps_its_runs_at_a_uri(
    small_shards: Path, tmp_path: Path
):
    """Trials run in folders of the node, with the code of the driver, and go on, and are evaluated,
    from checkpoints at the URI.
    """
    folder, store, copy = tmp_path / "search", tmp_path / "store", another_copy(tmp_path / "code")
    around = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    before = run_dirs("0001", small_shards)
    with ray_node(tmp_path / "ray.log", **around) as address:
        names = [
            f"address={address}",
            f"storage=file://{store}",
            "scheduler=none",
            "trials=1",
            "epochs=6",
            "confirm=1",
        ]
        search = begin(small_shards, folder, *names, code=copy, PYTHONPATH=str(copy), **around)
        wait_until(lambda: any(r.checkpoint and 2 in r.history for r in peek(folder)), search)
        [run_dir] = run_dirs("0001", small_shards) - before
        for pid in workers(run_dir.parent):
            os.kill(pid, signal.SIGKILL)
        finish(search)
        output = (run_dir.parent / "output.log").read_text()
    [record] = journal(folder).trials()
    assert (record.state, record.starts) == ("finished", 2)
    assert "going on at epoch" in output
    assert record.checkpoint.startswith(str(store))
    assert not (folder / "trials").exists()
    assert json.loads((folder / "confirm.json").read_text())["test"]["MAE"]["std"] == 0.0
    places = [
        Path(line.rpartition(" ")[2])
        for line in output.splitlines()
        if line.startswith("another copy")
    ]
    assert len(places) == 2
    assert not [
        place for place in places if place.is_relative_to(copy) or place.is_relative_to(ROOT)
    ]
