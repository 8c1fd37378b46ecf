"""Folders for what libraries compile and remember, where the usual ones cannot be written.

In a container the installation is often read-only, and the user has no home. numba then refuses to
be imported, PyTorch fails on the lock of an operator that is compiled already, matplotlib and
Triton on folders of their own. ``choose_caches`` finds one folder for all of them, before they
look.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

# variable -> where its library goes without it
HOMES = {
    "XDG_CACHE_HOME": "~/.cache",
    "NUMBA_CACHE_DIR": "~/.cache/numba",
    "TORCH_EXTENSIONS_DIR": "~/.cache/torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "~/.cache/torchinductor",
    "TRITON_CACHE_DIR": "~/.triton/cache",
    "MPLCONFIGDIR": "~/.config/matplotlib",
    "HF_HOME": "~/.cache/huggingface",
}
LAST_RESORT = Path("/dev/shm")  # in memory; containers have it

_done: set[int] = set()  # process ids: a forked process inherits what was chosen


def choose_caches() -> None:
    """Lead every library to a folder that it can write to; those that have one are left alone.

    Once per process, and said in one line on standard error when something had to be chosen. Where
    no folder at all can be written, what is compiled lasts as long as the process.
    """
    if _done:
        return
    _done.add(os.getpid())
    blocked = [variable for variable in HOMES if not is_writable(_folder_of(variable))]
    if not blocked:
        return
    chosen = private_folder()
    if chosen is None:
        _say("no folder can be written for caches (set TMPDIR): compiled loops are not kept")
        return
    operators = _folder_of("TORCH_EXTENSIONS_DIR")
    for variable in blocked:
        name = Path(HOMES[variable]).name
        os.environ[variable] = str(chosen / name if name != ".cache" else chosen)
    if "TORCH_EXTENSIONS_DIR" in blocked and operators.is_dir():
        os.environ["TORCH_EXTENSIONS_DIR"] = str(_writable_copy(operators, chosen))
    if "numba" in sys.modules:  # it has read its variable already
        sys.modules["numba"].config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR", "")
    _say(f"no writable home for caches ({', '.join(blocked)}): they are in {chosen}")


def user_cache() -> Path:
    """The user's cache folder."""
    return _folder_of("XDG_CACHE_HOME")


def is_writable(folder: Path) -> bool:
    """Whether a folder can be written to, or made."""
    for path in (folder, *folder.parents):
        if path.exists():
            return path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    return False


def private_folder() -> Path | None:
    """A folder for temporary things, the same for all processes of a user, which nobody else can
    write to; None where there is none.

    Others may write to the folder around it: what is compiled and loaded must not be theirs.
    """
    try:
        around = Path(tempfile.gettempdir())
    except FileNotFoundError:
        around = LAST_RESORT
    if not is_writable(around):
        return None
    folder = around / f"concord-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    status = folder.lstat()
    is_private = stat.S_ISDIR(status.st_mode) and status.st_mode & 0o022 == 0
    if is_private and status.st_uid == os.getuid():
        return folder
    own = Path(tempfile.mkdtemp(prefix="concord-", dir=around))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _folder_of(variable: str) -> Path:
    """Where a library goes, by its variable or its habit. ``~`` stays where nobody's home is
    known."""
    given = os.environ.get(variable)
    if given:
        return Path(given)
    usual = HOMES[variable]
    around = os.environ.get("XDG_CACHE_HOME")
    if around and usual.startswith("~/.cache/"):
        return Path(around) / usual.removeprefix("~/.cache/")
    path = Path(os.path.expanduser(usual))
    return path if path.is_absolute() else Path("/nonexistent")


def _writable_copy(operators: Path, around: Path) -> Path:
    """Compiled operators, copied once for all processes: PyTorch writes a lock beside what it
    loads."""
    files = sorted(path for path in operators.rglob("*") if path.is_file())
    state = [f"{path} {path.stat().st_mtime_ns}" for path in files]
    target = around / f"torch_extensions-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}-{os.getpid()}")
    # copytree keeps the files' times: ninja compiles again when they differ from its log
    shutil.copytree(operators, partial, ignore=shutil.ignore_patterns("lock", ".ninja_lock"))
    for path in (partial, *partial.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    try:
        partial.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return target


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)
