"""Ways to spoil an alignment folder, and the check that it is refused in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_folder import SECOND

from data_shards.sources.knowledge_graphs import EntityOptions, read
from data_shards.sources.raw_dataset import Options, RawDataset

Edit = Callable[[Path], object]


def read_folder(raw: Path, **options: Any) -> RawDataset:
    return read(raw, Options(entities=EntityOptions(**options)))


def holds(file: str, text: str | bytes) -> Edit:
    """The file has this content instead of its own."""
    content = text if isinstance(text, bytes) else text.encode()
    return lambda raw: (raw / file).write_bytes(content)


def has_line(file: str, line: str) -> Edit:
    """The file ends with one more line."""

    def edit(raw: Path) -> None:
        with (raw / file).open("a") as end:
            end.write(f"\n{line}")

    return edit


def lines_of(file: str, change: Callable[[list[list[str]]], list[list[str]]]) -> Edit:
    """The rows of the file are changed."""

    def edit(raw: Path) -> None:
        rows = [line.split("\t") for line in (raw / file).read_text().splitlines()]
        (raw / file).write_text("\n".join("\t".join(row) for row in change(rows)))

    return edit


def unchanged(raw: Path) -> None:
    """The folder stays as it is."""


def swapped(rows: list[list[str]]) -> list[list[str]]:
    return [row[::-1] for row in rows]


def twice(rows: list[list[str]]) -> list[list[str]]:
    return rows + rows


def with_sup(sup: list[tuple[int, int]], reference: list[tuple[int, int]] | None = None) -> Edit:
    """``sup_ent_ids`` and ``ref_ent_ids`` in place of ``ill_ent_ids``."""

    def edit(raw: Path) -> None:
        (raw / "ill_ent_ids").rename(raw / "ref_ent_ids")
        write_links(raw / "sup_ent_ids", sup)
        if reference is not None:
            write_links(raw / "ref_ent_ids", reference)

    return edit


def write_links(path: Path, links: list[tuple[int, int]]) -> None:
    path.write_text("\n".join(f"{left}\t{right}" for left, right in links))


def with_reference(reference: list[tuple[int, int]], sup: list[tuple[int, int]] | None) -> Edit:
    """``ref_ent_ids``, and perhaps ``sup_ent_ids``, beside ``ill_ent_ids``."""

    def edit(raw: Path) -> None:
        write_links(raw / "ref_ent_ids", reference)
        if sup is not None:
            write_links(raw / "sup_ent_ids", sup)

    return edit


def gold(start: int, stop: int) -> list[tuple[int, int]]:
    return [(i, SECOND + i) for i in range(start, stop)]


def check_refused(raw: Path, edit: Edit, message: str, **options: Any) -> None:
    edit(raw)
    with pytest.raises(ValueError, match=message) as refusal:
        read_folder(raw, **options)
    assert "\n" not in str(refusal.value)


def npz(**arrays: Any) -> bytes:
    """The bytes of an archive of these arrays."""
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()
