"""Checkpoints that are whole or not there, hold no code, and serve any number of ranks and any ZeRO stage.

``run_dir/checkpoints/step-00000120/`` holds one safetensors file per rank (its pieces of parameters and Adam moments,
by parameter name and flat range, and its random states; rank 0 adds the buffers), ``state.json`` (progress, stream
position, shapes) and ``manifest.json`` (size and SHA-256 of each file).

How one comes to be: every rank writes its file into a folder of another name, flushes it to the disk, reads it back
and tells the others its size and hash, or why it could not. When all could, rank 0 writes the manifest, flushes, and
renames the folder; only then do ``last`` and ``best`` point to it. A process that dies anywhere in between leaves the
checkpoints before it as they were. ``run_dir`` must be on a file system that all machines of the run share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import TypeAdapter, ValidationError

from core import distributed
from core.command import NO_ROOM
from core.model import Model
from launch.checkpoints import zero
from launch.checkpoints.progress import Progress
from launch.checkpoints.tensors import adam_step, rank_tensors
from launch.config import ConfigError
from launch.engine import grad_scaler_state
from launch.monitor import control_plane

FORMAT, VERSION = "concord-checkpoint", 2


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are untouched. Raised on every rank alike."""

    exit_code = NO_ROOM


@dataclass(frozen=True)
class State:
    """``state.json``: what a run is besides its tensors."""

    format: str
    version: int
    ranks: int
    progress: Progress
    task: dict[str, Any]  # what the task said in ``state_dict``
    adam_step: float
    shapes: dict[str, list[int]]  # parameter -> shape
    loss_scale: dict[str, float] = field(default_factory=dict)  # of fp16


class Checkpoints:
    """The checkpoints of one run directory; everything here is collective.

    Args:
        progress: shared with the loop and saved with each checkpoint.
        keep: how many of the newest stay, besides the best.
    """

    def __init__(self, run_dir: Path, progress: Progress, keep: int = 2):
        self.folder = run_dir / "checkpoints"
        self.progress = progress
        self.keep = keep
        self.newest = ""  # the one saved last by this process

    def save(self, engine: Any, task: Any, *pointers: str) -> Path:
        """Write one checkpoint and let ``pointers`` ("last", "best") name it.

        Raises:
            SaveError: on every rank, when one of them could not write.
        """
        model: Model = engine.module.model
        name = self.name
        final, staging = self.folder / name, self.folder / f".{name}.partial"
        tensors, rank = rank_tensors(engine, model), distributed.rank()
        body = {f"rank-{rank:05d}.safetensors": safetensors.torch.save(tensors)}
        if rank == 0:
            state = State(
                *(FORMAT, VERSION, distributed.world_size(), self.progress, task.state_dict()),
                adam_step=adam_step(engine, model),
                shapes={
                    name: zero.shape(parameter) for name, parameter in model.named_parameters()
                },
                loss_scale=grad_scaler_state(engine),
            )
            body["state.json"] = json.dumps(asdict(state)).encode()
        try:
            _all(lambda: self._prepare(staging) if rank == 0 else None)
            said = _all(
                lambda: json.dumps(
                    [_write(staging / file, content) for file, content in body.items()]
                )
            )
            files = [file for rank_said in said for file in json.loads(rank_said)]
            _all(lambda: self._commit(staging, final, files, pointers) if rank == 0 else None)
        except SaveError as error:
            if rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            raise SaveError(
                f"checkpoint {final} could not be written: {error}; {self._what_is_left()}"
            ) from None
        self.newest = name
        return final

    @property
    def name(self) -> str:
        """Of the checkpoint that ``save`` would write now; a later one sorts behind an earlier one."""
        return f"step-{self.progress.step:08d}" + (
            "" if self.progress.epoch_steps else f"-epoch-{self.progress.epoch}"
        )

    def _prepare(self, staging: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".step-*"):  # by a process that was killed
            shutil.rmtree(left)
        staging.mkdir()

    def _commit(
        self, staging: Path, final: Path, files: list[dict[str, Any]], pointers: tuple[str, ...]
    ) -> None:
        for file in files:
            if not (staging / file["name"]).is_file():
                raise OSError(
                    f"{staging} has no {file['name']} here; run_dir must be a folder that all machines share"
                )
        entries = {
            file["name"]: {"bytes": file["bytes"], "sha256": file["sha256"]} for file in files
        }
        _write(
            staging / "manifest.json",
            json.dumps({"format": FORMAT, "files": entries}, indent=1).encode(),
        )
        _flush(staging)
        trash = self.folder / f".{final.name}.old"
        if final.exists():
            os.replace(final, trash)
        os.replace(staging, final)
        _flush(self.folder)
        for pointer in pointers:
            _write(self.folder / f".{pointer}.partial", final.name.encode())
            os.replace(self.folder / f".{pointer}.partial", self.folder / pointer)
        _flush(self.folder)
        kept = {self._pointed(pointer) for pointer in ("last", "best")} | set(
            self._names()[: self.keep]
        )
        for path in [trash, *(self.folder / name for name in self._names() if name not in kept)]:
            shutil.rmtree(path, ignore_errors=True)

    def _names(self) -> list[str]:
        """Of all checkpoints, the newest first."""
        return sorted((path.name for path in self.folder.glob("step-*")), reverse=True)

    def _pointed(self, pointer: str) -> str | None:
        try:
            return (self.folder / pointer).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def _what_is_left(self) -> str:
        last = self._pointed("last")
        if last is None:
            return "there is none before it; make room and start again with the same command"
        return f"{last} before it is untouched; make room, and the same command goes on from there"

    def find(self, pointer: str) -> tuple[Path | None, list[str]]:
        """The checkpoint that ``pointer`` names, or for "last" the newest whole one, and what was wrong with others."""
        answer: dict[str, Any] = {}
        if distributed.rank() == 0:
            name, complaints = self._find(pointer)
            answer = {"name": name, "complaints": complaints}
        answer = json.loads(control_plane.broadcast_text(json.dumps(answer)))
        return self.folder / answer["name"] if answer["name"] else None, answer["complaints"]

    def _find(self, pointer: str) -> tuple[str | None, list[str]]:
        complaints: list[str] = []
        named = self._pointed(pointer)
        names = [named] if named else []
        if pointer == "last":
            names = sorted({*names, *self._names()}, reverse=True)
        for name in names:
            try:
                verify(self.folder / name)
            except ConfigError as error:
                complaints.append(str(error))
            else:
                return name, complaints
        return None, complaints


def verify(folder: Path) -> None:
    """Check that every file of a checkpoint is there, whole and unchanged.

    Raises:
        ConfigError: naming the file.
    """
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        said = {
            str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"checkpoint {folder} has no readable manifest.json ({error})") from None
    for name, (size, digest) in said.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ConfigError(f"checkpoint {folder} lacks {name}")
        if path.stat().st_size != size or _sha256(path.read_bytes()) != digest:
            raise ConfigError(
                f"checkpoint file {path} is not what was written: size or SHA-256 differ"
            )
    extra = {path.name for path in folder.iterdir()} - said.keys() - {"manifest.json"}
    if extra or "state.json" not in said:
        raise ConfigError(
            f"checkpoint {folder} is not what was written: {', '.join(extra) or 'no state.json'}"
        )


def read_state(folder: Path) -> State:
    """What ``state.json`` of a checkpoint says.

    Raises:
        ConfigError: it is no checkpoint of this format.
    """
    path = folder / "state.json"
    try:
        state = TypeAdapter(State).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if (state.format, state.version) != (FORMAT, VERSION):
        raise ConfigError(
            f"{path} is {state.format} {state.version}, this code reads {FORMAT} {VERSION}"
        )
    return state


def _all(act: Callable[[], str | None]) -> list[str]:
    """Do this rank's part and hear the others' answers. When one of them failed, all raise alike."""
    try:
        answer, bad = act() or "", ""
    except OSError as error:
        answer, bad = "", f"rank {distributed.rank()} on {socket.gethostname()}: {error}"
    said = control_plane.gather_text(json.dumps([answer, bad[:300]]))
    heard = [json.loads(text) for text in said]
    failures = [text for _, text in heard if text]
    if failures:
        raise SaveError("; ".join(failures[:3]))
    return [text for text, _ in heard]


def _write(path: Path, content: bytes) -> dict[str, Any]:
    """Write, flush to the disk, read back; the file's entry for the manifest."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    digest = _sha256(content)
    if _sha256(path.read_bytes()) != digest:
        raise OSError(f"{path} does not read back as it was written")
    return {"name": path.name, "bytes": len(content), "sha256": digest}


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
