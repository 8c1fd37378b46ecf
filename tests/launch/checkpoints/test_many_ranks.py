"""Checkpoints that several ranks write: one that cannot, one that is killed, and any stage and number
of ranks that reads what another wrote."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_checkpoints import names_in, plain_checkpoints
from ranks import Ranks, run_ranks
from small_models import small_run

from launch.checkpoints import commit, store
from launch.checkpoints.snapshot import HostMemory
from launch.checkpoints.store import Checkpoints, SaveError, read_state
from launch.checkpoints.tensors import StoredTensors, snapshot_sizes, snapshots
from launch.config import Run


@pytest.fixture(scope="module")
def data(coded_shards: Path) -> Path:
    return coded_shards


def save_once(run: Run, run_dir: Path, limit: int) -> str:
    """On a rank: train two steps, save, then save again where rank 1 may write no more than
    ``limit`` bytes a file."""
    from core import distributed
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.session import prepare

    init_processes()
    with prepare(replace(run, run_dir=str(run_dir)), quiet=True) as session:
        checkpoints = Checkpoints(run_dir, session.progress, 2)
        checkpoints.save(session.engine, session.task, "last")
        session.progress.step = 7
        if distributed.rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            checkpoints.save(session.engine, session.task, "last")
            said = "saved"
        except SaveError as error:
            said = str(error)
    shutdown_processes()
    return said


def test_when_one_rank_cannot_write_all_ranks_say_which_and_why(data: Path, tmp_path: Path):
    run = small_run("baseline", data, zero_stage=1)
    said = run_ranks(2, tmp_path / "ranks", save_once, run, tmp_path / "run", 1000)
    assert said[0] == said[1]
    assert "rank 1 on" in said[0]
    assert "File too large" in said[0]
    assert "step-00000000-epoch-0 before it is untouched" in said[0]
    assert names_in(tmp_path / "run") == ["last", "step-00000000-epoch-0"]


def contents(runs: list[Run], run_dir: Path, copies: Path) -> None:
    """On a rank: train an epoch if nobody has, then load into each run in turn and save a copy from
    there."""
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.session import prepare

    init_processes()
    for place, run in enumerate(runs):
        with prepare(replace(run, run_dir=str(run_dir)), quiet=True) as session:
            if session.progress.step == 0:
                next(fit(session))
            taken = snapshots(session.engine, session.model, HostMemory())
            sizes = {file: len(snapshot.body) for file, snapshot in taken.items()}
            assert snapshot_sizes(session.engine, session.model) == sizes
            Checkpoints(copies / str(place), session.progress).save(
                session.engine, session.task, "last"
            )
    shutdown_processes()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All of a checkpoint, put together."""
    (path,) = folder.glob("checkpoints/step-*")
    state, stored = read_state(path), StoredTensors(path)
    whole = {f"buffer {name}": stored.whole("buffer", name) for name in stored.names("buffer")}
    for name, shape in state.shapes.items():
        for kind in ("param", "exp_avg", "exp_avg_sq"):
            out = torch.empty(torch.Size(shape).numel())
            stored.fill(kind, name, 0, out)
            whole[f"{kind} {name}"] = out
    return whole


def test_every_stage_and_number_of_ranks_reads_what_another_wrote_bit_for_bit(
    data: Path, tmp_path: Path
):
    base = small_run("self_mm", data, batch_size=24)
    for ranks, stages in (
        (2, (2, 3, 0, 1)),
        (3, (3, 1)),
        (1, (3, 2)),
    ):  # the first of all trains, the rest go on
        runs = [replace(base, zero_stage=stage) for stage in stages]
        run_ranks(
            ranks,
            tmp_path / f"ranks-{ranks}",
            contents,
            runs,
            tmp_path / "run",
            tmp_path / f"copies-{ranks}",
        )
    copies = sorted(tmp_path.glob("copies-*/*"))
    assert len(copies) == 8
    expected = tensors(copies[0])
    for copy in copies[1:]:
        found = tensors(copy)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    moments = torch.cat(
        [value for name, value in expected.items() if name.startswith("exp_avg_sq ")]
    )
    assert (moments > 0).float().mean() > 0.5


def die_while_saving(run: Run, run_dir: Path, rank: int, moment: str) -> None:
    """On a rank: train an epoch, then let ``rank`` kill itself at a moment of the next save."""
    import signal

    from core import distributed
    from launch.engine.processes import init_processes
    from launch.loop import fit
    from launch.session import prepare

    init_processes(lost_after=12)
    with prepare(replace(run, run_dir=str(run_dir)), quiet=True) as session:
        next(fit(session))
        session.checkpoints.wait()
        if distributed.rank() == rank:
            owner, name = {
                "write": (store, "write_file"),
                "moments": (store, "write_file"),
                "flush": (commit, "sync_folder"),
                "link": (os, "link"),
                "replace": (os, "replace"),
                "point": (store, "point"),
            }[moment]
            real = getattr(owner, name)

            def die(*arguments: Any) -> Any:
                if moment == "moments" and not arguments[0].name.startswith("moments"):
                    return real(*arguments)
                if moment in ("write", "moments"):
                    body = b"".join(arguments[1])
                    arguments[0].write_bytes(body[: len(body) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            setattr(owner, name, die)
        session.progress.step += 100
        session.begin_save("last", "best")
        session.checkpoints.wait()


@pytest.mark.parametrize(
    ("rank", "moment"),
    [
        (1, "moments"),
        (0, "flush"),
        pytest.param(1, "write", marks=pytest.mark.slow),
        pytest.param(0, "link", marks=pytest.mark.slow),
        pytest.param(0, "replace", marks=pytest.mark.slow),
        pytest.param(0, "point", marks=pytest.mark.slow),
    ],
)
def test_a_rank_killed_while_saving_leaves_the_checkpoint_before_it(
    data: Path, tmp_path: Path, rank: int, moment: str
):
    run = small_run("baseline", data, zero_stage=2)
    with Ranks(
        2, tmp_path / "ranks", die_while_saving, run, tmp_path / "run", rank, moment
    ) as started:
        codes = started.codes()
    assert codes[rank] == -9
    assert codes[1 - rank] not in (0, None)
    found, complaints = plain_checkpoints(tmp_path / "run", 0).find("last")
    assert found is not None
    assert complaints == []
    assert read_state(found).progress.epoch == 1
    best, complaints = plain_checkpoints(tmp_path / "run", 0).find("best")
    assert best is not None
    assert complaints == []
