"""The one way in for files that somebody else made: what is no plain file is refused before it is
opened.

Opening a named pipe waits for a writer that never comes, reading a terminal or ``/dev/zero`` never
ends, and opening some devices does something. A symbolic link counts as what it points to.
Libraries that open files by their path are kept from all this by ``check_regular_file``, called
just before.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from core.command import Refused

SMALL = 64 << 20  # bytes; no manifest, index, configuration or other file of facts is larger

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular_file(path: Path | str) -> os.stat_result:
    """The status of a plain file; Refused for any other kind. OSError where there is none."""
    try:
        status = os.stat(path)
    except ValueError:  # a NUL in the name
        raise Refused(f"{str(path)!r} cannot be the name of a file") from None
    _check_kind(status, path)
    return status


def open_regular_file(path: Path | str) -> IO[bytes]:
    """A plain file, open for reading its bytes; Refused for any other kind before it is opened.

    OSError, with the path as its ``filename``, where there is none or it cannot be opened.
    """
    check_regular_file(path)
    return open(path, "rb", opener=_open_without_waiting)


def read_regular_file(path: Path | str, limit: int = SMALL) -> bytes:
    """All bytes of a plain file of at most ``limit`` bytes; Refused for a larger one."""
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(content) > limit:
        raise Refused(f"{path} has {max(size, len(content))} bytes; at most {limit} are read here")
    return content


def read_regular_text(path: Path | str, limit: int = SMALL) -> str:
    """The text of a plain file in UTF-8, with or without a byte order mark; Refused for others."""
    try:
        return read_regular_file(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(
            f"{path} is no text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "save it as UTF-8"
        ) from None


def check_regular_files_in(folder: Path | str) -> None:
    """Refused unless all that lies in ``folder`` are plain files and folders: for libraries that
    open whichever they find, such as the tokenizers of transformers."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir() and entry.name[0] != ".":
                check_regular_file(entry.path)


def _open_without_waiting(path: str, flags: int) -> int:
    """An opener: what has become something else since it was checked is not waited for either."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        _check_kind(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(status: os.stat_result, path: Path | str) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no plain file")
    raise Refused(
        f"{path} is {kind}, and only plain files are read; "
        "give the path of a file, or write the contents into one first"
    )
