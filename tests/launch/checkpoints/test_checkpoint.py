"""Checkpoints: written whole or not at all, checked when read, without code, for any number of
ranks and any stage."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from ranks import Ranks, run_ranks
from safetensors.torch import load_file
from small_models import small_run

from core.files import sha256_of_file
from launch.checkpoints import commit, store
from launch.checkpoints.progress import Progress
from launch.checkpoints.snapshot import HostMemory, take
from launch.checkpoints.store import Checkpoints, SaveError, read_state, verify
from launch.checkpoints.tensors import StoredTensors, load_moments, load_weights
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
    assert names(tmp_path) == ["best", "best-00000001", "last", "step-00000003", "step-00000004"]
    checkpoints = plain(tmp_path, 9)
    assert checkpoints.find("last") == (tmp_path / "checkpoints/step-00000004", [])
    assert checkpoints.find("best") == (tmp_path / "checkpoints/best-00000001", [])


def test_the_best_holds_weights_alone_and_the_last_moments_too(tmp_path: Path):
    last = save(tmp_path, 1, "last", "best")
    best, _ = plain(tmp_path, 9).find("best")
    assert best is not None
    held = {path.name for path in last.iterdir()}
    assert held - {path.name for path in best.iterdir()} == {"moments-00000.safetensors"}
    weights = StoredTensors(best)
    assert weights.names("exp_avg") == []
    assert weights.names("param") == StoredTensors(last).names("param") == ["bias", "weight"]
    # one file of the disk under two names
    assert (best / "rank-00000.safetensors").samefile(last / "rank-00000.safetensors")


def test_where_a_file_has_one_name_only_the_best_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*paths: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(commit.os, "link", refuse)
    last = save(tmp_path, 1, "last", "best")
    best, complaints = plain(tmp_path, 9).find("best")
    assert best is not None
    assert complaints == []
    body = (best / "rank-00000.safetensors").read_bytes()
    assert body == (last / "rank-00000.safetensors").read_bytes()


def test_a_best_epoch_that_is_trained_again_never_leaves_the_run_without_one(tmp_path: Path):
    save(tmp_path, 1, "last", "best")
    save(tmp_path, 1, "last", "best")
    assert names(tmp_path) == ["best", "best-00000001-2", "last", "step-00000001"]
    assert plain(tmp_path, 9).find("best") == (tmp_path / "checkpoints/best-00000001-2", [])


def test_a_checkpoint_holds_what_was_there_when_it_was_begun(tmp_path: Path):
    engine, checkpoints = Engine(), plain(tmp_path, 3)
    weight = engine.module.model.weight
    expected = weight.detach().clone()
    folder = checkpoints.begin(engine, Nothing(), "last")
    with torch.no_grad():
        weight.zero_()  # training goes on
    checkpoints.progress.step = 4
    checkpoints.wait()
    assert read_state(folder).progress.step == 3
    found = torch.empty(6)
    StoredTensors(folder).fill("param", "weight", 0, found)
    assert torch.equal(found, expected.view(-1))


def test_a_failure_beside_the_training_is_known_and_raised_where_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = save(tmp_path, 1, "last")
    checkpoints = plain(tmp_path, 2)

    def full(path: Path, parts: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_file", full)
    checkpoints.begin(Engine(), Nothing(), "last")
    checkpoints._under_way.join()
    assert checkpoints.has_failed
    with pytest.raises(SaveError, match="No space left"):
        checkpoints.begin(Engine(), Nothing(), "last")
    assert not checkpoints.has_failed
    assert checkpoints.find("last") == (before, [])


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_leaving_waits_for_the_checkpoint_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
):
    real, goes_on = commit.write_file, threading.Event()

    def slow(path: Path, parts: Any) -> Any:
        goes_on.wait(60)
        return real(path, parts)

    monkeypatch.setattr(store, "write_file", slow)
    with suppress(KeyboardInterrupt), plain(tmp_path, 1) as checkpoints:
        folder = checkpoints.begin(Engine(), Nothing(), "last")
        assert not folder.exists()
        goes_on.set()
        if error is not None:
            raise error
    assert plain(tmp_path, 9).find("last") == (folder, [])


def test_the_files_are_what_the_safetensors_library_reads(tmp_path: Path):
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "c": torch.randn(2, 3),
        "d": torch.zeros(0, 4, dtype=torch.int64),
        "e": torch.tensor(True),
        "f": torch.randn(4, 2).T,  # not one behind the other in memory
    }
    entry = commit.write_file(tmp_path / "x", take("x", tensors, HostMemory()).parts())
    found = load_file(tmp_path / "x")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert entry["bytes"] == (tmp_path / "x").stat().st_size
    assert entry["sha256"] == sha256_of_file(tmp_path / "x")


def test_a_checkpoint_of_the_version_before_is_read(tmp_path: Path):
    """Whose files hold weights and moments together."""
    engine = Engine()
    folder = plain(tmp_path, 1).save(engine, Nothing(), "last")
    together = {}
    for path in folder.glob("*.safetensors"):
        together |= load_file(path)
        path.unlink()
    state = json.loads((folder / "state.json").read_text())
    contents = {
        "rank-00000.safetensors": safetensors.torch.save(together),
        "state.json": json.dumps(state | {"version": 2}).encode(),
    }
    entries = [commit.write_file(folder / name, [body]) for name, body in contents.items()]
    files = {entry.pop("name"): entry for entry in entries}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    (folder.parent / "best").write_text(folder.name)
    checkpoints = plain(tmp_path, 0)
    assert checkpoints.find("last") == checkpoints.find("best") == (folder, [])
    state = read_state(folder)
    model = torch.nn.Linear(3, 2)
    load_weights(folder, state.shapes, model)
    assert torch.equal(model.weight, engine.module.model.weight)
    load_moments(folder, 5.0, engine, engine.module.model)
    steps = [record["step"].item() for record in engine.optimizer.state.values()]
    assert steps == [5.0, 5.0]


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

    monkeypatch.setattr(commit.os, "fsync", full)
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

    monkeypatch.setattr(commit.os, "fsync", lose_the_end)
    with pytest.raises(SaveError, match="does not read back"):
        save(tmp_path, 1, "last")


def test_a_checkpoint_holds_no_code_and_one_with_code_is_refused(tmp_path: Path):
    folder = save(tmp_path, 1, "last")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    torch.save(
        {"a": print}, folder / "rank-00000.safetensors"
    )  # a pickle under the name of a tensor file
    path = folder / "rank-00000.safetensors"
    entry = commit.write_file(path, [path.read_bytes()])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][entry.pop("name")] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    verify(folder)
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
    found, complaints = plain(tmp_path / "run", 0).find("last")
    assert found is not None
    assert complaints == []
    assert read_state(found).progress.epoch == 1
    best, complaints = plain(tmp_path / "run", 0).find("best")
    assert best is not None
    assert complaints == []
