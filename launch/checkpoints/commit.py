"""How a checkpoint comes to be: written aside by all ranks, checked, and then renamed by rank 0.

Runs in the background thread of every rank (``Background``), whose messages to the other ranks
travel over a group of their own. A process that dies anywhere in between leaves the checkpoints
before it as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from core import distributed
from core.command import NO_ROOM
from core.files import sync_folder
from launch.monitor import control_plane

FORMAT, VERSION = "concord-checkpoint", 3
Pointer = Literal["last", "best"]  # files that name a checkpoint
Part = memoryview | bytes
Entry = dict[str, Any]  # of one file: its name, its bytes, its SHA-256
_PIECE = 1 << 20  # bytes that are written, and read back, at a time


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are untouched. Raised on every rank
    alike."""

    exit_code = NO_ROOM


class Background(threading.Thread):
    """Work beside the training; ``finish`` waits for it and raises what it raised.

    One follows the other, in the order in which they were made, which is that of every rank: all of
    them talk to the other ranks over the same group.
    """

    _latest: ClassVar[Background | None] = None

    def __init__(self, work: Callable[[], None]):
        super().__init__(name="checkpoint", daemon=True)
        self._work = work
        self._before, Background._latest = Background._latest, self
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        if self._before is not None:
            self._before.join()
            self._before = None
        try:
            self._work()
        except BaseException as error:  # raised where it is waited for
            self.error = error

    def finish(self) -> None:
        self.join()
        if self.error is not None:
            raise self.error


def on_first_rank(act: Callable[[], None]) -> None:
    """Have rank 0 do this, and all hear whether it could."""
    on_all_ranks(lambda: act() if distributed.rank() == 0 else None)


def on_all_ranks(act: Callable[[], str | None]) -> list[str]:
    """Do this rank's part and hear the others' answers. When one of them failed, all raise
    alike."""
    answer = failure = ""
    try:
        answer = act() or ""
    except OSError as error:
        failure = f"rank {distributed.rank()} on {socket.gethostname()}: {error}"
    texts = control_plane.gather_text(json.dumps([answer, failure[:300]]), background=True)
    answers, failures = zip(*map(json.loads, texts), strict=True)
    if any(failures):
        raise SaveError("; ".join([text for text in failures if text][:3]))
    return list(answers)


def write_file(path: Path, parts: Sequence[Part]) -> Entry:
    """Write, flush to the disk, read back; the file's entry for the manifest.

    What is read back is compared with what was to be written, and hashed: a disk that lies is found
    out months later otherwise.
    """
    with path.open("wb") as file:
        for part in parts:
            for begin in range(0, len(part), _PIECE):
                file.write(part[begin : begin + _PIECE])
        file.flush()
        os.fsync(file.fileno())
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        for part in parts:
            for begin in range(0, len(part), _PIECE):
                wanted = part[begin : begin + _PIECE]
                found = file.read(len(wanted))
                if not _same(found, wanted):
                    raise OSError(f"{path} does not read back as it was written")
                digest.update(found)
                size += len(found)
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _same(found: Part, wanted: Part) -> bool:
    # by NumPy, which lets the training go on meanwhile
    return np.array_equal(np.frombuffer(found, np.uint8), np.frombuffer(wanted, np.uint8))


def make_staging(folder: Path, staging: Path) -> None:
    """On rank 0: an empty folder to write into, and none of a process that was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob(".step-*"), *folder.glob(".best-*")]:
        shutil.rmtree(leftover)
    staging.mkdir()


def commit(staging: Path, final: Path, entries: Sequence[Entry]) -> None:
    """On rank 0: make the staged files the checkpoint ``final``, all at once."""
    listed = {}
    for entry in entries:
        if not (staging / entry["name"]).is_file():
            raise OSError(
                f"{staging} has no {entry['name']} here; run_dir must be a folder that all "
                "machines share"
            )
        listed[entry["name"]] = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
    manifest = json.dumps({"format": FORMAT, "files": listed}, indent=1)
    write_file(staging / "manifest.json", [manifest.encode()])
    sync_folder(staging)
    replaced = final.with_name(f".{final.name}.old")
    if final.exists():
        os.replace(final, replaced)
    os.replace(staging, final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def commit_weights(staging: Path, folder: Path, name: str, entries: Sequence[Entry]) -> Path:
    """On rank 0: a checkpoint of the staged files that hold no moments, under a name that is
    free."""
    final = folder / name
    number = 1
    while final.exists():  # the epoch was trained again: what ``best`` names now must stay whole
        number += 1
        final = folder / f"{name}-{number}"
    aside = folder / f".{final.name}.partial"
    aside.mkdir()
    for entry in entries:
        _link(staging / entry["name"], aside / entry["name"])
    commit(aside, final, entries)
    return final


def _link(origin: Path, target: Path) -> None:
    """The same file under two names, or its copy where the file system has one name for each."""
    try:
        os.link(origin, target)
    except OSError:
        with origin.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _PIECE)
            copy.flush()
            os.fsync(copy.fileno())


def point(folder: Path, pointer: Pointer, name: str) -> None:
    """On rank 0: let ``pointer`` name a checkpoint that is there."""
    partial = folder / f".{pointer}.partial"
    write_file(partial, [name.encode()])
    os.replace(partial, folder / pointer)
    sync_folder(folder)
