"""Whether the result of a command can be written where it is wanted, found out before it is
computed."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path

from core.command import NO_SPACE, Refused

PROBE = 4096  # bytes that are written to find out


def check_new_folder(folder: Path, room: int = 0) -> None:
    """Refuse a folder that is there already, or cannot be made.

    Args:
        room: bytes that will be written into it, as far as is known.

    Raises:
        Refused: it is there, or this place takes no files.
        OSError: there is no room.
    """
    if os.path.lexists(folder):
        raise Refused(f"{folder} is there already; remove it, or give another folder")
    _check_place(folder, folder.parent, room)


def check_folder(folder: Path, room: int = 0) -> None:
    """Refuse a folder, there or to be made, that takes no files; see ``check_new_folder``."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise Refused(f"{folder} is no folder; give the name of one, or a new name")
    _check_place(folder, folder, room)


def check_file(path: Path, room: int = 0, *, make_folder: bool = False) -> None:
    """Refuse a file that cannot be made or replaced.

    Args:
        room: bytes that it will have, as far as is known.
        make_folder: the command makes the folder of the file, if need be.
    """
    if path.is_dir():
        raise Refused(f"{path} is a folder; give the name of a file in it")
    if os.path.lexists(path) and not path.is_file():
        raise Refused(f"{path} is no plain file, and would be replaced by one; give another name")
    if not make_folder and not path.parent.is_dir():
        raise Refused(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    _check_place(path, path.parent, room)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < room:
        raise OSError(errno.EFBIG, f"{room} bytes are needed, {limit} allowed", str(path))


def _check_place(target: Path, folder: Path, room: int) -> None:
    """Write a little into ``folder``, or into the nearest above it that is there."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise Refused(f"{target} cannot be written: {folder} is no folder; give another place")
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".concord-") as probe:
            probe.write(b"\0" * PROBE)
            probe.flush()
        status = os.statvfs(folder)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OSError(error.errno, error.strerror, str(target)) from None
        reason = error.strerror or error
        raise Refused(f"{target} cannot be written: {reason}; give another place") from None
    free = status.f_bavail * status.f_frsize
    if free < room:
        raise OSError(errno.ENOSPC, f"{room} bytes are needed, {free} free", str(target))
