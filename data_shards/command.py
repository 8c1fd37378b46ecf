"""How every entry point of this package ends: by its own last line, or with one line that says what went wrong."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def run(main: Callable[[], None], when_stopped: str = "run the same command again") -> int:
    """The exit code of ``main``: 0, 2 after an error, 130 after Ctrl-C. Errors are one line on stderr.

    Args:
        when_stopped: what to do after Ctrl-C or on a full disk, as a clause.
    """
    try:
        main()
        return 0
    except KeyboardInterrupt:
        print(f"\nstopped; {when_stopped}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno in FULL:
            message = f"the disk is full ({error.strerror}); make room, then {when_stopped}"
        else:
            message = f"{error.filename or 'file'}: {error.strerror or error}"
    except ValueError as error:  # DataError too
        message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    return 2
