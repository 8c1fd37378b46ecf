"""What the GPU kernels of contrast do, counted: operations of tensor cores, exponentials, and bytes
that go to and from memory if no cache helps, against three n x n x D products that keep nothing.

    python benchmarks/contrast_counts.py [n=65536] [width=128] [labels=31]

No GPU is needed, and nothing is timed. The counts follow from the launches' tiles: a program reads
its rows once and all columns of its range. "exact" multiplies float16 operands three times. The
products of the floor read and write the same tiles in float32 and count their multiplications once.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import read_words, refuse_others, run_command  # noqa: E402
from core.kernels.in_batch import softmax_launch  # noqa: E402
from core.kernels.supcr import dispatch, scan_launch, triton_launch  # noqa: E402

DEFAULTS = {"n": "65536", "width": "128", "labels": "31"}
HALF, SINGLE, DOUBLE = 2, 4, 8  # bytes
EXACT = 3  # products of float16 for one of float32


@dataclass(frozen=True)
class Count:
    """Of one kernel, over all its launches."""

    kernel: str
    launches: int
    flops: float
    exponentials: float
    bytes: float


def product(n: int, m: int, width: int) -> float:
    """Operations of (n, width) times (width, m)."""
    return 2.0 * n * m * width


def operand_bytes(programs: float, columns: float, width: int) -> float:
    """What programs read of columns' operands, high and low."""
    return programs * columns * width * 2 * HALF


def floor(n: int, width: int) -> Count:
    """Similarities, and their product with the rows both ways, in tiles of 128 by 128."""
    tiles = math.ceil(n / 128)
    moved = 3 * (tiles * n * width * SINGLE + n * width * SINGLE)
    return Count("three products", 3, 3 * product(n, n, width), 0, moved)


def by_labels(n: int, width: int, labels: int) -> list[Count]:
    """The kernels that keep a sum for each label."""
    blocks = math.ceil(n / 64)
    passes = math.ceil(n / triton_launch.RANGE_COLUMNS)
    sums = labels * n * SINGLE
    one = operand_bytes(blocks, n, width)
    return [
        Count("sums", 1, EXACT * product(n, n, width), n * n, one + sums),
        Count("accumulate", 1, 0, 0, 4 * sums),
        Count(
            "gradient",
            passes,
            2 * EXACT * product(n, n, width),
            n * n,
            2 * one + blocks * n * SINGLE + 2 * passes * n * width * SINGLE,
        ),
    ]


def whole(n: int, width: int) -> list[Count]:
    """The three launches for few rows."""
    tiles, gradients = scan_launch.WHOLE_SCAN, scan_launch.WHOLE_GRADIENT
    matrix = n * n * SINGLE
    written = n * width * (SINGLE + 2 * HALF)
    return [
        Count("prepare", 1, 0, 0, math.ceil(n / 16) * n * DOUBLE + written),
        Count(
            "scan",
            1,
            EXACT * product(n, n, width),
            2 * n * n,
            operand_bytes(math.ceil(n / tiles.rows), n, width) + 10 * matrix,
        ),
        Count(
            "gradient",
            1,
            EXACT * product(n, n, width),
            0,
            operand_bytes(math.ceil(n / gradients.rows), n, width) + 2 * matrix,
        ),
    ]


def strips(n: int, width: int) -> list[Count]:
    """The kernels that serve any labels, a strip of rows at a time."""
    height = scan_launch.strip_height(n)
    count = math.ceil(n / height)
    exponents, gradients = scan_launch.EXPONENTS, scan_launch.CANDIDATE_GRADIENT
    tiles = math.ceil(n / exponents.rows) * math.ceil(n / exponents.columns)
    matrix = n * n * SINGLE
    of_anchors = operand_bytes(math.ceil(n / scan_launch.ANCHOR_GRADIENT.rows), n, width)
    of_candidates = operand_bytes(math.ceil(n / gradients.rows), n, width)
    return [
        Count("prepare", 1, 0, 0, math.ceil(n / 16) * n * DOUBLE + n * width * 2 * SINGLE),
        Count(
            "exponents",
            count,
            EXACT * product(n, n, width),
            0,
            operand_bytes(tiles, exponents.rows + exponents.columns, width) + matrix,
        ),
        Count("scan", count, 0, 2 * n * n, 10 * matrix),
        Count("anchors", count, EXACT * product(n, n, width), 0, of_anchors + matrix),
        Count(
            "candidates",
            count,
            EXACT * product(n, n, width),
            0,
            of_candidates + matrix + count * 2 * n * width * SINGLE,
        ),
    ]


def softmaxes(n: int, width: int) -> list[Count]:
    """ICL's and SupCon's: logarithms of sums, and their gradient."""
    sums, gradient = softmax_launch.SUMS, softmax_launch.GRADIENT
    passes = math.ceil(n / softmax_launch.RANGE_COLUMNS)
    return [
        Count(
            "log sums",
            1,
            EXACT * product(n, n, width),
            n * n,
            operand_bytes(math.ceil(n / sums.rows), n, width),
        ),
        Count(
            "gradient",
            passes,
            2 * EXACT * product(n, n, width),
            2 * n * n,
            2 * operand_bytes(math.ceil(n / gradient.rows), n, width)
            + 2 * passes * n * width * SINGLE,
        ),
    ]


def line(path: str, count: Count, against: Count) -> str:
    flops = count.flops / against.flops
    moved = count.bytes / against.bytes
    return (
        f"| {path} | {count.kernel} | {count.launches:,} | {flops:.2f} | "
        f"{count.exponentials:.2g} | {count.bytes / 1e9:,.1f} | {moved:.2f} |"
    )


def main() -> None:
    words, others = read_words(DEFAULTS)
    refuse_others(others, DEFAULTS)
    n, width, labels = (int(words[name]) for name in DEFAULTS)
    against = floor(n, width)
    print("| path | kernel | launches | FLOP / floor's | exponentials | GB | bytes / floor's |")
    print("|---|---|---|---|---|---|---|")
    print(line("floor", against, against))
    paths = {"triton": by_labels(n, width, labels), "triton_scan": strips(n, width)}
    if n <= dispatch.FEW_ROWS:
        paths = {"triton_whole": whole(n, width)}
    paths["softmax"] = softmaxes(n, width)
    for path, counts in paths.items():
        for count in counts:
            print(line(path, count, against))


if __name__ == "__main__":
    sys.exit(run_command(main))
