"""Several numbers to learn per sample, from columns of a table: emotions as intensities, say."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from core.names import suggest
from data_shards.shards.manifest import DataError, Labels
from data_shards.shards.sentiment_schema import MODALITY, check_label
from data_shards.sources.table_rows import Row

# columns that have a meaning of their own
_TAKEN = {"id", "split", "label", "class", "text", "video", "tokens", "text_features"}


def parse_targets(text: str | None) -> tuple[str, ...] | None:
    """The columns of ``--targets happy,sad``; None where nothing is said.

    Raises:
        DataError: fewer than two, one twice, or one that cannot be a target.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if not MODALITY.fullmatch(name) or name in _TAKEN:
            raise DataError(
                f"--targets {text!r}: {name!r} cannot be a target; name columns of letters, digits, "
                "'_' and '-' that begin with a letter, other than label... and "
                f"{', '.join(sorted(_TAKEN))}"
            )
    if len(set(names)) < len(names) or len(names) < 2:
        raise DataError(
            f"--targets {text!r}: name two or more columns, each once; a single one is called "
            "'label' in the table"
        )
    return names


def target_values(row: Row, targets: Iterable[str]) -> list[float]:
    """The numbers of a row, one for each target.

    Raises:
        DataError: a target without a number, or a label beside them.
    """
    for other in ("label", "class"):
        if other in row.cells:
            raise DataError(
                f"{row.where}: has a {other!r} beside the columns of --targets; leave one out"
            )
    values = []
    for name in targets:
        if name not in row.cells:
            hint = suggest(name, row.cells)
            raise DataError(f"{row.where}: no number in {name!r}, which --targets names{hint}")
        values.append(row.number(name))
    return values


def target_vector(row: Row, labels: Labels) -> np.ndarray:
    """(K,) float32, every number within the range of the labels."""
    values = [check_label(row.cells[name], labels, row.describe(name)) for name in labels.names]
    return np.array(values, "<f4")
