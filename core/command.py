"""How every command ends: with an exit code, and one line on standard error that says what went
wrong.

====  =======================================================================================
code  meaning
====  =======================================================================================
0     done
1     ``verify`` found damage
2     refused: the words, the settings, the data or a file cannot be used; one line says why
3     training cannot go on (a loss is not finite, ranks differ), or no trial of a search ended
4     no room on the disk for a checkpoint or a result; what was there before is untouched
70    a fault of this project: one line names the file that holds the traceback
75    stopped on request with everything saved, or another process is at it; later the same
      command goes on
76    another rank is gone; the same command goes on from the last checkpoint
130   stopped by Ctrl-C
====  =======================================================================================
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from core.environment.caches import choose_caches
from core.environment.credentials import redact

DONE = 0
DAMAGED = 1
REFUSED = 2
CANNOT_GO_ON = 3
NO_ROOM = 4
FAULT = 70  # EX_SOFTWARE of sysexits.h
STOPPED = 75  # EX_TEMPFAIL of sysexits.h
RANK_LOST = 76
INTERRUPTED = 130

_LONGEST_MESSAGE = 1200  # characters
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Refused(ValueError):
    """Something that a command was asked for cannot be; the message says what to write or do
    instead.

    Args:
        table: lines to show below the message, such as a comparison.
    """

    def __init__(self, message: str = "", table: Sequence[str] = ()):
        super().__init__(_shortened(message))
        self.table = tuple(table)


def _shortened(message: str) -> str:
    """A message with its middle left out where it is too long to be read: values may be."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    half = _LONGEST_MESSAGE // 2 - 10
    return f"{message[:half]} [...] {message[-half:]}"


def report_error(message: str) -> None:
    """The one line about an error."""
    printable = redact(message).encode("utf-8", "backslashreplace").decode("utf-8")
    print(f"error: {printable}", file=sys.stderr)


def run(
    work: Callable[[], int | None],
    *,
    when_stopped: str = "run the same command again",
    refused: tuple[type[Exception], ...] = (ValueError, OSError),
    report: Callable[[str], None] = report_error,
    passed_on: tuple[type[Exception], ...] = (),
) -> int:
    """The exit code of ``work``: what it returns, or that of its error.

    Args:
        work: returns an exit code, or None when it is done.
        when_stopped: what to do after Ctrl-C or on a full disk, as a clause.
        refused: errors that are answered with one line. An error with an ``exit_code`` of its own
            is as well.
        report: what happens with that line; ranks tell each other why they leave.
        passed_on: faults that the caller answers itself. Any other ends with ``FAULT``.
    """
    choose_caches()
    try:
        code = work()
        return DONE if code is None else code
    except KeyboardInterrupt:
        print(f"\nstopped; {when_stopped}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = _exit_code(error, refused)
        if code is not None:
            report(describe(error, when_stopped))
            return int(code)
        if isinstance(error, passed_on):
            raise
        report(describe_fault(error))
        return FAULT


def _exit_code(error: Exception, refused: tuple[type[Exception], ...]) -> int | None:
    """The code that an error ends a command with; None for a fault."""
    own: int | None = getattr(error, "exit_code", None)
    if own is not None or not isinstance(error, refused):
        return own
    return NO_ROOM if is_no_room(error) else REFUSED


def is_no_room(error: BaseException) -> bool:
    """Whether this is what a full disk, a quota or a limit on the size of files ends with."""
    return isinstance(error, OSError) and error.errno in NO_SPACE


def describe(error: Exception, when_stopped: str) -> str:
    """An error in one line, with the file that it is about and what to do; a table may follow."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        if error.errno == errno.EFBIG:
            return (
                f"{where}a file may not become as large as this one has to ({error.strerror}); "
                f"raise the limit (ulimit -f), then {when_stopped}"
            )
        if error.errno in NO_SPACE:
            return f"{where}the disk is full ({error.strerror}); make room, then {when_stopped}"
        if error.filename is not None:
            return f"{error.filename}: {error.strerror or error}"
    line = redact(" ".join(str(error).split()))
    return "\n".join([line, *getattr(error, "table", ())])


def describe_fault(error: Exception) -> str:
    """An error that nobody foresaw, in one line; its traceback goes into a file that the line
    names."""
    said = redact(" ".join(f"{type(error).__name__}: {error}".split())[:300])
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"unforeseen {said}{place}; this is a fault of concord, please report it with {_save(error)}"


def _save(error: Exception) -> str:
    """Where the traceback is now; ``TMPDIR`` says in which folder."""
    text = f"Python {platform.python_version()} on {platform.platform()}\n\n"
    text += redact("".join(traceback.format_exception(error)))
    try:
        descriptor, path = tempfile.mkstemp(prefix="concord-fault-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as failure:
        return f"this line (its traceback could not be saved: {failure.strerror or failure})"
    return path
