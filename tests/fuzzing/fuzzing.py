"""Fuzzing a door, a place where the files or words of others come in: one case, and what must hold
of its end.

A door must open, or refuse in one line that names the file (or the word). Anything else is a fault:
an error of another kind, a refusal that names nothing, something executed, written or read outside
the case's own folder, more than a gigabyte, more than ten seconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any, Protocol

from core import command

MEMORY = 1 << 30  # bytes that a case may take
CPU_SECONDS = 10.0
WALL_SECONDS = 60.0  # for one that waits, on a pipe say; a busy machine may be slow
LONGEST_MESSAGE = 1500
OUTSIDE_FILE = "../outside/touched"  # of the folder that cases run in
OUT_OF_MEMORY = (
    "out of memory",
    "unable to allocate",
    "allocate memory",
    "fit into memory",
    "bad_alloc",
)
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "socket.connect",
    "socket.getaddrinfo", "os.symlink", "os.link", "webbrowser.open", "ctypes.dlopen",
)  # fmt: skip


class Special(Enum):
    """What may stand in a file's place."""

    FIFO = "a pipe that nobody writes to"
    DEVICE = "a link to a device without an end"
    LOOP = "a link to itself"
    FOLDER = "a folder"


Files = dict[str, "bytes | Special"]


@dataclass
class Case:
    """What stands before a door."""

    files: Files = field(default_factory=dict)  # path in the case's folder -> content
    words: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # a refusal must say one of these


class Door(Protocol):
    """One place where input comes in."""

    def valid(self) -> list[Case]:
        """Inputs that are let in."""

    def spoilt(self, rng: Random) -> Case:
        """One of them, changed."""

    def enter(self, folder: Path, case: Case) -> None:
        """Go through the door as a command does. Raises what the door raises."""


class CommandFailed(Exception):
    """A command ended with an exit code that is no refusal."""


class TooSlow(BaseException):
    """The case took too long; a BaseException, so that no door takes it for an error of the
    input."""


def put(case: Case, folder: Path) -> None:
    """Write the files of a case."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is Special.FIFO:
            os.mkfifo(path)
        elif content is Special.DEVICE:
            path.symlink_to("/dev/zero")
        elif content is Special.LOOP:
            path.symlink_to(path.name)
        else:
            path.mkdir()


def take(folder: Path) -> Files:
    """The files of a folder, as a case has them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names_of(files: Files) -> set[str]:
    """The names of the files, without folders."""
    return {Path(name).name for name in files}


def pass_command(main: Callable[[list[str]], int], words: list[str]) -> str:
    """Run a command in this process; what it printed. Raises the error that it ended with."""
    caught: list[Exception] = []
    output, errors = io.StringIO(), io.StringIO()
    describes = {
        name: getattr(command, name)
        for name in ("describe", "describe_fault")
        if hasattr(command, name)
    }
    for name, describe in describes.items():
        setattr(command, name, _recording(describe, caught))
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = main(words)
    except SystemExit as left:  # the parser's own refusal
        if left.code in (0, None):
            return output.getvalue()
        raise command.Refused(errors.getvalue().strip().rpartition("\n")[2]) from None
    finally:
        for name, describe in describes.items():
            setattr(command, name, describe)
    if code == command.DONE:
        return output.getvalue()
    if caught:
        raise caught[-1]
    said = errors.getvalue().strip()
    if code in (command.REFUSED, command.DAMAGED):
        raise command.Refused(said.replace("error: ", "", 1))
    raise CommandFailed(f"exit code {code}: {said[-500:]}")


def _recording(describe: Callable[..., str], caught: list[Exception]) -> Callable[..., str]:
    """``describe`` that keeps the error as well."""

    def record(error: Exception, *rest: Any) -> str:
        caught.append(error)
        return (
            describe(error, *rest) if isinstance(error, command.Refused | OSError) else str(error)
        )

    return record


class Watch:
    """Notes what a case does besides reading its own files. One per process: hooks cannot be taken
    off."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        self.seen = []
        self.folder = str(folder)
        try:
            yield
        finally:
            self.folder = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event}{arguments!r:.200}")
        elif event == "open":
            self._opened(*arguments)

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int) or path is None or self.folder is None:
            return
        absolute = os.path.abspath(os.fsdecode(path))
        is_inside = absolute == self.folder or absolute.startswith(self.folder + os.sep)
        # the user's cache, which the worker has set: what was checked is noted there
        cache = os.environ.get("XDG_CACHE_HOME", "/dev/null") + os.sep
        if is_inside or absolute == "/dev/null" or absolute.startswith(cache):
            return
        outside = os.path.join(os.path.dirname(self.folder), "outside")
        if flags & (os.O_WRONLY | os.O_RDWR) or absolute.startswith(outside):
            self.seen.append(f"opened {absolute} ({mode}, {flags:#x})")


@dataclass
class End:
    """How a case ended."""

    refused: bool = False
    fault: str = ""  # what is wrong with that; empty when nothing is
    detail: str = ""  # the traceback, or what was said


def run_case(door: Door, seed: int, scratch: Path, watch: Watch) -> End:
    """Spoil an input by ``seed`` and take it through the door."""
    rng = Random(seed)
    case = door.spoilt(rng)
    folder = scratch / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    put(case, folder)
    error: BaseException | None = None
    try:
        with warnings.catch_warnings(), _unheard(), watch.over(folder), _bounded():
            warnings.simplefilter("ignore")
            door.enter(folder, case)
    except (Exception, TooSlow) as raised:
        error = raised
    end = _judge(case, error)
    if watch.seen:
        end.fault = f"it did what no input may do: {watch.seen[0]}"
    return end


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What is printed goes nowhere, and what is asked is answered with yes."""
    stdin, sys.stdin = sys.stdin, io.StringIO("y\n" * 100)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.stdin = stdin


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Limits of memory and time for what is run inside."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)

    def stop(number: int, frame: Any) -> None:
        raise TooSlow(signal.Signals(number).name)

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _judge(case: Case, error: BaseException | None) -> End:
    if error is None:
        return End()
    detail = "".join(traceback.format_exception(error))[-4000:].encode("utf-8", "replace").decode()
    if isinstance(error, TooSlow):
        return End(False, f"it took more than {CPU_SECONDS:g} s ({error})", detail)
    assert isinstance(error, Exception)
    if _ran_out_of_memory(error):
        return End(False, "it asked for more than a gigabyte", detail)
    if not isinstance(error, command.Refused | OSError):
        return End(False, f"{type(error).__name__}: {error!s:.200}", detail)
    message = command.describe(error, "try again")
    if not any(name and name in message for name in case.names):
        return End(
            True, f"the refusal names none of {sorted(case.names)[:8]}: {message:.300}", detail
        )
    if len(message) > LONGEST_MESSAGE:
        return End(True, f"a message of {len(message)} characters: {message:.200}", detail)
    return End(True)


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
