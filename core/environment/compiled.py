"""numba's compiler, with what it compiled kept on disk where there is a folder for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numba import njit

from core.environment.caches import choose_caches


def compiled(
    function: Callable[..., Any], arguments: Sequence[Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """``function`` without the interpreter's lock.

    Args:
        arguments: their types, to compile now; without them it is compiled when first called.
        options: numba's.
    """
    choose_caches()
    signature = () if arguments is None else (tuple(arguments),)
    try:
        return njit(*signature, nogil=True, cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to
        return njit(*signature, nogil=True, **options)(function)
