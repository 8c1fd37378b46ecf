"""Starting training as a user does, for the tests that need real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from paths import ROOT

# So many steps that one who watches the log can interrupt in between, also when the machine is
# busy.
LONG = ["batch_size=12", "epochs=4"]


def environment(**more: str) -> dict[str, str]:
    """One thread per process, the launcher of this Python first, and nothing of an outer
    launcher."""
    own = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    return own | {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **more,
    }


def command(*arguments: str, processes: int = 1) -> list[str]:
    """``launch.train`` with these arguments, under torchrun when there are several processes."""
    if processes == 1:
        return [sys.executable, "-m", "launch.train", *arguments]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, "-m", "launch.train", *arguments]


def train(*arguments: str, processes: int = 1, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, processes=processes),
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=1500,
    )


def train_in_turn(*runs: list[str]) -> None:
    """Several runs in one process, one after the other: most of a short run's time is importing
    libraries."""
    code = (
        "import json, sys; from launch.engine.processes import init_processes, shutdown_processes; "
        "from launch.loop import train; from launch.train import parse; init_processes(); "
        "[train(parse(words)) for words in json.loads(sys.argv[1])]; shutdown_processes()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(runs)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def losses(run_dir: Path) -> list[float]:
    return [event["loss"] for event in events(run_dir, "train")]


def scores(run_dir: Path) -> dict[str, dict[str, float]]:
    return json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))
