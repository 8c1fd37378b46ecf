"""What is in a shard folder: ``python -m data_shards.inspect DIR``. Reads every shard and so checks it as well.

Also looks for leakage: a video, or nearly the same id, in more than one split makes test scores meaningless.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.arguments import command_parser, parse
from core.command import run
from data_shards.reading.reader import Reader
from data_shards.reading.storage import open_store
from data_shards.shards.index_table import ABSENT
from data_shards.shards.manifest import DataError, Manifest, parse_manifest

LEVELS = 31  # most label values that get a line each: MOSI's
BINS = 12  # otherwise
WIDTH = 20
SHOWN = 5

# Samples of train, valid, test, and how many test labels are negative, zero, positive (as published).
KNOWN_SIZES = {
    "mosi": (1284, 229, 686),
    "mosei": (16326, 1871, 4659),
    "sims": (1368, 456, 457),
    "simsv2": (2722, 647, 1034),
}
KNOWN_SIGNS = {"mosi": (379, 30, 277), "mosei": (1350, 1025, 2284)}
KNOWN_POSITIVE = {"sims": 457 - 317}


@dataclass
class Split:
    """What was found in one split."""

    lengths: dict[str, list[int]] = field(
        default_factory=dict
    )  # field with a time axis -> of samples that have it
    present: Counter[str] = field(default_factory=Counter)  # field -> samples that have it
    labels: list[float] = field(default_factory=list)
    samples: int = 0
    texts: int = 0


@dataclass
class Report:
    """What was found in all."""

    name: str
    manifest: Manifest
    splits: dict[str, Split] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    ids: dict[str, list[tuple[str, str]]] = field(
        default_factory=dict
    )  # simplified id -> (split, id)
    videos: dict[str, set[str]] = field(default_factory=dict)  # video -> splits

    def shared_videos(self) -> list[str]:
        return sorted(video for video, splits in self.videos.items() if len(splits) > 1)

    def like_ids(self) -> list[list[tuple[str, str]]]:
        """Groups of samples whose ids are the same but for case, punctuation and leading zeros."""
        return [group for _, group in sorted(self.ids.items()) if len(group) > 1]


def simplify(name: str) -> str:
    """An id without what people write differently: case, punctuation, leading zeros."""
    words = re.split(r"[\W_]+", unicodedata.normalize("NFKC", name).casefold())
    return "_".join(word.lstrip("0") or "0" if word.isdigit() else word for word in words if word)


def examine(source: str | Path, progress: bool = False) -> Report:
    """Read all shards of a folder or URL. Damaged ones are listed and left out."""
    store = open_store(source)
    report = Report(store.name, parse_manifest(store.manifest(), f"{store.name}/manifest.json"))
    total = sum(report.manifest.samples(split) for split in report.manifest.splits)
    with tqdm(total=total, unit="sample", disable=not progress, leave=False) as bar:
        for name, shards in report.manifest.splits.items():
            split = report.splits[name] = Split()
            reader = Reader(store, shards, report.manifest.fields, keep=1, threads=0)
            for number, shard in enumerate(shards):
                try:
                    _read(reader, number, name, split, report)
                except DataError as error:
                    report.damaged.append(str(error))
                bar.update(shard.samples)
            reader.close()
    return report


def _read(reader: Reader, number: int, name: str, split: Split, report: Report) -> None:
    index = reader.shard(number).index
    for field_name, kind in report.manifest.fields.items():
        if field_name not in index.arrays:
            continue
        column = index.column(field_name)
        here = index.table[:, column] != ABSENT
        split.present[field_name] += int(here.sum())
        if None in kind.shape:
            lengths = index.table[here, column + 1 + kind.shape.index(None)]
            split.lengths.setdefault(field_name, []).extend(lengths.tolist())
    target = "class" if report.manifest.labels.kind == "classes" else "label"
    for row, arrays in enumerate(reader.walk(number, range(len(index)))):
        if target in arrays:
            split.labels.append(float(arrays[target]))
        record = reader.record(number, row)
        split.samples += 1
        split.texts += "text" in record
        report.ids.setdefault(simplify(str(record["id"])), []).append((name, str(record["id"])))
        if record.get("video") is not None:
            report.videos.setdefault(str(record["video"]), set()).add(name)


def render(report: Report) -> str:
    """The report as text."""
    manifest = report.manifest
    lines = [f"{manifest.name} ({manifest.task}), in {report.name}"]
    if manifest.synthetic:
        lines.append("SYNTHETIC: made-up data, scores on it mean nothing")
    if "file" in manifest.source:
        lines.append(f"made from {manifest.source['file']}, sha256 {manifest.source.get('sha256')}")
    lines += [
        _label_line(manifest),
        _text_line(manifest),
        "",
        *_split_lines(report),
        "",
        *_field_lines(report),
        "",
    ]
    if any(split.labels for split in report.splits.values()):
        lines += [*_histogram(report), ""]
    lines += [f"repaired: {count} {what}" for what, count in manifest.repairs.items()] or [
        "repaired: nothing"
    ]
    lines += [*_known(report), *_leakage(report)]
    shards = sum(len(shards) for shards in manifest.splits.values())
    lines.append(
        f"checksums: {shards - len(report.damaged)} of {shards} shards are as the manifest says"
    )
    return "\n".join(lines + [f"DAMAGED: {damage}" for damage in report.damaged])


def _label_line(manifest: Manifest) -> str:
    labels = manifest.labels
    if labels.kind == "classes":
        return f"labels: classes {', '.join(labels.names)}"
    step = f", annotated in steps of {labels.resolution:.3g}" if labels.resolution else ""
    return f"labels: scores from {labels.low:g} to {labels.high:g}{step}"


def _text_line(manifest: Manifest) -> str:
    text = manifest.fields.get("text")
    if text is None:
        return "text: none"
    if len(text.shape) > 1:
        return f"text: features of width {text.shape[-1]}"
    tokenizer = manifest.tokenizer or {}
    return f"text: token ids of {tokenizer.get('name', 'an unknown tokenizer')}, {tokenizer.get('vocab_size')} entries"


def _split_lines(report: Report) -> list[str]:
    rows = [("split", "shards", "samples", "videos", "transcripts")]
    for name, split in report.splits.items():
        videos = sum(name in splits for splits in report.videos.values())
        shards = report.manifest.splits[name]
        rows.append(
            (
                name,
                str(len(shards)),
                str(report.manifest.samples(name)),
                str(videos or "-"),
                str(split.texts),
            )
        )
    return _table(rows)


def _field_lines(report: Report) -> list[str]:
    rows = [("field", "kind", "split", "there", "missing", "median", "95 %", "longest")]
    for name, kind in report.manifest.fields.items():
        shape = "x".join("T" if n is None else str(n) for n in kind.shape) or "one number"
        for split_name, split in report.splits.items():
            there = split.present[name]
            numbers = ("-", "-", "-")
            if lengths := split.lengths.get(name):
                numbers = (
                    f"{np.median(lengths):g}",
                    f"{np.percentile(lengths, 95):g}",
                    f"{max(lengths)}",
                )
            missing = str(split.samples - there)
            rows.append((name, f"{kind.dtype} {shape}", split_name, str(there), missing, *numbers))
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _histogram(report: Report) -> list[str]:
    """A line per label value, or per bin where there are many, and a bar per split."""
    labels = report.manifest.labels
    if labels.kind == "classes":
        titles, edges = list(labels.names), np.arange(len(labels.names) + 1) - 0.5
    elif labels.resolution and (labels.high - labels.low) / labels.resolution <= LEVELS - 0.5:
        steps = np.arange(round((labels.high - labels.low) / labels.resolution) + 2)
        edges = labels.low + (steps - 0.5) * labels.resolution
        titles = [f"{(low + high) / 2:+.2f}" for low, high in zip(edges, edges[1:], strict=False)]
    else:
        edges = np.linspace(labels.low, labels.high, BINS + 1)
        titles = [f"{low:+.2f} to {high:+.2f}" for low, high in zip(edges, edges[1:], strict=False)]
    columns = [["label", *titles]]
    for name, split in report.splits.items():
        counts = np.histogram(np.clip(split.labels, edges[0], edges[-1]), edges)[0].tolist()
        bars = ["#" * round(WIDTH * count / max(1, *counts)) for count in counts]
        columns.append(
            [name, *(f"{bar} {count}".strip() for bar, count in zip(bars, counts, strict=True))]
        )
    return _table(list(zip(*columns, strict=True)))


def _known(report: Report) -> list[str]:
    """Whether sizes and label counts are those of the published split, where the data set is known."""
    dataset = report.manifest.source.get("dataset")
    if dataset not in KNOWN_SIZES:
        return []
    sizes = tuple(
        report.manifest.samples(split)
        for split in ("train", "valid", "test")
        if split in report.splits
    )
    wrong = (
        []
        if sizes == KNOWN_SIZES[dataset]
        else [f"sizes {sizes}, published are {KNOWN_SIZES[dataset]}"]
    )
    test = np.array(report.splits["test"].labels if "test" in report.splits else [])
    signs = (int((test < 0).sum()), int((test == 0).sum()), int((test > 0).sum()))
    if signs != KNOWN_SIGNS.get(dataset, signs):
        wrong.append(
            f"{signs} negative, zero, positive test labels, published are {KNOWN_SIGNS[dataset]}"
        )
    if signs[2] != KNOWN_POSITIVE.get(dataset, signs[2]):
        wrong.append(f"{signs[2]} positive test labels, published are {KNOWN_POSITIVE[dataset]}")
    if wrong:
        return [f"WARNING: not the published split of {dataset}: {'; '.join(wrong)}"]
    return [f"split: the published one of {dataset}, by its sizes and test labels"]


def _leakage(report: Report) -> list[str]:
    lines = []
    if shared := report.shared_videos():
        shown = [
            f"{video} in {' and '.join(sorted(report.videos[video]))}" for video in shared[:SHOWN]
        ]
        lines.append(
            f"LEAKAGE: {len(shared)} videos are in more than one split: {_some(shown, len(shared))}"
        )
    if groups := report.like_ids():
        shown = [
            " = ".join(f"{split} {name!r}" for split, name in group[:3]) for group in groups[:SHOWN]
        ]
        crossing = sum(len({split for split, _ in group}) > 1 for group in groups)
        lines.append(
            f"{'LEAKAGE' if crossing else 'WARNING'}: {len(groups)} ids occur more than once, but for case, "
            f"punctuation and zeros, {crossing} of them in more than one split: {_some(shown, len(groups))}"
        )
    if not report.videos:
        lines.append("leakage: the samples name no videos, so only ids could be compared")
    return lines or ["leakage: none; no video and no id is in more than one split"]


def _some(shown: list[str], total: int) -> str:
    return "; ".join(shown) + ("; ..." if total > len(shown) else "")


def _main(source: str) -> None:
    report = examine(source, progress=True)
    print(render(report))
    if report.damaged:
        raise DataError(
            f"{len(report.damaged)} damaged shards in {source}; restore them, or convert again with --force"
        )
    print(f"all read; train on it with: deepspeed launch/train.py RECIPE data={source}")


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("inspect", __doc__)
    parser.add_argument("data", metavar="DIR", help="a shard folder, or its URL")
    given = parse(parser, argv)
    return run(lambda: _main(given.data))


if __name__ == "__main__":
    sys.exit(main())
