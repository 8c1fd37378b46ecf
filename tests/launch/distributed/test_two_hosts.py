"""Two machines, as network namespaces with addresses of their own: train across them, cut one off,
go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shard_folders import sentiment_shards
from small_models import small_words
from training_runs import ROOT, environment, train

SCRIPT = ROOT / "examples/cluster/two_hosts.sh"
NAME = f"t{os.getpid()}"


def hosts(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *words], cwd=ROOT, env=settings(), capture_output=True, text=True
    )


def settings() -> dict[str, str]:
    python = shutil.which("python", path=environment()["PATH"]) or ""
    return environment(NAME=NAME, PORT=str(20000 + os.getpid() % 10000), PYTHON=python)


@pytest.fixture
def _two_hosts() -> Iterator[None]:
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command here (package iproute2)")
    made = hosts("up")
    if made.returncode:
        hosts("down")
        pytest.skip(f"network namespaces are not permitted here: {made.stderr.strip()[:200]}")
    yield
    hosts("down")


def losses(run_dir: Path) -> dict[int, float]:
    if not (run_dir / "log.jsonl").exists():
        return {}
    events = [
        json.loads(line)
        for line in (run_dir / "log.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]
    return {event["step"]: event["loss"] for event in events if event["kind"] == "train"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_two_hosts")
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_hosts_train_lose_each_other_and_go_on(tmp_path: Path, launcher: str):
    data = sentiment_shards(tmp_path, 90)
    words = [
        "baseline/demo",
        f"data={data}",
        "batch_size=8",
        "epochs=6",
        "patience=0",
        "save_every=2",
    ]
    words += small_words("baseline")
    command = [str(SCRIPT), launcher, *words, f"run_dir={tmp_path / 'two'}"]
    started = subprocess.Popen(command, cwd=ROOT, env=settings(), stderr=subprocess.PIPE, text=True)
    begun = time.monotonic()
    while len(losses(tmp_path / "two")) < 5:
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() - begun < 240
        time.sleep(0.05)
    hosts("cut")
    said = started.communicate(timeout=300)[
        1
    ]  # both ends notice; nothing waits for the 30 minutes of a collective
    assert started.returncode != 0
    assert "has not" in said
    reached = max(losses(tmp_path / "two"))
    hosts("join")
    again = subprocess.run(
        command, cwd=ROOT, env=settings(), capture_output=True, text=True, timeout=600
    )
    assert again.returncode == 0, again.stderr
    assert "going on at" in again.stderr
    alone = train(*words, f"run_dir={tmp_path / 'one'}")
    assert alone.returncode == 0, alone.stderr
    expected = losses(tmp_path / "one")
    assert reached < max(expected)
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-4)
