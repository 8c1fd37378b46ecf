"""A compiled loop, and the threads that share the work of one call.

The threads are Python's own, which the compiled code lets run side by side. numba's
``parallel=True`` is not used: its pool is as wide as the machine in every process, changes torch's
number of threads when it starts, and spins while it waits, as does any process beside it; and its
cache cannot tell a serial from a parallel form of one function.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

import numba
import torch
from numba import njit

from core.environment.caches import choose_caches

FASTMATH = {"reassoc", "nsz", "contract", "arcp"}  # but not: numbers are finite
FEWEST_ELEMENTS = 2**16  # of a thread's part: with fewer, handing it over takes as long as the work

COLUMN_BLOCK = 256  # columns that one thread adds up at a time
ROW_BLOCK = 16  # rows that share an order of labels and scratch

Arguments = dict[str, Any]
Units = Literal[
    "rows", "row blocks", "column blocks", "labels", "mask rows", "out rows", "sequences", "samples"
]


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


class Loop:
    """A loop over independent units of work, compiled on first use; results do not depend on the
    threads.

    The function's first two arguments say from which unit it is to go up to which.
    """

    def __init__(self, function: Callable[..., Any], units: Units):
        self.compiled = compiled(function, error_model="numpy", fastmath=FASTMATH)
        self.units = units

    def __call__(
        self, **arguments: Any
    ) -> None:  # by name only: arrays of indices are easily swapped
        units, elements = size_of(self.units, arguments)
        threads = min(num_threads(), units, elements // FEWEST_ELEMENTS)
        if threads <= 1:
            self.compiled(0, units, **arguments)
            return
        ends = [units * (thread + 1) // threads for thread in range(threads)]
        helpers = pool(threads - 1)
        others = []
        for begin, end in itertools.pairwise(ends):
            others.append(helpers.submit(self.compiled, begin, end, **arguments))
        try:
            self.compiled(0, ends[0], **arguments)
        finally:
            for other in others:
                other.result()


def loop(units: Units) -> Callable[[Callable[..., Any]], Loop]:
    """Decorator of a function that ``Loop`` is to run."""
    return lambda function: Loop(function, units)


def size_of(units: Units, arguments: Arguments) -> tuple[int, int]:
    """How many units a call has, and how many elements they touch together."""
    if units == "labels":
        return len(arguments["values"]), arguments["sums"].size
    if units == "mask rows":
        return len(arguments["mask"]), arguments["mask"].size
    if units == "out rows":
        return len(arguments["out"]), arguments["out"].size
    if units == "sequences":  # each direction of each of them
        ways = arguments["states"].shape[1]
        return ways * (len(arguments["starts"]) - 1), arguments["kept"].size
    if units == "samples":
        return len(arguments["query"]), arguments["norms"].size * arguments["key"].shape[3]
    rows, columns = arguments["tile"].shape
    count = {
        "rows": rows,
        "row blocks": math.ceil(rows / ROW_BLOCK),
        "column blocks": math.ceil(columns / COLUMN_BLOCK),
    }
    return count[units], rows * columns


def num_threads() -> int:
    """As many as torch uses, unless NUMBA_NUM_THREADS wants fewer."""
    wanted: int = numba.config.NUMBA_NUM_THREADS
    return min(torch.get_num_threads(), wanted)


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """The threads beside the calling one; they sleep until there is work."""
    return ThreadPoolExecutor(threads, "loop")


# a forked process has none of them
os.register_at_fork(after_in_child=pool.cache_clear)
