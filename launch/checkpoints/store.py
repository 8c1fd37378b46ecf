"""Checkpoints that are whole or not there, hold no code, and serve any number of ranks and any ZeRO
stage.

``run_dir/checkpoints/step-00000120/`` holds one safetensors file per rank (its pieces of parameters
and Adam moments, by parameter name and flat range, and its random states; rank 0 adds the buffers),
``state.json`` (progress, stream position, shapes) and ``manifest.json`` (size and SHA-256 of each
file).

How one comes to be: every rank writes its file into a folder of another name, flushes it to the
disk, reads it back and tells the others its size and hash, or why it could not. When all could,
rank 0 writes the manifest, flushes, and renames the folder; only then do ``last`` and ``best``
point to it. A process that dies anywhere in between leaves the checkpoints before it as they were.
``run_dir`` must be on a file system that all machines of the run share.

Stricter than ``core.files``: a checkpoint is many files of many machines that count only together,
and each is read back, because a disk that lies is found out months later otherwise.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from core import distributed
from core.command import NO_ROOM, Refused
from core.files import sha256_of_bytes, sha256_of_file, sync_folder
from core.json_files import read_json_object
from core.regular_files import read_regular_text
from launch.checkpoints import zero
from launch.checkpoints.progress import Progress
from launch.checkpoints.tensors import adam_step, rank_tensors
from launch.config import ConfigError
from launch.engine.deepspeed_engine import Engine, grad_scaler_state
from launch.monitor import control_plane
from launch.tasks.task import Task

FORMAT, VERSION = "concord-checkpoint", 2
Pointer = Literal["last", "best"]  # files that name a checkpoint
CHECKPOINT_NAME = re.compile(r"step-\d{1,18}(-epoch-\d{1,18})?")
POINTERS: tuple[Pointer, ...] = ("last", "best")


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are untouched. Raised on every rank
    alike."""

    exit_code = NO_ROOM


@dataclass(frozen=True)
class State:
    """``state.json``: what a run is besides its tensors."""

    format: str
    version: int
    ranks: PositiveInt
    progress: Progress
    task: dict[str, Any]  # ``Task.state_dict``
    adam_step: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    shapes: dict[str, list[NonNegativeInt]]  # parameter -> shape
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

    def save(self, engine: Engine, task: Task, *pointers: Pointer) -> Path:
        """Write one checkpoint and let ``pointers`` name it.

        Raises:
            SaveError: on every rank, when one of them could not write.
        """
        name = self.name
        final = self.folder / name
        staging = self.folder / f".{name}.partial"
        contents = self._contents(engine, task)
        try:
            _on_first_rank(lambda: self._make(staging))
            entries = _on_all_ranks(lambda: json.dumps(_write_all(staging, contents)))
            files = [entry for of_rank in entries for entry in json.loads(of_rank)]
            _on_first_rank(lambda: self._commit(staging, final, files, pointers))
        except SaveError as error:
            if distributed.rank() == 0:
                shutil.rmtree(staging, ignore_errors=True)
            raise SaveError(
                f"checkpoint {final} could not be written: {error}; {self._what_is_left()}"
            ) from None
        self.newest = name
        return final

    def _contents(self, engine: Engine, task: Task) -> dict[str, bytes]:
        """File name -> content, of this rank's files."""
        model, rank = engine.module.model, distributed.rank()
        tensors = safetensors.torch.save(rank_tensors(engine, model))
        contents = {f"rank-{rank:05d}.safetensors": tensors}
        if rank == 0:
            shapes = {name: zero.shape(value) for name, value in model.named_parameters()}
            state = State(
                format=FORMAT,
                version=VERSION,
                ranks=distributed.world_size(),
                progress=self.progress,
                task=task.state_dict(),
                adam_step=adam_step(engine, model),
                shapes=shapes,
                loss_scale=grad_scaler_state(engine),
            )
            contents["state.json"] = json.dumps(asdict(state)).encode()
        return contents

    @property
    def name(self) -> str:
        """Of the checkpoint that ``save`` would write now; a later one sorts behind an earlier
        one."""
        step, epoch = self.progress.step, self.progress.epoch
        within_epoch = self.progress.epoch_steps > 0
        return f"step-{step:08d}" if within_epoch else f"step-{step:08d}-epoch-{epoch}"

    def _make(self, staging: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*"):  # of a process that was killed
            shutil.rmtree(leftover)
        staging.mkdir()

    def _commit(
        self,
        staging: Path,
        final: Path,
        files: list[dict[str, Any]],
        pointers: tuple[Pointer, ...],
    ) -> None:
        """On rank 0: make the staged files the checkpoint ``final``, and let ``pointers`` name
        it."""
        entries = {}
        for file in files:
            if not (staging / file["name"]).is_file():
                raise OSError(
                    f"{staging} has no {file['name']} here; run_dir must be a folder that all "
                    "machines share"
                )
            entries[file["name"]] = {"bytes": file["bytes"], "sha256": file["sha256"]}
        manifest = json.dumps({"format": FORMAT, "files": entries}, indent=1)
        _write(staging / "manifest.json", manifest.encode())
        sync_folder(staging)
        replaced = self.folder / f".{final.name}.old"
        if final.exists():
            os.replace(final, replaced)
        os.replace(staging, final)
        sync_folder(self.folder)
        for pointer in pointers:
            partial = self.folder / f".{pointer}.partial"
            _write(partial, final.name.encode())
            os.replace(partial, self.folder / pointer)
        sync_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        self._remove_old()

    def _remove_old(self) -> None:
        """Keep the newest checkpoints and those that a pointer names."""
        kept = set(self._names()[: self.keep])
        for pointer in POINTERS:
            try:
                kept.add(self._pointed(pointer) or "")
            except ConfigError:  # whoever wants that checkpoint is told
                return
        for name in self._names():
            if name not in kept:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _names(self) -> list[str]:
        """Of all checkpoints, the newest first."""
        return sorted((path.name for path in self.folder.glob("step-*")), reverse=True)

    def _pointed(self, pointer: Pointer) -> str | None:
        """The checkpoint that ``pointer`` names; None when there is none.

        Raises:
            ConfigError: it names no checkpoint of this folder.
        """
        path = self.folder / pointer
        try:
            name = read_regular_text(path, limit=1 << 16).strip()
        except FileNotFoundError:
            return None
        except (OSError, Refused) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        if not CHECKPOINT_NAME.fullmatch(name):
            raise ConfigError(
                f"{path} names {name[:80]!r}, which is no checkpoint of this folder; "
                "write the name of one into it, such as step-00000120"
            )
        return name

    def _what_is_left(self) -> str:
        last = next(iter(self._names()), None)
        if last is None:
            return "there is none before it; make room and start again with the same command"
        return f"{last} before it is untouched; make room, and the same command goes on from there"

    def find(self, pointer: Pointer) -> tuple[Path | None, list[str]]:
        """The checkpoint that ``pointer`` names, or for "last" the newest whole one, and what was
        wrong with others."""
        found: tuple[str | None, list[str]] = (None, [])
        if distributed.rank() == 0:
            found = self._find(pointer)
        name, complaints = json.loads(control_plane.broadcast_text(json.dumps(found)))
        return self.folder / name if name else None, complaints

    def _find(self, pointer: Pointer) -> tuple[str | None, list[str]]:
        complaints: list[str] = []
        names: list[str] = []
        try:
            named = self._pointed(pointer)
            names = [named] if named else []
        except ConfigError as error:
            complaints.append(str(error))
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
    recorded = {}  # file name -> its size and SHA-256
    try:
        manifest = read_json_object(folder / "manifest.json")
        for name, entry in manifest["files"].items():
            recorded[str(name)] = (int(entry["bytes"]), str(entry["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"checkpoint {folder} has no readable manifest.json ({error})") from None
    for name, (size, digest) in recorded.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ConfigError(f"checkpoint {folder} lacks {name}")
        if path.stat().st_size != size or sha256_of_file(path) != digest:
            raise ConfigError(
                f"checkpoint file {path} is not what was written: size or SHA-256 differ"
            )
    extra = {path.name for path in folder.iterdir()} - recorded.keys() - {"manifest.json"}
    if extra or "state.json" not in recorded:
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
        state = TypeAdapter(State).validate_python(read_json_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path} is no state of a run: {key}={str(first['input'])[:80]}: {first['msg']}"
        ) from None
    except (OSError, Refused) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if (state.format, state.version) != (FORMAT, VERSION):
        raise ConfigError(
            f"{path} is {state.format} {state.version}, this code reads {FORMAT} {VERSION}"
        )
    return state


def _on_first_rank(act: Callable[[], None]) -> None:
    """Have rank 0 do this, and all hear whether it could."""
    _on_all_ranks(lambda: act() if distributed.rank() == 0 else None)


def _on_all_ranks(act: Callable[[], str | None]) -> list[str]:
    """Do this rank's part and hear the others' answers. When one of them failed, all raise
    alike."""
    answer = failure = ""
    try:
        answer = act() or ""
    except OSError as error:
        failure = f"rank {distributed.rank()} on {socket.gethostname()}: {error}"
    texts = control_plane.gather_text(json.dumps([answer, failure[:300]]))
    answers, failures = zip(*map(json.loads, texts), strict=True)
    if any(failures):
        raise SaveError("; ".join([text for text in failures if text][:3]))
    return list(answers)


def _write_all(folder: Path, contents: dict[str, bytes]) -> list[dict[str, Any]]:
    return [_write(folder / name, content) for name, content in contents.items()]


def _write(path: Path, content: bytes) -> dict[str, Any]:
    """Write, flush to the disk, read back; the file's entry for the manifest."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    digest = sha256_of_bytes(content)
    if sha256_of_file(path) != digest:
        raise OSError(f"{path} does not read back as it was written")
    return {"name": path.name, "bytes": len(content), "sha256": digest}
