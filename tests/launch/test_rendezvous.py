"""The port of a run on one machine: its own, agreed on by its ranks alone."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from training_runs import environment

from core.command import Refused
from launch.engine.rendezvous import _file_of_launcher, own_port

JOIN = """
import os, sys
from launch.engine.rendezvous import own_port
with own_port(60):
    print(os.environ["MASTER_PORT"], flush=True)
    sys.stdin.readline()
"""
DEEPSPEED = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "CROSS_SIZE": "1",
}


def join(rank: int, size: int, folder: Path, **more: str) -> subprocess.Popen[str]:
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_SIZE": str(size)}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN],
        cwd=ROOT,
        env=environment(**DEEPSPEED, **ranks, TMPDIR=str(folder), **more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_ranks_of_one_launcher_agree_on_a_port_of_their_own(tmp_path: Path):
    ranks = [join(rank, 2, tmp_path) for rank in (1, 0)]
    ports = []
    for process in ranks:
        assert process.stdout is not None
        ports.append(process.stdout.readline().strip())
    for process in ranks:
        process.communicate("\n")
    assert ports[0] == ports[1]
    assert ports[0] not in ("", "29500")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "around",
    [
        {"MASTER_PORT": "29501"},  # asked for
        {"LOCAL_SIZE": "1"},  # several machines
        {"TORCHELASTIC_RUN_ID": "none"},  # torchrun, whose agent has the port
    ],
)
def test_a_port_that_is_not_ours_to_choose_stays(
    monkeypatch: pytest.MonkeyPatch, around: dict[str, str]
):
    for name, value in {
        **DEEPSPEED,
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",
        **around,
    }.items():
        monkeypatch.setenv(name, value)
    before = os.environ["MASTER_PORT"]
    with own_port(1):
        assert os.environ["MASTER_PORT"] == before


def test_a_port_that_is_taken_is_named_with_what_to_write(monkeypatch: pytest.MonkeyPatch):
    import torch.distributed as dist

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.delenv("LOCAL_SIZE", raising=False)
        with (
            pytest.raises(Refused, match=f"port {port} of 127.0.0.1 is taken.*--master_port"),
            own_port(1),
        ):
            dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


def test_other_faults_pass_and_a_strange_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {**DEEPSPEED, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("launch.engine.rendezvous.tempfile.gettempdir", lambda: str(tmp_path))
    with pytest.raises(Refused, match="rank 0 has not chosen a port"), own_port(0.2):
        pass
    _file_of_launcher().symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="is not this user's"), own_port(5):
        pass
    monkeypatch.setenv("MASTER_PORT", "29501")
    with pytest.raises(RuntimeError, match="another fault"), own_port(1):
        raise RuntimeError("another fault")


@pytest.mark.slow
def test_deepspeed_trains_while_port_29500_is_taken(small_shards: Path, tmp_path: Path):
    words = ["tate/demo", f"data={small_shards}", "options.text.width=16", "options.text.layers=1"]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", 29500))
        taken.listen()
        done = subprocess.run(
            ["deepspeed", "--num_gpus", "1", "launch/train.py", *words, "epochs=1",
             "options.width=24", f"run_dir={tmp_path / 'run'}"],
            cwd=ROOT,
            env=environment(DS_ACCELERATOR="cpu"),
            capture_output=True,
            text=True,
            timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"epoch 1/1", done.stderr + done.stdout)
