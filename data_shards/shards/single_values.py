"""One value that somebody else wrote: as a number, or shown in a message, whatever it turns out to
be."""

from __future__ import annotations

from reprlib import Repr
from typing import Any

import numpy as np

from data_shards.shards.manifest import DataError

# Lists in lists may hold more than any memory, of which only the first few are looked at.
_SHORT = Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: Any) -> str:
    """A value for a message: at most 80 characters of it, in one line."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}"
    try:
        text = _SHORT.repr(value[:80] if isinstance(value, bytes) else value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists too deep
        return f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_number(value: Any, where: str) -> float:
    """A finite or infinite float from a number or its digits; anything else is refused."""
    if isinstance(value, bool | np.bool_):
        raise DataError(f"{where}: {value} is no number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {shown(value)} is no number") from None
    except OverflowError:
        raise DataError(f"{where}: {shown(value)} is larger than any float") from None
