"""The MMSA ``.pkl`` layout: one dict per file, in it one dict per split, in it one list or array
per kind of data.

All its variants are read: MOSI, MOSEI, SIMS (with human labels per modality) and SIMSv2; aligned
and unaligned; lists and arrays; zero padding on either side; the (N, L, 3) order of token ids that
some extractors write; ids as bytes or nested arrays; MulT's originals, whose labels are called
``labels``. What each key means: docs/data.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.shards.label_statistics import known_resolution
from data_shards.shards.manifest import DataError, Field, Labels, Sample
from data_shards.shards.sentiment_schema import check_label
from data_shards.shards.split_names import SPLITS, split_called
from data_shards.sources.mmsa_arrays import (
    SEQUENCES,
    Part,
    assumed_dataset,
    is_aligned,
    largest_token_id,
    pads_left,
    token_ids_are_swapped,
    token_rows,
    used_extent,
    widths_of,
)
from data_shards.sources.raw_dataset import (
    KnownDataset,
    Options,
    RawDataset,
    as_string,
    check_width,
    file_facts,
    finite,
    stated_labels,
)
from data_shards.sources.tokens import (
    TextKind,
    Tokenizer,
    chosen_text,
    from_bert,
    from_vocabulary,
    words_of,
)

COLUMNS = ("text_bert", "text", *SEQUENCES, "raw_text", "annotations")
VIEWS = {"T": "text", "A": "audio", "V": "vision"}  # of labels per modality
FIELD_ORDER = ("text", *SEQUENCES, "label", "label_text", "label_audio", "label_vision")
# The tokenizers that made the published token ids, and the sizes of their vocabularies.
PRETRAINED = {
    "mosi": ("bert-base-uncased", 30522),
    "mosei": ("bert-base-uncased", 30522),
    "sims": ("bert-base-chinese", 21128),
    "simsv2": ("bert-base-chinese", 21128),
}


@dataclass(frozen=True)
class Content:
    """The whole file, and what was found out about it."""

    parts: dict[str, Part]
    labels: Labels
    text: TextKind
    swapped: bool  # token ids are (L, 3) instead of (3, L)
    left: dict[str, bool]  # modality of frames -> padding stands on the left
    aligned: bool  # all modalities share one time axis
    fields: dict[str, Field]
    tokenizer: Tokenizer | None


def read(raw: Path, loaded: Any, options: Options) -> RawDataset:
    """An MMSA ``.pkl``, checked as far as that needs no look at every frame.

    Args:
        loaded: what the pickle holds.
    """
    parts, left_out = _parts(loaded, raw)
    widths = widths_of(parts)
    assumed = None if options.dataset else assumed_dataset(raw, widths)
    dataset = options.dataset or (assumed.dataset if assumed else None)
    labels = _labels(raw, parts, dataset, options)
    if assumed and not options.labels:
        assumed.check(raw, [value for part in parts.values() for value in part.labels["label"]])
    in_all_splits = set.intersection(*(set(part.columns) for part in parts.values()))
    text, tokenizer = chosen_text(
        options, str(raw), ids="text_bert", raw="raw_text", features="text", has=in_all_splits
    )
    if text != "features":
        widths.pop("text", None)
    modalities = list(widths)
    content = Content(
        parts=parts,
        labels=labels,
        text=text,
        swapped="text_bert" in in_all_splits and token_ids_are_swapped(parts),
        left={m: pads_left(parts, m) for m in modalities},
        aligned=is_aligned(parts["train"], modalities),
        fields=_fields(text, widths, list(parts["train"].labels)),
        tokenizer=tokenizer,
    )
    synthetic = bool(loaded.get("synthetic", False))
    if synthetic:
        dataset = assumed = None  # it only looks like one
    facts = file_facts(raw)
    facts |= {"layout": "mmsa", "dataset": dataset, "aligned": content.aligned}
    if left_out:
        # a key of the file may be any string, also one that no file can hold
        facts["left out"] = [key.encode("utf-8", "replace").decode() for key in left_out]
    if assumed:
        facts["assumed"] = assumed.describe(labels, is_stated=options.labels is not None)
    return RawDataset(
        name=options.name or dataset or raw.stem,
        task="sentiment",
        fields=content.fields,
        labels=labels,
        counts={split: len(part) for split, part in parts.items()},
        rows=partial(_rows, parts),
        sample=partial(_sample, content),
        facts=facts,
        tokenizer=tokenizer.facts
        if tokenizer
        else _tokenizer_of_ids(raw, loaded, content, dataset),
        synthetic=synthetic,
    )


def _parts(loaded: Any, raw: Path) -> tuple[dict[str, Part], list[str]]:
    """The splits in the order train, valid, test, and the names of what else lies in the file."""
    if not isinstance(loaded, dict):
        raise DataError(
            f"{raw} holds a {type(loaded).__name__}, not a dict of splits; "
            "the layout is in docs/data.md"
        )
    keys: dict[str, str] = {}  # split -> what the file calls it
    for key in loaded:
        split = split_called(key)
        if split in keys:
            raise DataError(
                f"{raw}: {keys[split]!r} and {key!r} are both the {split} split; remove one"
            )
        if split is not None:
            keys[split] = key
    if keys.keys() != set(SPLITS):
        hint = ""
        if "train_mix" in loaded:
            hint = (
                "; its 'train_mix' holds clips without labels too, "
                "take the file of the supervised task instead"
            )
        raise DataError(
            f"{raw} needs the splits train, valid and test, "
            f"and has {sorted(map(str, loaded))}{hint}"
        )
    parts = {split: _part(loaded[keys[split]], f"{raw}: {keys[split]}") for split in SPLITS}
    label_names = {tuple(part.labels) for part in parts.values()}
    if len(label_names) > 1:
        raise DataError(f"{raw}: the splits have different labels: {sorted(label_names)}")
    known = {*keys.values(), "synthetic", "vocabulary"}
    return parts, sorted(str(key) for key in loaded if key not in known)


def _part(content: Any, where: str) -> Part:
    if not isinstance(content, dict):
        raise DataError(
            f"{where} is a {type(content).__name__}, not a dict; the layout is in docs/data.md"
        )
    label_key = "regression_labels"
    if "labels" in content:
        if label_key in content:
            raise DataError(
                f"{where} has both 'labels' and {label_key!r}; remove the one that is not meant"
            )
        label_key = "labels"
    for needed in (label_key, "id"):
        if needed not in content:
            raise DataError(
                f"{where} has no {needed!r}, only {sorted(map(str, content))}; "
                "the layout is in docs/data.md"
            )
    ids = []
    for i, value in enumerate(_column(content, "id", where)):
        ids.append(_id(value, f"{where}: id of sample {i}"))
    if not ids:
        raise DataError(f"{where} holds no samples")
    labels = {"label": _numbers(content, label_key, where, len(ids))}
    for letter, view in VIEWS.items():
        key = f"regression_labels_{letter}"
        if key in content:
            labels[f"label_{view}"] = _numbers(content, key, where, len(ids))
    columns = {}
    for name in COLUMNS:
        if content.get(name) is not None:
            columns[name] = _column(content, name, where, len(ids))
    lengths = {}
    for modality in SEQUENCES:
        if f"{modality}_lengths" in content:
            lengths[modality] = _numbers(content, f"{modality}_lengths", where, len(ids))
    return Part(where, ids, labels, columns, lengths)


def _column(
    content: dict[str, Any], name: str, where: str, count: int | None = None
) -> Sequence[Any]:
    """What stands under ``name``: a list or array, one entry per sample."""
    column = content[name]
    is_scalar = isinstance(column, np.ndarray) and column.ndim == 0
    if is_scalar or not isinstance(column, list | tuple | np.ndarray):
        raise DataError(f"{where}: {name!r} is a {type(column).__name__}, not one entry per sample")
    if count is not None and len(column) != count:
        raise DataError(f"{where}: {name!r} has {len(column)} entries for {count} ids")
    # an array is a sequence in all that is done with it here
    return column  # type: ignore[return-value]


def _id(value: Any, where: str) -> str:
    """``video$_$clip``; MulT's arrays [video, start, end] are joined in the same way."""
    if isinstance(value, np.ndarray | list | tuple):
        return "$_$".join([as_string(item, where) for item in value])
    return as_string(value, where)


def _numbers(content: dict[str, Any], name: str, where: str, count: int) -> Sequence[Any]:
    """One number per sample from a list, an array (N,), or MulT's (N, 1, 1)."""
    column = _column(content, name, where, count)
    if isinstance(column, np.ndarray):
        if column.size != len(column):
            raise DataError(
                f"{where}: {name!r} has shape {column.shape}; one number per sample is read"
            )
        return column.reshape(-1).tolist()
    numbers = []
    for value in column:
        is_array_of_one = isinstance(value, np.ndarray) and value.size == 1
        numbers.append(value.item() if is_array_of_one else value)
    return numbers


def _labels(
    raw: Path, parts: dict[str, Part], dataset: KnownDataset | None, options: Options
) -> Labels:
    """The label range: stated, or that of the data set; then every label is checked against it."""
    labels = stated_labels(raw, options, dataset)
    for part in parts.values():
        for name, column in part.labels.items():
            for i, value in enumerate(column):
                check_label(value, labels, f"{part.describe(i)}: {name}")
    values = [np.asarray(part.labels["label"], float) for part in parts.values()]
    return known_resolution(labels, np.concatenate(values))


def _fields(text: TextKind, widths: dict[str, int], labels: list[str]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    if text in ("tokens", "tokenize"):
        fields["text"] = Field("int32", (None,))
    for modality, width in widths.items():
        fields[modality] = Field("float32", (None, width))
    for name in labels:
        fields[name] = Field("float32", ())
    return {name: fields[name] for name in FIELD_ORDER if name in fields}


def _tokenizer_of_ids(
    raw: Path, loaded: dict[str, Any], content: Content, dataset: KnownDataset | None
) -> dict[str, Any] | None:
    """What is known of the tokenizer that made the ids in the file."""
    if content.text != "tokens":
        return None
    largest = largest_token_id(content.parts, content.swapped)
    if "vocabulary" in loaded:
        where = f"{raw}: vocabulary"
        return from_vocabulary(words_of(loaded["vocabulary"], where), largest, where)
    name, size = PRETRAINED.get(dataset or "", ("", 0))
    return from_bert(name, size, largest)


def _rows(parts: dict[str, Part]) -> Iterator[tuple[str, tuple[str, int]]]:
    for split, part in parts.items():
        for i in range(len(part)):
            yield split, (split, i)


def _sample(content: Content, row: tuple[str, int], repairs: Counter[str]) -> Sample:
    split, i = row
    part = content.parts[split]
    where = part.describe(i)
    text = None
    if "raw_text" in part.columns:
        text = as_string(part.columns["raw_text"][i], f"{where}: raw_text")
    arrays: dict[str, np.ndarray] = {}
    token_ids = _token_ids(content, part, i, text, repairs)
    if len(token_ids):
        arrays["text"] = token_ids
    arrays |= _frames(content, part, i, repairs)
    for name, column in part.labels.items():
        label = check_label(column[i], content.labels, f"{where}: {name}")
        arrays[name] = np.array(label, "<f4")
    extra: dict[str, Any] = {}
    video, separator, _ = part.ids[i].partition("$_$")
    if separator:
        extra["video"] = video
    if "annotations" in part.columns:
        extra["annotation"] = as_string(part.columns["annotations"][i], f"{where}: annotations")
    in_order = {name: arrays[name] for name in content.fields if name in arrays}
    return Sample(part.ids[i], in_order, text, extra)


def _token_ids(
    content: Content, part: Part, i: int, text: str | None, repairs: Counter[str]
) -> np.ndarray:
    """Token ids (T,) int32 without padding; empty where the data set has none, or this sample."""
    if content.text == "tokenize" and content.tokenizer is not None and text is not None:
        return content.tokenizer.encode(text, repairs)
    if content.text != "tokens":
        return np.empty(0, "<i4")
    where = part.describe(i)
    rows = token_rows(part, i, content.swapped)
    used = rows.used()
    if len(used) and used[-1] - used[0] + 1 != len(used):
        raise DataError(f"{where}: the attention mask of text_bert has holes: {rows.mask.tolist()}")
    if rows.types[used].any():
        raise DataError(
            f"{where}: token types of text_bert are {rows.types.tolist()}; only 0 is read"
        )
    padded_left = bool(len(used) and used[0] > 0)
    repairs["text_bert entries of shape (L, 3), turned"] += content.swapped
    repairs["text_bert entries padded on the left, moved"] += padded_left
    return rows.ids[used].astype("<i4")


def _frames(content: Content, part: Part, i: int, repairs: Counter[str]) -> dict[str, np.ndarray]:
    """Modality -> frames (T, D) without padding. One of zeros only is one that the sample lacks."""
    padded: dict[str, np.ndarray] = {}
    extents: dict[str, tuple[int, int]] = {}  # modality -> first frame, end
    for modality in content.left:
        if modality not in part.columns:
            continue
        frames = part.frames(modality, i)
        check_width(frames, content.fields[modality], f"{part.describe(i)}: {modality}")
        extent = _extent(content, part, i, modality, frames, repairs)
        if extent is not None:
            padded[modality] = frames
            extents[modality] = extent
    if "text_bert" in part.columns and (content.aligned or "text" in padded):
        # The mask says more than zeros do: a frozen encoder's output is not zero where padded, and
        # aligned frames end with the text's [SEP].
        used = token_rows(part, i, content.swapped).used()
        if len(used):
            extents["text"] = int(used[0]), int(used[-1]) + 1
    if content.aligned and extents:
        first = min(start for start, _ in extents.values())
        end = max(stop for _, stop in extents.values())
        extents = dict.fromkeys(extents, (first, end))
    unpadded = {}
    for modality, frames in padded.items():
        start, stop = extents[modality]
        unpadded[modality] = finite(frames[start:stop], modality, repairs)
    return unpadded


def _extent(
    content: Content, part: Part, i: int, modality: str, frames: np.ndarray, repairs: Counter[str]
) -> tuple[int, int] | None:
    """First frame and end of what is not padding; None where all is zero."""
    start, stop = used_extent(frames)
    if stop == 0:
        return None
    # zeros at the other end are data, such as a face that was not found
    if content.left[modality]:
        extent = (start, len(frames))
        repairs[f"{modality} sequences padded on the left, moved"] += start > 0
    else:
        extent = (0, stop)
    if modality in part.lengths:
        length = extent[1] - extent[0]
        differs = bool(part.lengths[modality][i] != length)
        repairs[f"{modality} lengths not as stored, counted again"] += differs
    return extent
