"""In what runs differ: their settings, and their answers to the same samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.config import ConfigError
from launch.reports.run_record import RunRecord

NOT_COMPARED = {"run_dir"}  # where a run is, not what it is
ABSENT = "—"  # of a setting that only another model has


@dataclass(frozen=True)
class SharedAnswers:
    """What several runs said of the samples that all of them scored."""

    ids: list[str]
    label: NDArray[np.float64]  # (N,)
    prediction: NDArray[np.float64]  # (runs, N)
    texts: list[str]  # transcripts; empty where there are none

    @property
    def apart(self) -> NDArray[np.float64]:
        """(N,) the range of the answers to each sample."""
        return self.prediction.max(0) - self.prediction.min(0)


def different_settings(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """(name, value in each run) of the settings that are not the same in all."""
    flat = [record.flat_settings for record in records]
    names = sorted({name for settings in flat for name in settings} - NOT_COMPARED)
    found = []
    for name in names:
        values = [json.dumps(one[name]) if name in one else ABSENT for one in flat]
        if len(set(values)) > 1:
            found.append((name, values))
    return found


def run_names(records: Sequence[RunRecord]) -> list[str]:
    """A short name for each run, all different: the last parts of their folders that tell them
    apart."""
    paths = [record.folder.absolute().parts for record in records]
    longest = max(len(parts) for parts in paths)
    has_number = any(parts[-1].isdecimal() for parts in paths)  # a seed, which says little alone
    for depth in range(2 if has_number else 1, longest + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a run is named twice; name each once")


def shared_answers(records: Sequence[RunRecord]) -> SharedAnswers | None:
    """Answers to the samples that every run has scored; None where there are no such numbers.

    Raises:
        ConfigError: the runs have other labels for one sample.
    """
    tables = [record.predictions for record in records]
    for table in tables:
        if table is None or not {"id", "label", "prediction"} <= set(table.columns):
            return None
        if not np.issubdtype(table["prediction"].dtype, np.number):
            return None  # names of classes
    by_id = [_rows_by_id(table) for table in tables]
    ids = [name for name in by_id[0] if all(name in rows for rows in by_id[1:])]
    if not ids:
        return None
    labels, predictions = [], []
    for table, rows in zip(tables, by_id, strict=True):
        taken = table.iloc[[rows[name] for name in ids]]
        labels.append(taken["label"].to_numpy(np.float64))
        predictions.append(taken["prediction"].to_numpy(np.float64))
    for record, label in zip(records[1:], labels[1:], strict=True):
        different = np.flatnonzero(np.abs(label - labels[0]) > 1e-6)
        if len(different):
            raise ConfigError(
                f"sample {ids[different[0]]} has label {labels[0][different[0]]:g} in "
                f"{records[0].folder} and {label[different[0]]:g} in {record.folder}: these runs "
                "were scored on other data; compare runs of the same data"
            )
    texts = []
    if "text" in tables[0]:
        texts = [str(tables[0]["text"].iloc[by_id[0][name]]) for name in ids]
    return SharedAnswers(ids, labels[0], np.stack(predictions), texts)


def _rows_by_id(table: Any) -> dict[str, int]:
    return {str(name): number for number, name in enumerate(table["id"])}
