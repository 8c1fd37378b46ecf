"""What became of Self-MM's generated labels: their distributions by epoch (the figure of the paper),
and cases with their transcripts. From the files in ``samples/`` of a run directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.file_access.regular_files import check_regular_file
from launch.config import ConfigError
from launch.reports.pages.charts import Chart, Series, line_chart
from launch.reports.pages.page import Cell, Section, Table
from launch.reports.run_record import RunRecord, read_object
from launch.tasks.sample_record import FOLDER, TRANSCRIPTS

SHOWN_EPOCHS = 4
CASES = 12
BINS = 24
PREFIX = "label_"


def label_section(record: RunRecord) -> Section:
    """Empty where the model keeps no labels of its own."""
    files = sorted((record.folder / FOLDER).glob("epoch_*.npz"))
    if not files:
        return Section("Generated labels")
    chosen = np.unique(np.linspace(0, len(files) - 1, min(SHOWN_EPOCHS, len(files))).astype(int))
    read = {_epoch_of(files[number]): _read(files[number]) for number in chosen}
    last = read[max(read)]
    names = [name for name in last if name.startswith(PREFIX)]
    if not names:
        return Section("Generated labels")
    charts = [_distribution(name, read) for name in names]
    tables = [_cases(last, names, _transcripts(record.folder / FOLDER / TRANSCRIPTS))]
    text = (
        "Each view has labels of its own, made from how near a sample's representation lies to "
        "the centres of both signs. They begin as the human labels and spread or move by epochs."
    )
    return Section("Generated labels", text, tables, charts, notes=[f"From {FOLDER}/epoch_*.npz."])


def _epoch_of(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _read(path: Path) -> dict[str, NDArray]:
    """The arrays of one epoch's file.

    Raises:
        ConfigError: it is none.
    """
    check_regular_file(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise ConfigError(f"{path} holds no labels of an epoch: {error}; remove it") from None


def _distribution(name: str, read: dict[int, dict[str, NDArray]]) -> Chart:
    """The share of samples by label, a line for each of a few epochs."""
    known: list[NDArray] = []
    for arrays in read.values():
        values = arrays.get(name, np.zeros(0))
        known.append(values[~np.isnan(values)])
    everything = np.concatenate(known)
    if not len(everything):
        everything = np.zeros(1)
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    centres = ((edges[:-1] + edges[1:]) / 2).tolist()
    series = []
    for (epoch, _), values in zip(read.items(), known, strict=True):
        counts, _ = np.histogram(values, edges)
        shares = counts / max(1, len(values))
        series.append(Series(f"epoch {epoch}", centres, shares.tolist()))
    view = name.removeprefix(PREFIX)
    return line_chart(f"Labels of {view}", series, "label", "share of samples", whole_x=False)


def _transcripts(path: Path) -> dict[str, str]:
    """By the names of samples; none where the data had none, or an earlier version wrote none."""
    return {name: str(text) for name, text in read_object(path).items()}


def _cases(last: dict[str, NDArray], names: list[str], texts: dict[str, str]) -> Table:
    """The train samples whose labels of the views differ most."""
    values = np.stack([last[name] for name in names])
    is_known = ~np.isnan(values).any(0)
    apart = np.where(is_known, values.max(0) - values.min(0), -1.0)
    order = np.argsort(-apart, kind="stable")[:CASES]
    rows: list[list[Cell | str]] = []
    for number in order:
        if apart[number] >= 0:
            labels = [f"{value:+.2f}" for value in values[:, number]]
            name = str(last["id"][number])
            text = [texts.get(name, "")] if texts else []
            rows.append([name, *labels, f"{apart[number]:.2f}", *text])
    views = [name.removeprefix(PREFIX) for name in names]
    header = ["sample", *views, "apart", *(["transcript"] if texts else [])]
    caption = "Train samples whose views disagree most, after the last epoch"
    return Table(caption, header, rows, ["transcript"])
