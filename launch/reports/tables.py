"""Markdown tables of the project's reports, benchmarks and model cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, without a line break at its end. Cells are written with ``str``.

    Raises:
        ValueError: a row is longer or shorter than the header.
    """
    lines = [_line(header), "|---" * len(header) + "|"]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells under a header of {len(header)}: {row}")
        lines.append(_line(row))
    return "\n".join(lines)


def score_table(
    first_column: str, rows: Mapping[str, Mapping[str, float]], names: Sequence[str] | None = None
) -> str:
    """A table of scores, one row for each entry of ``rows``; a score that a row lacks is left
    blank.

    Args:
        names: the scores to show; by default those of the first row.
    """
    if names is None:
        names = list(next(iter(rows.values()), {}))
    body = []
    for title, scores in rows.items():
        cells = [f"{scores[name]:.4f}" if name in scores else "" for name in names]
        body.append([title, *cells])
    return markdown_table([first_column, *names], body)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
