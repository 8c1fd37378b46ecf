"""How every command ends: with an exit code, and one line on standard error that says what went wrong.

====  =======================================================================================
code  meaning
====  =======================================================================================
0     done
1     ``verify`` found damage
2     refused: the words, the settings, the data or a file cannot be used; one line says why
3     training cannot go on (a loss is not finite, ranks differ), or no trial of a search ended
4     no room for a checkpoint; those before it are untouched
75    stopped on request with everything saved; the same command goes on
76    another rank is gone; the same command goes on from the last checkpoint
130   stopped by Ctrl-C
====  =======================================================================================
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from core.environment.caches import choose_caches
from core.environment.credentials import redact

DONE = 0
DAMAGED = 1
REFUSED = 2
CANNOT_GO_ON = 3
NO_ROOM = 4
STOPPED = 75  # EX_TEMPFAIL of sysexits.h
RANK_LOST = 76
INTERRUPTED = 130

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Refused(ValueError):
    """Something that a command was asked for cannot be; the message says what to write or do instead."""


def report_error(message: str) -> None:
    """The one line about an error."""
    print(f"error: {redact(message)}", file=sys.stderr)


def run(
    work: Callable[[], int | None],
    *,
    when_stopped: str = "run the same command again",
    refused: tuple[type[Exception], ...] = (ValueError, OSError),
    report: Callable[[str], None] = report_error,
) -> int:
    """The exit code of ``work``: what it returns, or that of its error. Other errors pass through.

    Args:
        work: returns an exit code, or None when it is done.
        when_stopped: what to do after Ctrl-C or on a full disk, as a clause.
        refused: errors that are answered with one line. An error with an ``exit_code`` of its own is as well.
        report: what happens with that line; ranks tell each other why they leave.
    """
    choose_caches()
    try:
        code = work()
        return DONE if code is None else code
    except KeyboardInterrupt:
        print(f"\nstopped; {when_stopped}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = getattr(error, "exit_code", REFUSED if isinstance(error, refused) else None)
        if code is None:
            raise
        report(describe(error, when_stopped))
        return int(code)


def describe(error: Exception, when_stopped: str) -> str:
    """An error in one line, with the file that it is about and what to do."""
    if isinstance(error, OSError):
        if error.errno in NO_SPACE:
            return f"the disk is full ({error.strerror}); make room, then {when_stopped}"
        if error.filename is not None:
            return f"{error.filename}: {error.strerror or error}"
    return redact(" ".join(str(error).split()))
