"""The MMSA ``.pkl`` layout: one dict per file, in it one dict per split, in it one list or array per kind of data.

All its variants are read: MOSI, MOSEI, SIMS (with human labels per modality) and SIMSv2; aligned and unaligned; lists
and arrays; zero padding on either side; the (N, L, 3) order of token ids that some extractors write; ids as bytes or
nested arrays; MulT's originals, whose labels are called ``labels``. What each key means: docs/data.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.shards.manifest import DataError, Field, Labels, Sample
from data_shards.sources.base import (
    KNOWN_LABELS,
    SPLITS,
    Options,
    Source,
    as_frames,
    as_numbers,
    as_string,
    check_label,
    check_width,
    file_facts,
    finite,
    known_resolution,
)
from data_shards.sources.pickles import load_pickle
from data_shards.sources.tokens import Tokenizer, from_bert, from_vocabulary, text_kind

SEQUENCES = ("audio", "vision")
VIEWS = {"T": "text", "A": "audio", "V": "vision"}
# Widths of sound and vision tell the published feature sets apart.
WIDTHS = {(5, 20): "mosi", (74, 35): "mosei", (33, 709): "sims", (25, 177): "simsv2"}
# The tokenizers that made the published token ids, and the sizes of their vocabularies.
PRETRAINED = {
    "mosi": ("bert-base-uncased", 30522),
    "mosei": ("bert-base-uncased", 30522),
    "sims": ("bert-base-chinese", 21128),
    "simsv2": ("bert-base-chinese", 21128),
}


@dataclass(frozen=True)
class Part:
    """One split as it lies in the file; every column has one entry per sample."""

    where: str  # "file.pkl: train"
    ids: list[str]
    labels: dict[str, Sequence[Any]]  # field -> raw values
    columns: dict[
        str, Sequence[Any]
    ]  # text_bert, text, audio, vision, raw_text, annotations: those that are there
    lengths: dict[str, Sequence[Any]]  # modality -> stored lengths

    def at(self, i: int) -> str:
        return f"{self.where}, sample {i} ({self.ids[i]!r})"


@dataclass(frozen=True)
class Content:
    """The whole file, and what was found out about it."""

    parts: dict[str, Part]
    labels: Labels
    text: str  # "tokens", "features", "tokenize" or "none"
    swapped: bool  # token ids are (L, 3) instead of (3, L)
    left: dict[str, bool]  # modality -> padding stands on the left
    aligned: bool  # all modalities share one time axis
    fields: dict[str, Field]
    tokenizer: Tokenizer | None


def read(raw: Path, options: Options) -> Source:
    """An MMSA ``.pkl``, checked as far as that needs no look at every frame."""
    loaded = load_pickle(raw)
    parts, left_out = _parts(loaded, raw)
    widths = {
        m: _width(parts, m)
        for m in (*SEQUENCES, "text")
        if any(m in part.columns for part in parts.values())
    }
    dataset = options.dataset or _dataset(raw, parts, widths)
    labels = _labels(raw, parts, dataset, options)
    kind = text_kind(
        options, str(raw), ids="text_bert", raw="raw_text", features="text", has=_has(parts)
    )
    tokenizer = (
        Tokenizer(options.tokenizer, options.max_tokens)
        if kind == "tokenize" and options.tokenizer
        else None
    )
    frames = [
        m for m in (*SEQUENCES, "text") if m in widths and (m != "text" or kind == "features")
    ]
    fields: dict[str, Field] = {}
    if kind in ("tokens", "tokenize"):
        fields["text"] = Field("int32", (None,))
    fields |= {m: Field("float32", (None, widths[m])) for m in frames}
    fields |= {name: Field("float32", ()) for name in next(iter(parts.values())).labels}
    content = Content(
        parts=parts,
        labels=labels,
        text=kind,
        swapped="text_bert" in _has(parts) and _is_swapped(parts),
        left={m: _pads_left(parts, m) for m in frames},
        aligned=_is_aligned(parts, frames),
        fields=dict(sorted(fields.items(), key=lambda field: _ORDER.index(field[0]))),
        tokenizer=tokenizer,
    )
    synthetic = bool(loaded.get("synthetic", False))
    if synthetic:
        dataset = None  # it only looks like one
    facts = file_facts(raw) | {"layout": "mmsa", "dataset": dataset, "aligned": content.aligned}
    return Source(
        name=options.name or dataset or raw.stem,
        task="sentiment",
        fields=content.fields,
        labels=labels,
        counts={split: len(part.ids) for split, part in parts.items()},
        rows=partial(_rows, parts),
        sample=partial(_sample, content),
        facts=facts | ({"left out": left_out} if left_out else {}),
        tokenizer=tokenizer.facts if tokenizer else _given_tokenizer(loaded, content, dataset),
        synthetic=synthetic,
    )


_ORDER = ["text", *SEQUENCES, "label", *(f"label_{view}" for view in VIEWS.values())]


def _parts(loaded: Any, raw: Path) -> tuple[dict[str, Part], list[str]]:
    """The splits in the order train, valid, test, and the names of what else lies in the file."""
    if not isinstance(loaded, dict):
        raise DataError(
            f"{raw} holds a {type(loaded).__name__}, not a dict of splits; the layout is in docs/data.md"
        )
    found = {SPLITS[key]: key for key in loaded if key in SPLITS}
    if set(found) != {"train", "valid", "test"}:
        hint = ""
        if "train_mix" in loaded:
            hint = "; its 'train_mix' holds clips without labels too, take the file of the supervised task instead"
        raise DataError(
            f"{raw} needs the splits train, valid and test, and has {sorted(map(str, loaded))}{hint}"
        )
    parts = {
        split: _part(loaded[found[split]], f"{raw}: {found[split]}")
        for split in ("train", "valid", "test")
    }
    named = {tuple(part.labels) for part in parts.values()}
    if len(named) > 1:
        raise DataError(f"{raw}: the splits have different labels: {sorted(named)}")
    known = {*found.values(), "synthetic", "vocabulary"}
    return parts, sorted(str(key) for key in loaded if key not in known)


def _part(content: Any, where: str) -> Part:
    if not isinstance(content, dict):
        raise DataError(
            f"{where} is a {type(content).__name__}, not a dict; the layout is in docs/data.md"
        )
    key = "regression_labels" if "regression_labels" in content else "labels"
    for needed in (key, "id"):
        if needed not in content:
            name = "regression_labels" if needed == key else needed
            raise DataError(
                f"{where} has no {name!r}, only {sorted(map(str, content))}; the layout is in docs/data.md"
            )
    ids = [
        _id(value, f"{where}: id of sample {i}")
        for i, value in enumerate(_column(content, "id", where))
    ]
    if not ids:
        raise DataError(f"{where} holds no samples")
    labels = {"label": _scalars(content, key, where, len(ids))}
    for letter, view in VIEWS.items():
        if f"regression_labels_{letter}" in content:
            labels[f"label_{view}"] = _scalars(
                content, f"regression_labels_{letter}", where, len(ids)
            )
    names = ("text_bert", "text", *SEQUENCES, "raw_text", "annotations")
    columns = {
        name: _column(content, name, where, len(ids))
        for name in names
        if content.get(name) is not None
    }
    lengths = {
        m: _scalars(content, f"{m}_lengths", where, len(ids))
        for m in SEQUENCES
        if f"{m}_lengths" in content
    }
    return Part(where, ids, labels, columns, lengths)


def _column(
    content: dict[str, Any], name: str, where: str, count: int | None = None
) -> Sequence[Any]:
    """What stands under ``name``: a list or array, one entry per sample."""
    column = content[name]
    if not isinstance(column, list | tuple | np.ndarray) or (
        isinstance(column, np.ndarray) and column.ndim == 0
    ):
        raise DataError(f"{where}: {name!r} is a {type(column).__name__}, not one entry per sample")
    if count is not None and len(column) != count:
        raise DataError(f"{where}: {name!r} has {len(column)} entries for {count} ids")
    return column  # type: ignore[return-value]  # an array, in all that is done with it here, is a sequence


def _id(value: Any, where: str) -> str:
    """``video$_$clip``; MulT's arrays [video, start, end] are joined in the same way."""
    if isinstance(value, np.ndarray | list | tuple):
        return "$_$".join(as_string(item, where) for item in value)
    return as_string(value, where)


def _scalars(content: dict[str, Any], name: str, where: str, count: int) -> Sequence[Any]:
    """One number per sample from a list, an array (N,), or MulT's (N, 1, 1)."""
    column = _column(content, name, where, count)
    if isinstance(column, np.ndarray):
        if column.size != len(column):
            raise DataError(
                f"{where}: {name!r} has shape {column.shape}; one number per sample is read"
            )
        return column.reshape(-1).tolist()
    return [
        value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
        for value in column
    ]


def _has(parts: dict[str, Part]) -> set[str]:
    return set.intersection(*(set(part.columns) for part in parts.values()))


def _width(parts: dict[str, Part], modality: str) -> int:
    for part in parts.values():
        if modality in part.columns:
            return as_frames(part.columns[modality][0], f"{part.at(0)}: {modality}").shape[1]
    raise AssertionError(modality)


def _dataset(raw: Path, parts: dict[str, Part], widths: dict[str, int]) -> str | None:
    """Which known data set this is, by its widths or else its file's name."""
    by_width = WIDTHS.get((widths.get("audio", 0), widths.get("vision", 0)))
    by_name = next(
        (name for name in sorted(KNOWN_LABELS, key=len, reverse=True) if name in raw.stem.lower()),
        None,
    )
    return by_width or by_name


def _labels(raw: Path, parts: dict[str, Part], dataset: str | None, options: Options) -> Labels:
    """The label range: stated, or that of the data set; then every label is checked against it."""
    if options.labels is None and dataset is None:
        raise DataError(
            f"{raw}: the label range is not known; add --labels LOW:HIGH[:STEP], or --dataset {'|'.join(KNOWN_LABELS)}"
        )
    labels = options.labels or KNOWN_LABELS[dataset or ""]
    for part in parts.values():
        for name, column in part.labels.items():
            for i, value in enumerate(column):
                check_label(value, labels, f"{part.at(i)}: {name}")
    if options.labels:
        return labels
    return known_resolution(
        labels, np.concatenate([np.asarray(part.labels["label"], float) for part in parts.values()])
    )


def _is_swapped(parts: dict[str, Part]) -> bool:
    """Whether token ids lie as (L, 3); where L is 3 the mask, all 0 and 1, tells rows from columns."""
    first = [
        as_numbers(part.columns["text_bert"][i], "f8", f"{part.at(i)}: text_bert")
        for part in parts.values()
        for i in range(min(8, len(part.ids)))
    ]
    if first[0].ndim != 2 or 3 not in first[0].shape:
        return False  # refused, with its id, when the sample is made
    if first[0].shape != (3, 3):
        return first[0].shape[0] != 3

    def masks(column: bool) -> int:
        rows = [(ids.T if column else ids)[1:] for ids in first if ids.shape == (3, 3)]
        return sum(bool(np.isin(row, (0, 1)).all() and row[0][0] == 1) for row in rows)

    return masks(column=True) > masks(column=False)


def _pads_left(parts: dict[str, Part], modality: str) -> bool:
    """Whether zero frames pile up in front; frames of face trackers and [CLS] may be zero at either end."""
    before = after = 0
    for part in parts.values():
        for i in range(len(part.ids)) if modality in part.columns else ():
            start, stop, size = _extent(
                as_frames(part.columns[modality][i], f"{part.at(i)}: {modality}")
            )
            before, after = before + start, after + size - stop
    return before > after


def _extent(frames: np.ndarray) -> tuple[int, int, int]:
    """Start and end of what is not zero at the ends, and the whole length; (0, 0, T) where all is zero."""
    used = np.flatnonzero((frames != 0).any(axis=1))  # inf and NaN are data too, to be repaired
    return (int(used[0]), int(used[-1]) + 1, len(frames)) if len(used) else (0, 0, len(frames))


def _is_aligned(parts: dict[str, Part], frames: list[str]) -> bool:
    """One time axis for all: no lengths are stored, and all padded arrays are equally long."""
    part = parts["train"]
    if part.lengths or not frames:
        return False
    lengths = {len(as_frames(part.columns[m][0], part.at(0))) for m in frames if m in part.columns}
    if "text_bert" in part.columns:
        lengths.add(max(np.shape(part.columns["text_bert"][0]), default=0))
    return len(lengths) == 1 and len(frames) > 1 and lengths != {1}


def _given_tokenizer(
    loaded: dict[str, Any], content: Content, dataset: str | None
) -> dict[str, Any] | None:
    """What is known of the tokenizer that made the ids in the file."""
    if content.text != "tokens":
        return None
    largest = 0
    for part in content.parts.values():
        for i, value in enumerate(part.columns["text_bert"]):
            ids = _token_rows(value, content.swapped, part.at(i))[0]
            largest = max(largest, int(ids.max(initial=0)))
    if "vocabulary" in loaded:
        return from_vocabulary(
            [as_string(word, "vocabulary") for word in loaded["vocabulary"]], largest
        )
    return from_bert(*PRETRAINED.get(dataset or "", ("", 0)), largest)


def _rows(parts: dict[str, Part]) -> Iterator[tuple[str, tuple[str, int]]]:
    for split, part in parts.items():
        for i in range(len(part.ids)):
            yield split, (split, i)


def _sample(content: Content, row: tuple[str, int], repairs: Counter[str]) -> Sample:
    split, i = row
    part = content.parts[split]
    arrays = _text(content, part, i, repairs)
    arrays |= _frames(content, part, i, repairs)
    for name, column in part.labels.items():
        arrays[name] = np.array(
            check_label(column[i], content.labels, f"{part.at(i)}: {name}"), "<f4"
        )
    extra: dict[str, Any] = {}
    if "$_$" in part.ids[i]:
        extra["video"] = part.ids[i].partition("$_$")[0]
    if "annotations" in part.columns:
        extra["annotation"] = as_string(
            part.columns["annotations"][i], f"{part.at(i)}: annotations"
        )
    text = (
        as_string(part.columns["raw_text"][i], f"{part.at(i)}: raw_text")
        if "raw_text" in part.columns
        else None
    )
    return Sample(
        part.ids[i], {name: arrays[name] for name in content.fields if name in arrays}, text, extra
    )


def _text(content: Content, part: Part, i: int, repairs: Counter[str]) -> dict[str, np.ndarray]:
    """Token ids, where the data set has them; features are frames like others."""
    if content.text == "tokenize" and content.tokenizer is not None:
        ids = content.tokenizer.encode(
            as_string(part.columns["raw_text"][i], f"{part.at(i)}: raw_text"), repairs
        )
    elif content.text == "tokens":
        rows, mask, kinds = _token_rows(part.columns["text_bert"][i], content.swapped, part.at(i))
        used = np.flatnonzero(mask)
        if len(used) and used[-1] - used[0] + 1 != len(used):
            raise DataError(
                f"{part.at(i)}: the attention mask of text_bert has holes: {mask.tolist()}"
            )
        if kinds[used].any():
            raise DataError(
                f"{part.at(i)}: token types of text_bert are {kinds.tolist()}; only 0 is read"
            )
        ids = rows[used].astype("<i4")
        repairs["text_bert entries of shape (L, 3), turned"] += content.swapped
        repairs["text_bert entries padded on the left, moved"] += bool(len(used) and used[0] > 0)
    else:
        return {}
    return {"text": ids} if len(ids) else {}


def _token_rows(value: Any, swapped: bool, where: str) -> np.ndarray:
    """Token ids, mask and types as (3, L) int64."""
    rows = as_numbers(value, "f8", f"{where}: text_bert")
    rows = rows.T if swapped else rows
    if rows.ndim != 2 or len(rows) != 3:
        raise DataError(
            f"{where}: text_bert has shape {rows.shape}; it must be (3, L): ids, mask, types"
        )
    if (
        not np.isfinite(rows).all()
        or (rows != np.round(rows)).any()
        or (rows < 0).any()
        or (rows >= 2**31).any()
    ):
        raise DataError(
            f"{where}: text_bert holds {rows[~_is_id(rows)][0]:g}, which is no token id"
        )
    if (rows[1] > 1).any():
        raise DataError(
            f"{where}: the attention mask of text_bert holds {rows[1].max():g}; it must be 0 or 1"
        )
    return rows.astype(np.int64)


def _is_id(rows: np.ndarray) -> np.ndarray:
    return np.isfinite(rows) & (rows == np.round(rows)) & (rows >= 0) & (rows < 2**31)


def _frames(content: Content, part: Part, i: int, repairs: Counter[str]) -> dict[str, np.ndarray]:
    """Frames without their padding. A modality that is zero throughout is one that the sample lacks."""
    whole: dict[str, np.ndarray] = {}
    extents: dict[str, tuple[int, int]] = {}
    for m in content.left:
        if m not in part.columns:
            continue
        frames = as_frames(part.columns[m][i], f"{part.at(i)}: {m}")
        check_width(frames, content.fields[m], f"{part.at(i)}: {m}")
        start, stop, size = _extent(frames)
        if stop == 0:
            continue
        left = content.left[m]
        repairs[f"{m} sequences padded on the left, moved"] += left and start > 0
        whole[m], extents[m] = frames, (start, size) if left else (0, stop)
        if m in part.lengths:
            length = extents[m][1] - extents[m][0]
            repairs[f"{m} lengths not as stored, counted again"] += bool(
                part.lengths[m][i] != length
            )
    if "text_bert" in part.columns and (content.aligned or "text" in whole):
        # A frozen encoder's output is not zero where padded, and aligned frames end with the text's [SEP].
        used = np.flatnonzero(
            _token_rows(part.columns["text_bert"][i], content.swapped, part.at(i))[1]
        )
        if len(used):
            extents["text"] = int(used[0]), int(used[-1]) + 1
    if content.aligned and extents:
        common = (
            min(start for start, _ in extents.values()),
            max(stop for _, stop in extents.values()),
        )
        extents = dict.fromkeys(extents, common)
    return {m: finite(frames[slice(*extents[m])], m, repairs) for m, frames in whole.items()}
