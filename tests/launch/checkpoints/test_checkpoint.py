"""Checkpoints: written whole or not at all, checked when read, without code, for any number of
ranks and any stage."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks
from small_models import small_run

from launch.checkpoints import store
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, SaveError, read_state, verify
from launch.config import ConfigError, Run


@pytest.fixture(scope="module")
def data(coded_shards: Path) -> Path:
    return coded_shards


def plain(folder: Path, step: int, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, Progress(step=step, epoch_steps=1), keep)


class Engine:
    """What ``save`` asks of an engine, at stage 0 with one process."""

    def __init__(self) -> None:
        self.module = torch.nn.Module()
        self.module.model = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.Adam(self.module.model.parameters())
        self.torch_autocast_z0_gradscaler = None

    def zero_optimization_stage(self) -> int:
        return 0


class Nothing:
    def state_dict(self) -> dict[str, Any]:
        return {}


def save(folder: Path, step: int, *pointers: str, keep: int = 2) -> Path:
    return plain(folder, step, keep).save(Engine(), Nothing(), *pointers)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_newest_and_the_best_stay(tmp_path: Path):
    save(tmp_path, 1, "last", "best")
    for step in (2, 3, 4):
        save(tmp_path, step, "last", keep=2)
    assert names(tmp_path) == ["best", "last", "step-00000001", "step-00000003", "step-00000004"]
    checkpoints = plain(tmp_path, 9)
    assert checkpoints.find("last") == (tmp_path / "checkpoints/step-00000004", [])
    assert checkpoints.find("best") == (tmp_path / "checkpoints/step-00000001", [])


def test_saving_again_under_the_same_name_replaces(tmp_path: Path):
    first, again = save(tmp_path, 5, "last"), save(tmp_path, 5, "last")
    assert first == again
    verify(again)
    assert names(tmp_path) == ["last", "step-00000005"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda folder: os.truncate(folder / "rank-00000.safetensors", 100),
    "one bit": lambda folder: _flip(folder / "rank-00000.safetensors"),
    "a file gone": lambda folder: (folder / "rank-00000.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut off": lambda folder: os.truncate(folder / "manifest.json", 30),
    "manifest of another kind": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "state edited": lambda folder: _edit(folder / "state.json"),
    "a file more": lambda folder: (folder / "rank-00001.safetensors").write_bytes(b"x"),
}


def _flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(bytes(body))


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_newest_whole_one_by_name(
    tmp_path: Path, damage: str
):
    save(tmp_path, 1, "last")
    DAMAGES[damage](save(tmp_path, 2, "last"))
    found, complaints = plain(tmp_path, 0).find("last")
    assert found == tmp_path / "checkpoints/step-00000001"
    assert len(complaints) == 1
    assert "step-00000002" in complaints[0]


def test_a_checkpoint_that_was_renamed_but_not_pointed_to_is_found(tmp_path: Path):
    save(tmp_path, 1, "last")
    save(tmp_path, 2)  # the process died before it wrote the pointer
    assert plain(tmp_path, 0).find("last") == (tmp_path / "checkpoints/step-00000002", [])


def test_a_folder_left_by_a_killed_process_is_no_checkpoint_and_goes_with_the_next_save(
    tmp_path: Path,
):
    save(tmp_path, 1, "last")
    left = tmp_path / "checkpoints/.step-00000002.partial"
    shutil.copytree(tmp_path / "checkpoints/step-00000001", left)
    assert plain(tmp_path, 0).find("last")[0] == tmp_path / "checkpoints/step-00000001"
    save(tmp_path, 2, "last")
    assert not left.exists()


def test_a_full_disk_leaves_the_checkpoint_before_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = save(tmp_path, 1, "last")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(SaveError, match="No space left.*step-00000001 before it is untouched"):
        save(tmp_path, 2, "last")
    monkeypatch.undo()
    assert plain(tmp_path, 0).find("last") == (before, [])
    assert names(tmp_path) == ["last", "step-00000001"]


def test_a_file_that_the_disk_changed_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.fsync

    def lose_the_end(descriptor: int) -> None:
        real(descriptor)
        if os.fstat(descriptor).st_size > 500 and os.path.isfile(f"/proc/self/fd/{descriptor}"):
            os.ftruncate(descriptor, 400)

    monkeypatch.setattr(store.os, "fsync", lose_the_end)
    with pytest.raises(SaveError, match="does not read back"):
        save(tmp_path, 1, "last")


def test_a_checkpoint_holds_no_code_and_one_with_code_is_refused(tmp_path: Path):
    folder = save(tmp_path, 1, "last")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    torch.save(
        {"a": print}, folder / "rank-00000.safetensors"
    )  # a pickle under the name of a tensor file
    entry = store._write(
        folder / "rank-00000.safetensors", (folder / "rank-00000.safetensors").read_bytes()
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][entry.pop("name")] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    verify(folder)
    from launch.checkpoints.tensors import load_weights

    with pytest.raises(ConfigError, match="no safetensors file"):
        load_weights(folder, {"weight": [2, 3], "bias": [2]}, torch.nn.Linear(3, 2))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "missing"])
def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path: Path, name: str):
    folder = save(tmp_path, 1, "last")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="lacks"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 1}, "reads"),
        ({"progress": {"step": "many"}}, "step"),
        ({"shapes": 3}, "shapes"),
        (None, "Expecting"),
    ],
)
def test_a_state_of_another_kind_is_refused(
    tmp_path: Path, change: dict[str, Any] | None, what: str
):
    path = save(tmp_path, 1) / "state.json"
    path.write_text(
        "no json" if change is None else json.dumps(json.loads(path.read_text()) | change)
    )
    with pytest.raises(ConfigError, match=what):
        read_state(path.parent)


def test_weights_of_another_model_are_refused_by_parameter(tmp_path: Path):
    from launch.checkpoints.tensors import load_weights

    folder = save(tmp_path, 1)
    shapes = read_state(folder).shapes
    with pytest.raises(
        ConfigError, match=r"weight \(\[2, 3\] in the checkpoint, \[2, 4\] in the model\)"
    ):
        load_weights(folder, shapes, torch.nn.Linear(4, 2))


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
    assert names(tmp_path / "run") == ["last", "step-00000000-epoch-0"]


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
            Checkpoints(copies / str(place), session.progress).save(
                session.engine, session.task, "last"
            )
    shutdown_processes()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All of a checkpoint, put together."""
    from launch.checkpoints.tensors import StoredTensors

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
        if distributed.rank() == rank:
            owner, name = {
                "write": (store, "_write"),
                "flush": (store, "sync_folder"),
                "replace": (os, "replace"),
            }[moment]
            real = getattr(owner, name)

            def die(*arguments: Any) -> Any:
                if moment == "write":
                    arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            setattr(owner, name, die)
        session.progress.step += 100
        Checkpoints(run_dir, session.progress).save(session.engine, session.task, "last")


@pytest.mark.parametrize(("rank", "moment"), [(1, "write"), (0, "flush"), (0, "replace")])
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
    found, complaints = plain(tmp_path / "run", 0).find("last")
    assert found is not None
    assert complaints == []
    assert read_state(found).progress.epoch == 1
