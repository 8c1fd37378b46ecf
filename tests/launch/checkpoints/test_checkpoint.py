"""Checkpoints: what they hold, which of them stay, and how they are written beside the training."""

from __future__ import annotations

import errno
import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from plain_checkpoints import NoPosition, PlainEngine, names_in, plain_checkpoints, save_step
from safetensors.torch import load_file

from core.files import sha256_of_file
from launch.checkpoints import commit, store
from launch.checkpoints.snapshot import HostMemory, take
from launch.checkpoints.store import SaveError, read_state, verify
from launch.checkpoints.tensors import StoredTensors, load_moments, load_weights, snapshot_sizes


def test_the_newest_and_the_best_stay(tmp_path: Path):
    save_step(tmp_path, 1, "last", "best")
    for step in (2, 3, 4):
        save_step(tmp_path, step, "last", keep=2)
    assert names_in(tmp_path) == ["best", "best-00000001", "last", "step-00000003", "step-00000004"]
    checkpoints = plain_checkpoints(tmp_path, 9)
    assert checkpoints.find("last") == (tmp_path / "checkpoints/step-00000004", [])
    assert checkpoints.find("best") == (tmp_path / "checkpoints/best-00000001", [])


def test_the_best_holds_weights_alone_and_the_last_moments_too(tmp_path: Path):
    last = save_step(tmp_path, 1, "last", "best")
    best, _ = plain_checkpoints(tmp_path, 9).find("best")
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
    last = save_step(tmp_path, 1, "last", "best")
    best, complaints = plain_checkpoints(tmp_path, 9).find("best")
    assert best is not None
    assert complaints == []
    body = (best / "rank-00000.safetensors").read_bytes()
    assert body == (last / "rank-00000.safetensors").read_bytes()


def test_a_best_epoch_that_is_trained_again_never_leaves_the_run_without_one(tmp_path: Path):
    save_step(tmp_path, 1, "last", "best")
    save_step(tmp_path, 1, "last", "best")
    assert names_in(tmp_path) == ["best", "best-00000001-2", "last", "step-00000001"]
    assert plain_checkpoints(tmp_path, 9).find("best") == (
        tmp_path / "checkpoints/best-00000001-2",
        [],
    )


def test_a_checkpoint_holds_what_was_there_when_it_was_begun(tmp_path: Path):
    engine, checkpoints = PlainEngine(), plain_checkpoints(tmp_path, 3)
    weight = engine.module.model.weight
    expected = weight.detach().clone()
    folder = checkpoints.begin(engine, NoPosition(), "last")
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
    before = save_step(tmp_path, 1, "last")
    checkpoints = plain_checkpoints(tmp_path, 2)

    def full(path: Path, parts: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_file", full)
    checkpoints.begin(PlainEngine(), NoPosition(), "last")
    checkpoints._under_way.join()
    assert checkpoints.has_failed
    with pytest.raises(SaveError, match="No space left"):
        checkpoints.begin(PlainEngine(), NoPosition(), "last")
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
    with suppress(KeyboardInterrupt), plain_checkpoints(tmp_path, 1) as checkpoints:
        folder = checkpoints.begin(PlainEngine(), NoPosition(), "last")
        assert not folder.exists()
        goes_on.set()
        if error is not None:
            raise error
    assert plain_checkpoints(tmp_path, 9).find("last") == (folder, [])


def test_a_snapshot_lies_where_memory_was_reserved_and_the_next_one_too():
    memory, tensor = HostMemory(), torch.randn(1000)
    memory.reserve({"x": 4096})  # more than is needed
    memory.finish_reserving()
    reserved = memory.take("x", 4096)
    for _ in range(2):
        taken = take("x", {"a": tensor}, memory)
        assert taken.body.data_ptr() == reserved.data_ptr()
        assert torch.equal(taken.body.view(torch.float32), tensor)
        tensor = tensor * 2
    larger = take("x", {"a": torch.zeros(2000)}, memory)
    assert len(larger.body) == 8000


def test_a_run_reserves_what_its_first_checkpoint_takes(tmp_path: Path):
    engine, checkpoints = PlainEngine(), plain_checkpoints(tmp_path, 1)
    checkpoints.reserve(engine)
    checkpoints.memory.finish_reserving()
    sizes = snapshot_sizes(engine, engine.module.model)
    assert not engine.optimizer.state  # no moments were made for it
    reserved = {file: checkpoints.memory.take(file, size) for file, size in sizes.items()}
    folder = checkpoints.save(engine, NoPosition(), "last")
    for file, body in reserved.items():
        written = (folder / file).read_bytes()
        assert written.endswith(body.numpy().tobytes())


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
    engine = PlainEngine()
    folder = plain_checkpoints(tmp_path, 1).save(engine, NoPosition(), "last")
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
    checkpoints = plain_checkpoints(tmp_path, 0)
    assert checkpoints.find("last") == checkpoints.find("best") == (folder, [])
    state = read_state(folder)
    model = torch.nn.Linear(3, 2)
    load_weights(folder, state.shapes, model)
    assert torch.equal(model.weight, engine.module.model.weight)
    load_moments(folder, 5.0, engine, engine.module.model)
    steps = [record["step"].item() for record in engine.optimizer.state.values()]
    assert steps == [5.0, 5.0]


def test_saving_again_under_the_same_name_replaces(tmp_path: Path):
    first, again = save_step(tmp_path, 5, "last"), save_step(tmp_path, 5, "last")
    assert first == again
    verify(again)
    assert names_in(tmp_path) == ["last", "step-00000005"]
