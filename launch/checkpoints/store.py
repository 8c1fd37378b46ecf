"""Checkpoints that are whole or not there, hold no code, and serve any number of ranks and any ZeRO
stage.

``run_dir/checkpoints/step-00000120/`` holds two safetensors files per rank: ``rank-*`` with its
pieces of the parameters by name and flat range and its random states (rank 0 adds the buffers), and
``moments-*`` with Adam's moments of the same pieces. ``state.json`` holds progress, stream position
and shapes, ``manifest.json`` size and SHA-256 of each file. ``best-00000120/`` is the same without
moments, so nothing can go on from it; its files are those of the checkpoint that it was made with.

How one comes to be: every rank copies its part into host memory, and training goes on. A thread of
each rank writes it into a folder of another name, flushes it to the disk, reads it back and tells
the others its size and hash, or why it could not. When all could, rank 0 writes the manifest,
flushes, and renames the folder; only then do ``last`` and ``best`` point to it (``commit.py``). A
process that dies anywhere in between leaves the checkpoints before it as they were. ``run_dir``
must be on a file system that all machines of the run share.

Stricter than ``core.files``: a checkpoint is many files of many machines that count only together,
and each is read back, because a disk that lies is found out months later otherwise.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from core import distributed
from core.command import Refused
from core.encoders.backbones.adaptation import base_facts
from core.file_access.json_files import read_json_object
from core.file_access.regular_files import read_regular_text
from core.files import sha256_of_file
from launch.checkpoints import zero
from launch.checkpoints.commit import (
    FORMAT,
    VERSION,
    Background,
    Entry,
    Part,
    Pointer,
    SaveError,
    commit,
    commit_weights,
    make_staging,
    on_all_ranks,
    on_first_rank,
    point,
    write_file,
)
from launch.checkpoints.progress import Progress
from launch.checkpoints.snapshot import HostMemory
from launch.checkpoints.tensors import adam_step, snapshot_sizes, snapshots
from launch.config import ConfigError
from launch.engine.deepspeed_engine import Engine, grad_scaler_state
from launch.monitor import control_plane
from launch.tasks.task import Task

READ_VERSIONS = (2, VERSION)  # in version 2, moments stand in the files of the weights
POINTERS: tuple[Pointer, ...] = ("last", "best")
_STEP = r"step-\d{1,18}(-epoch-\d{1,18})?"
CHECKPOINT_NAMES = {
    "last": re.compile(_STEP),
    # in version 2 the best was a whole checkpoint
    "best": re.compile(_STEP + r"|best-\d{1,18}(-epoch-\d{1,18})?(-\d{1,6})?"),
}
Contents = dict[str, Callable[[], tuple[Part, ...]]]  # file name -> what it is to hold


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
    # module of a frozen encoder, whose weights are not here -> its source and SHA-256
    bases: dict[str, dict[str, str]] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run directory; everything here is collective.

    As a context manager it leaves no checkpoint half-way: it waits for the one under way.

    Args:
        progress: shared with the loop and saved with each checkpoint.
        keep: how many of the newest stay, besides the best.
    """

    def __init__(self, run_dir: Path, progress: Progress, keep: int = 2):
        self.folder = run_dir / "checkpoints"
        self.progress = progress
        self.keep = keep
        self.newest = ""  # the one begun last by this process
        self.memory = HostMemory()
        self._under_way: Background | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.memory.finish_reserving()
        if error is None:
            self.wait()
            return
        with suppress(Exception):  # the process ends with the error that came first
            self.wait()

    def reserve(self, engine: Engine) -> None:
        """Have the memory for the first copy made ready beside the first steps."""
        self.memory.reserve(snapshot_sizes(engine, engine.module.model))

    def save(self, engine: Engine, task: Task, *pointers: Pointer) -> Path:
        """Write one checkpoint and let ``pointers`` name it.

        Raises:
            SaveError: on every rank, when one of them could not write.
        """
        final = self.begin(engine, task, *pointers)
        self.wait()
        return final

    def begin(self, engine: Engine, task: Task, *pointers: Pointer) -> Path:
        """Copy what a checkpoint holds, and have it written beside the training; its folder to be.

        No more than one is under way: this waits for the one before.

        Raises:
            SaveError: on every rank, when the one before could not be written.
        """
        self.wait()
        name = self.name
        contents = self._contents(engine, task)
        self.newest = name
        self._under_way = Background(partial(self._write, name, contents, pointers))
        return self.folder / name

    def wait(self) -> None:
        """Until the checkpoint under way is whole, and named by its pointers.

        Raises:
            SaveError: on every rank, when one of them could not write.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.finish()

    @property
    def has_failed(self) -> bool:
        """Whether this rank knows that the one under way cannot be written; ``wait`` says why."""
        return self._under_way is not None and self._under_way.error is not None

    def _contents(self, engine: Engine, task: Task) -> Contents:
        """Of this rank's files, as everything is now."""
        model, rank = engine.module.model, distributed.rank()
        contents: Contents = {}
        for file, snapshot in snapshots(engine, model, self.memory).items():
            contents[file] = snapshot.parts
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
                bases=base_facts(model),
            )
            body = json.dumps(asdict(state)).encode()
            contents["state.json"] = lambda: (body,)
        return contents

    def _write(self, name: str, contents: Contents, pointers: tuple[Pointer, ...]) -> None:
        """In the background of every rank: from the copy to the checkpoint."""
        final = self.folder / name
        staging = self.folder / f".{name}.partial"
        try:
            on_first_rank(lambda: make_staging(self.folder, staging))
            answers = on_all_ranks(lambda: json.dumps(_write_all(staging, contents)))
            entries = [entry for answer in answers for entry in json.loads(answer)]
            on_first_rank(lambda: self._publish(staging, final, entries, pointers))
        except SaveError as error:
            if distributed.rank() == 0:
                shutil.rmtree(staging, ignore_errors=True)
            raise SaveError(
                f"checkpoint {final} could not be written: {error}; {self._what_is_left()}"
            ) from None

    @property
    def name(self) -> str:
        """Of the checkpoint that ``save`` would write now; a later one sorts behind an earlier
        one."""
        step, epoch = self.progress.step, self.progress.epoch
        within_epoch = self.progress.epoch_steps > 0
        return f"step-{step:08d}" if within_epoch else f"step-{step:08d}-epoch-{epoch}"

    def _publish(
        self, staging: Path, final: Path, entries: list[Entry], pointers: tuple[Pointer, ...]
    ) -> None:
        """On rank 0. The best comes first: a process that dies before the last is there trains the
        same epoch again, and one that died before the best is there would never come back to
        it."""
        if "best" in pointers:
            name = final.name.replace("step-", "best-")
            weights = [entry for entry in entries if not entry["name"].startswith("moments-")]
            best = commit_weights(staging, self.folder, name, weights)
            point(self.folder, "best", best.name)
        commit(staging, final, entries)
        if "last" in pointers:
            point(self.folder, "last", final.name)
        self._remove_old()

    def _remove_old(self) -> None:
        """Keep the newest checkpoints and those that a pointer names."""
        kept = set(self._names()[: self.keep])
        for pointer in POINTERS:
            try:
                kept.add(self._pointed(pointer) or "")
            except ConfigError:  # whoever wants that checkpoint is told
                return
        bests = [path.name for path in self.folder.glob("best-*")]
        for name in [*self._names(), *bests]:
            if name not in kept:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _names(self) -> list[str]:
        """Of all checkpoints that a run can go on from, the newest first."""
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
        if not CHECKPOINT_NAMES[pointer].fullmatch(name):
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
    if state.format != FORMAT or state.version not in READ_VERSIONS:
        raise ConfigError(
            f"{path} is {state.format} {state.version}, this code reads {FORMAT} "
            f"{' and '.join(map(str, READ_VERSIONS))}"
        )
    return state


def _write_all(folder: Path, contents: Contents) -> list[Entry]:
    """Write this rank's files, and let each go from memory as soon as it is written."""
    entries = []
    for name in list(contents):
        parts = contents.pop(name)
        entries.append(write_file(folder / name, parts()))
    return entries
