"""Nothing of the process group is left behind, however a command ends, and what takes minutes once
is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.command import FAULT, REFUSED, STOPPED, Refused
from launch.engine import operator_cache, processes
from launch.monitor.preemption import Preempted
from launch.monitor.rank_command import run_rank


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens to a group of NCCL, as far as it can be looked at without a GPU."""
    done: list[Any] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.distributed, "barrier", lambda device_ids: done.append(device_ids))
    c10d = torch.distributed.distributed_c10d
    monkeypatch.setattr(c10d, "_abort_process_group", lambda: done.append("aborted"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("ended"))
    return done


@pytest.mark.parametrize(
    ("error", "code"),
    [(Refused("no"), REFUSED), (KeyError("a fault"), FAULT), (Preempted(), STOPPED)],
    ids=["refused", "fault", "stopped"],
)
def test_a_group_is_not_left_behind(
    group: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Any, code: int
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # of the fault's traceback

    def work() -> None:
        raise error

    assert run_rank(work) == code
    assert group == ["aborted"]
    # nobody is waited for where there is nobody else
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    assert run_rank(work) == code
    assert group == ["aborted", "ended"]


def test_nccl_hears_which_device_a_barrier_is_on(group: list[Any]):
    processes._meet()
    assert group == [[3]]


@pytest.mark.parametrize("compiled", [False, True])
def test_compiling_an_operator_is_said_before_it_takes_minutes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    compiled: bool,
):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(operator_cache, "own_folder", lambda: tmp_path)
    if compiled:
        (tmp_path / "shm").mkdir()
        (tmp_path / "shm/shm.so").touch()
    processes._say_if_it_compiles()
    said = capsys.readouterr().err
    assert (said == "") == compiled
    assert (
        compiled
        or f"once for this Python environment; that takes up to two minutes and is kept in {tmp_path}"
        in said
    )
