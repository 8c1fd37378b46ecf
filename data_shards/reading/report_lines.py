"""Lines that reports about a data set have in common, whatever it holds."""

from __future__ import annotations

from collections.abc import Sequence

from data_shards.shards.manifest import Manifest

SHOWN = 5  # examples named of a finding


def text_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of cells in columns that are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def joined(shown: Sequence[str], total: int) -> str:
    """Examples of ``total`` things in one line."""
    return "; ".join(shown) + ("; ..." if total > len(shown) else "")


def repair_lines(manifest: Manifest) -> list[str]:
    """What was mended on the way in, and what there was to say of it."""
    lines = [f"repaired: {count} {repair}" for repair, count in manifest.repairs.items()]
    lines = lines or ["repaired: nothing"]
    return lines + [f"noted: {note}" for note in manifest.extras.get("noted", ())]


def checksum_lines(manifest: Manifest, corrupt: Sequence[str]) -> list[str]:
    """How many shards are whole, and what is wrong with each of the others."""
    shards = sum(len(shards) for shards in manifest.splits.values())
    whole = shards - len(corrupt)
    lines = [f"checksums: {whole} of {shards} shards are as the manifest says"]
    return lines + [f"DAMAGED: {reason}" for reason in corrupt]
