"""What is in a shard folder: ``python -m data_shards.inspect DIR``. Reads every shard and so checks
it as well.

Also looks for leakage: a video, or nearly the same id, in more than one split makes test scores
meaningless; so does a link between two graphs, and so do features that were made with the labels of
one split and not of another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import numpy as np

from core.arguments import command_parser, parse
from core.command import run
from data_shards.inspecting.contents import Contents, examine
from data_shards.inspecting.graph_contents import GraphContents, examine_graphs
from data_shards.inspecting.graph_report import render_graphs
from data_shards.inspecting.label_leakage import leakage_lines
from data_shards.inspecting.report_lines import (
    SHOWN,
    checksum_lines,
    joined,
    repair_lines,
    text_table,
)
from data_shards.reading.storage import open_manifest, open_store
from data_shards.shards.manifest import (
    LEAVE_OUT,
    DataError,
    Labels,
    Manifest,
    describe_empty,
)
from data_shards.shards.split_names import describe_missing

MAX_LEVELS = 31  # most label values that get a line each: MOSI's
BINS = 12  # lines of a histogram of more values
BAR = 20  # characters of the longest bar

# Samples of train, valid, test, and how many test labels are negative, zero, positive (as
# published).
KNOWN_SIZES = {
    "mosi": (1284, 229, 686),
    "mosei": (16326, 1871, 4659),
    "sims": (1368, 456, 457),
    "simsv2": (2722, 647, 1034),
}
KNOWN_SIGNS = {"mosi": (379, 30, 277), "mosei": (1350, 1025, 2284)}
KNOWN_POSITIVE = {"sims": 457 - 317}


def render(contents: Contents) -> str:
    """The contents as text."""
    manifest = contents.manifest
    lines = [*_heading(contents), ""]
    lines += [*_split_lines(contents), ""]
    lines += [*_field_lines(contents), ""]
    if any(split.labels for split in contents.splits.values()):
        lines += [*_label_histogram(contents), ""]
    if any(split.targets for split in contents.splits.values()):
        lines += [*_target_lines(contents), ""]
    lines += repair_lines(manifest)
    lines += _empty_samples(contents)
    lines += _fitness(contents)
    lines += _published_split(contents)
    lines += _leakage(contents)
    lines += leakage_lines(contents.mean_frames)
    lines += checksum_lines(manifest, contents.corrupt)
    return "\n".join(lines)


def _heading(contents: Contents) -> list[str]:
    manifest = contents.manifest
    lines = [f"{manifest.name} ({manifest.task}), in {contents.name}"]
    if manifest.synthetic:
        lines.append("SYNTHETIC: made-up data, scores on it mean nothing")
    if "file" in manifest.source:
        lines.append(f"made from {manifest.source['file']}, sha256 {manifest.source.get('sha256')}")
    return [*lines, _label_line(manifest.labels), _text_line(manifest)]


def _label_line(labels: Labels) -> str:
    if labels.kind == "classes":
        return f"labels: classes {', '.join(labels.names)}"
    step = f", annotated in steps of {labels.resolution:.3g}" if labels.resolution else ""
    if labels.names:
        step += f", of {len(labels.names)} targets: {', '.join(labels.names)}"
    return f"labels: scores from {labels.low:g} to {labels.high:g}{step}"


def _text_line(manifest: Manifest) -> str:
    text = manifest.fields.get("text")
    if text is None:
        return "text: none"
    if len(text.shape) > 1:
        return f"text: features of width {text.shape[-1]}"
    tokenizer = manifest.tokenizer or {}
    name = tokenizer.get("name", "an unknown tokenizer")
    return f"text: token ids of {name}, {tokenizer.get('vocab_size')} entries"


def _split_lines(contents: Contents) -> list[str]:
    rows: list[tuple[str, ...]] = [("split", "shards", "samples", "videos", "transcripts")]
    for name, split in contents.splits.items():
        shards = len(contents.manifest.splits[name])
        samples = contents.manifest.samples(name)
        videos = sum(name in splits for splits in contents.videos.values())
        counts = (shards, samples, videos or "-", split.texts)
        rows.append((name, *map(str, counts)))
    return text_table(rows)


def _field_lines(contents: Contents) -> list[str]:
    rows = [("field", "kind", "split", "there", "missing", "median", "95 %", "longest")]
    for name, field in contents.manifest.fields.items():
        extents = ["T" if extent is None else str(extent) for extent in field.shape]
        kind = f"{field.dtype} {'x'.join(extents) or 'one number'}"
        for split_name, split in contents.splits.items():
            present = split.present[name]
            missing = split.samples - present
            lengths = _length_cells(split.lengths.get(name, []))
            rows.append((name, kind, split_name, str(present), str(missing), *lengths))
    return text_table(rows)


def _length_cells(lengths: Sequence[int]) -> tuple[str, str, str]:
    """Median, 95th percentile and maximum."""
    if not lengths:
        return "-", "-", "-"
    return f"{np.median(lengths):g}", f"{np.percentile(lengths, 95):g}", f"{max(lengths)}"


def _label_histogram(contents: Contents) -> list[str]:
    """A line per label value, or per bin where there are many, and a bar per split."""
    titles, edges = _label_bins(contents.manifest.labels)
    columns = [["label", *titles]]
    for name, split in contents.splits.items():
        labels = np.clip(split.labels, edges[0], edges[-1])
        counts = np.histogram(labels, edges)[0].tolist()
        highest = max(1, *counts)
        column = [name]
        for count in counts:
            bar = "#" * round(BAR * count / highest)
            column.append(f"{bar} {count}".strip())
        columns.append(column)
    return text_table(list(zip(*columns, strict=True)))


def _target_lines(contents: Contents) -> list[str]:
    """Of labels that are vectors: mean and range of each target, by split."""
    rows: list[tuple[str, ...]] = [("target", "split", "mean", "deviation", "lowest", "highest")]
    for number, name in enumerate(contents.manifest.labels.names):
        for split_name, split in contents.splits.items():
            if not split.targets:
                continue
            values = np.stack(split.targets)[:, number]
            numbers = (values.mean(), values.std(), values.min(), values.max())
            rows.append((name, split_name, *[f"{value:.3f}" for value in numbers]))
    return text_table(rows)


def _label_bins(labels: Labels) -> tuple[list[str], np.ndarray]:
    """K names of bins, and their K + 1 edges."""
    span = labels.high - labels.low
    if labels.kind == "classes":
        return list(labels.names), np.arange(len(labels.names) + 1) - 0.5
    if labels.resolution and span / labels.resolution <= MAX_LEVELS - 0.5:
        levels = np.arange(round(span / labels.resolution) + 2)
        edges = labels.low + (levels - 0.5) * labels.resolution
        return [f"{(low + high) / 2:+.2f}" for low, high in _neighbours(edges)], edges
    edges = np.linspace(labels.low, labels.high, BINS + 1)
    return [f"{low:+.2f} to {high:+.2f}" for low, high in _neighbours(edges)], edges


def _neighbours(edges: np.ndarray) -> Iterable[tuple[float, float]]:
    return zip(edges[:-1], edges[1:], strict=True)


def _empty_samples(contents: Contents) -> list[str]:
    """How many samples have no modality at all."""
    if contents.manifest.task != "sentiment":
        return []
    counts = {name: split.empty for name, split in contents.splits.items() if split.empty}
    return [f"WARNING: {describe_empty(contents.manifest, counts)}; {LEAVE_OUT}"] if counts else []


def _fitness(contents: Contents) -> list[str]:
    """What would be learnt wrongly, and which splits training would lack."""
    lines = [f"UNFIT: {problem}" for problem in contents.unfit[:SHOWN]]
    if len(contents.unfit) > SHOWN:
        lines.append(f"UNFIT: {len(contents.unfit) - SHOWN} more")
    missing = describe_missing(contents.manifest.splits)
    if contents.manifest.task == "sentiment" and missing:
        lines.append(f"WARNING: {missing}")
    train = contents.splits.get("train")
    for name in contents.manifest.fields:
        if contents.manifest.task == "sentiment" and train and not train.present[name]:
            lines.append(f"WARNING: no train sample has {name!r}, so nothing is learnt of it")
    for suffix, count in contents.manifest.source.get("no arrays", {}).items():
        lines.append(f"left out: {count} files .{suffix}, which are no arrays")
    return lines


def _published_split(contents: Contents) -> list[str]:
    """Whether sizes and label counts are those of the published split, where the data set is
    known."""
    manifest = contents.manifest
    dataset = manifest.source.get("dataset")
    if dataset not in KNOWN_SIZES:
        return []
    splits = [split for split in ("train", "valid", "test") if split in contents.splits]
    sizes = tuple(manifest.samples(split) for split in splits)
    differences = []
    if sizes != KNOWN_SIZES[dataset]:
        differences.append(f"sizes {sizes}, published are {KNOWN_SIZES[dataset]}")
    test = np.array(contents.splits["test"].labels if "test" in contents.splits else [])
    negative, zero, positive = (test < 0).sum(), (test == 0).sum(), (test > 0).sum()
    signs = (int(negative), int(zero), int(positive))
    if signs != KNOWN_SIGNS.get(dataset, signs):
        differences.append(
            f"{signs} negative, zero, positive test labels, published are {KNOWN_SIGNS[dataset]}"
        )
    if positive != KNOWN_POSITIVE.get(dataset, positive):
        differences.append(
            f"{positive} positive test labels, published are {KNOWN_POSITIVE[dataset]}"
        )
    if differences:
        return [f"WARNING: not the published split of {dataset}: {'; '.join(differences)}"]
    return [f"split: the published one of {dataset}, by its sizes and test labels"]


def _leakage(contents: Contents) -> list[str]:
    lines = []
    shared = contents.shared_videos()
    if shared:
        lines.append(
            f"LEAKAGE: {len(shared)} videos are in more than one split: "
            f"{_examples_of_videos(contents, shared)}"
        )
    groups = contents.like_ids()
    if groups:
        crossing = sum(_is_in_several_splits(group) for group in groups)
        lines.append(
            f"{'LEAKAGE' if crossing else 'WARNING'}: {len(groups)} ids occur more than once, but "
            "for case, "
            f"punctuation and zeros, {crossing} of them in more than one split: "
            f"{_examples_of_ids(groups)}"
        )
    if not contents.videos:
        lines.append("leakage: the samples name no videos, so only ids could be compared")
    return lines or ["leakage: none; no video and no id is in more than one split"]


def _is_in_several_splits(group: Sequence[tuple[str, str]]) -> bool:
    return len({split for split, _ in group}) > 1


def _examples_of_videos(contents: Contents, videos: Sequence[str]) -> str:
    shown = []
    for video in videos[:SHOWN]:
        splits = sorted(contents.videos[video])
        shown.append(f"{video} in {' and '.join(splits)}")
    return joined(shown, len(videos))


def _examples_of_ids(groups: Sequence[Sequence[tuple[str, str]]]) -> str:
    shown = []
    for group in groups[:SHOWN]:
        shown.append(" = ".join(f"{split} {name!r}" for split, name in group[:3]))
    return joined(shown, len(groups))


def _main(source: str) -> None:
    store = open_store(source)
    manifest, _ = open_manifest(store)
    contents: Contents | GraphContents
    if manifest.task == "alignment":
        contents = examine_graphs(source, progress=True)
        print(render_graphs(contents))
    else:
        contents = examine(source, progress=True)
        print(render(contents))
    if contents.corrupt:
        others = len(contents.corrupt) - 1
        raise DataError(
            f"{source} has damaged shards: {contents.corrupt[0]}"
            + (f"; and {others} more, named above" if others else "")
        )
    if contents.unfit:
        raise DataError(
            f"{contents.unfit[0]}; {len(contents.unfit)} findings (UNFIT) that training refuses, or "
            "would learn wrongly from; correct the data, then convert or index them again"
        )
    print(f"all read; train on it with: deepspeed launch/train.py RECIPE data={source}")


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("inspect", __doc__)
    parser.add_argument("data", metavar="DIR", help="a shard folder, or its URL")
    options = parse(parser, argv)
    return run(lambda: _main(options.data))


if __name__ == "__main__":
    sys.exit(main())
