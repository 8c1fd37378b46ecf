"""What sentiment data may hold: the one declaration that every door asks.

``check_fields`` and ``check_manifest`` are about a data set, ``check_sample`` about each of its
samples. Converting asks them of what it writes, indexing of what it finds, training of the manifest
before it begins, inspecting and verifying of what lies there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any

import numpy as np

from data_shards.shards.manifest import DataError, Field, Labels, Manifest
from data_shards.shards.manifest_facts import LARGEST_ID
from data_shards.shards.single_values import as_number

TARGETS = ("label", "class")  # every sample has one of them
VIEW = "label_"  # begins the name of a label of one modality
TEXT = "text"  # the only modality that may hold token ids
MODALITY = re.compile(r"(?!label)[A-Za-z][A-Za-z0-9_-]*")
_BERT_ROWS = 3  # ids, mask, types
_LEAVE_OUT = "write the tars anew, or leave it out with --leave-out {name}"


@dataclass(frozen=True)
class Rules:
    """What is known of a data set when its samples are checked."""

    labels: Labels | None  # None: their range is still to be measured
    vocabulary: int = LARGEST_ID  # token ids are below it

    @staticmethod
    def of(labels: Labels | None, tokenizer: Mapping[str, Any] | None) -> Rules:
        size = int((tokenizer or {}).get("vocab_size", 0))
        return Rules(labels, size or LARGEST_ID)


def is_label(name: str) -> bool:
    """Whether a field holds one number per sample to learn, not a modality."""
    return name in TARGETS or name.startswith(VIEW)


def are_token_ids(name: str, dtype: str) -> bool:
    """Whether a field holds numbers of tokens."""
    return name == TEXT and np.dtype(dtype).kind in "iu"


def shape_as_read(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape in which the numbers of an array are read: a label of shape (1,) is one number, a
    vector is one frame, and an array without numbers is what the sample lacks (None)."""
    numbers = int(np.prod(shape, dtype=float))
    if is_label(name):
        return () if numbers == 1 else shape
    if numbers == 0:
        return None
    is_vector = len(shape) == 1 and np.dtype(dtype).kind == "f"
    return (1, *shape) if is_vector else shape


def field_of(name: str, dtype: str, shape: tuple[int, ...]) -> Field:
    """The field that an array of this shape is one of."""
    if is_label(name):
        return Field(dtype, ())
    if are_token_ids(name, dtype):
        return Field(dtype, (*shape[:-1], None))
    return Field(dtype, (None, *shape[1:]))


def check_field(name: str, field: Field, where: str, targets: int = 0) -> None:
    """DataError unless a model can take the field as it is.

    Args:
        targets: how many numbers a label is; 0 where it is no vector.
    """
    kind = np.dtype(field.dtype).kind
    found = f"{where}: {name!r} is {field.dtype} of shape {_shown(field.shape)}"
    advice = _LEAVE_OUT.format(name=quote(name))
    if name == "class" and (kind not in "iu" or field.shape):
        raise DataError(
            f"{found}; a class is one whole number: write np.int64(NUMBER), or call it 'label' if it is a score"
        )
    expected = (targets,) if targets else ()
    if name == "label" and (kind not in "fiu" or field.shape != expected):
        if targets:
            raise DataError(f"{found}; it has {targets} targets, so labels are ({targets},)")
        raise DataError(f"{found}; a label is one number: write np.float32(SCORE)")
    if name.startswith(VIEW) and (kind != "f" or field.shape):
        raise DataError(f"{found}; a label of one modality is one float: {advice}")
    if is_label(name):
        return
    if not MODALITY.fullmatch(name):
        raise DataError(f"{where}: {name!r} cannot be the name of a modality; {advice}")
    if field.media is not None:
        if name == TEXT:
            raise DataError(f"{found}; text cannot be media: {advice}")
        return
    if are_token_ids(name, field.dtype):
        if field.shape not in ((None,), (_BERT_ROWS, None)):
            raise DataError(f"{found}; token ids are (T,), or (3, T) with mask and types: {advice}")
        return
    is_frames = len(field.shape) == 2 and field.shape[0] is None and bool(field.shape[1])
    if kind != "f" or not is_frames:
        raise DataError(
            f"{found}; frames are floats of shape (T, D), and only 'text' may hold token ids: {advice}"
        )


def check_fields(fields: Mapping[str, Field], labels: Labels, where: str) -> None:
    """DataError unless these are fields of sentiment data with labels of this kind."""
    targets = [name for name in TARGETS if name in fields]
    if len(targets) != 1:
        both = "both 'label' and 'class'" if targets else "neither 'label' nor 'class'"
        advice = "leave one out" if targets else f"it has {', '.join(fields) or 'nothing'}"
        raise DataError(f"{where} has {both}, and samples have exactly one of them; {advice}")
    expected = "class" if labels.kind == "classes" else "label"
    if targets[0] != expected:
        raise DataError(
            f"{where} holds {targets[0]!r}, but its labels are said to be {labels.kind}; "
            "convert the data again, or remove the manifest and index the tars again"
        )
    num_targets = len(labels.names) if labels.kind == "regression" else 0
    for name, field in fields.items():
        check_field(name, field, where, num_targets)


def check_manifest(manifest: Manifest, where: str) -> None:
    """DataError unless sentiment can be learnt from what the manifest says."""
    check_fields(manifest.fields, manifest.labels, where)
    again = "convert the data again, or remove the manifest and index the tars again"
    modalities = {name: field for name, field in manifest.fields.items() if not is_label(name)}
    tokens, frames = [], []
    for name, field in modalities.items():
        if are_token_ids(name, field.dtype):
            tokens.append(name)
        elif field.media is None:
            frames.append(name)
    if tokens and not (manifest.tokenizer or {}).get("vocab_size"):
        raise DataError(f"{where}: the vocabulary of its token ids is not known; {again}")
    # one that no train sample has is unknown to every door; that all are is an older index
    if frames and not manifest.moments:
        raise DataError(f"{where}: the mean of {frames[0]!r} over train frames is missing; {again}")


def check_sample(arrays: Mapping[str, np.ndarray], rules: Rules, where: str) -> None:
    """DataError for the first thing in a sample that a model would learn wrongly."""
    targets = [name for name in TARGETS if name in arrays]
    if len(targets) != 1:
        has = "both a label and a class" if targets else "neither a label nor a class"
        raise DataError(f"{where}: has {has}; give it one of them, or remove the sample")
    labels = rules.labels
    if labels is not None and labels.kind != ("classes" if "class" in arrays else "regression"):
        labels = None  # that they are of another kind is said of the data set, not of a sample
    for name, array in arrays.items():
        of_field = f"{where}: {name}"
        if name == "class":
            _check_class(array, labels, of_field)
        elif name == "label" and array.ndim:
            for number, value in enumerate(array.reshape(-1)):
                check_label(value, labels, f"{of_field}, target {number}")
        elif is_label(name):
            check_label(array[()], labels, of_field)
        elif are_token_ids(name, array.dtype.name):
            _check_tokens(array, rules.vocabulary, of_field)
        elif array.dtype.kind == "f":
            _check_finite(array, of_field)


def check_label(value: Any, labels: Labels | None, where: str) -> np.float32:
    """The label as float32; outside of its range, not finite, or no number at all, is refused."""
    label = as_number(value, where)
    if not abs(label) <= np.finfo(np.float32).max:
        raise DataError(f"{where}: {label:g} is no finite number; correct it, or remove the sample")
    if labels is None:
        return np.float32(label)
    slack = 1e-6 * (labels.high - labels.low)  # float32 labels were rounded
    if not labels.low - slack <= label <= labels.high + slack:
        raise DataError(
            f"{where}: {label:g} is outside the label range {labels.low:g} to {labels.high:g}; "
            "correct it, or state the range with --labels LOW:HIGH"
        )
    return np.float32(label)


def _check_class(array: np.ndarray, labels: Labels | None, where: str) -> None:
    number = int(array)
    if number < 0:
        raise DataError(f"{where}: {number} is no number of a class; they count from 0")
    if labels is not None and number >= len(labels.names):
        last = len(labels.names) - 1
        raise DataError(
            f"{where}: {number}, but there are only classes 0 to {last} "
            f"({', '.join(labels.names)}); name all of them"
        )


def _check_tokens(array: np.ndarray, vocabulary: int, where: str) -> None:
    """Token ids (T,), or (3, T): ids, mask and types."""
    ids = array
    if array.ndim == 2:
        if len(array) != _BERT_ROWS:
            raise DataError(f"{where}: shape {array.shape}; token ids are (T,) or (3, T)")
        ids, mask, types = array
        if (mask != 1).any():
            raise DataError(
                f"{where}: its mask marks padding; write ids at their true length, (T,)"
            )
        if types.any():
            raise DataError(f"{where}: token types other than 0; only 0 is read")
    is_wrong = (ids < 0) | (ids >= vocabulary)
    if is_wrong.any():
        at = int(np.argmax(is_wrong))
        raise DataError(
            f"{where}: token {at} is {int(ids[at])}, outside the vocabulary of {vocabulary} tokens"
        )


def _check_finite(frames: np.ndarray, where: str) -> None:
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(frames.astype(np.float32, copy=False))  # as models read them
    if not is_finite.all():
        first = tuple(int(at) for at in np.argwhere(~is_finite)[0])
        count = int((~is_finite).sum())
        raise DataError(
            f"{where}: {frames[first]:g} at {first}, one of {count} numbers that are not finite; "
            "set them to 0 where the array is written"
        )


def _shown(shape: tuple[int | None, ...]) -> str:
    extents = ["T" if extent is None else str(extent) for extent in shape]
    return f"({', '.join(extents)}{',' if len(extents) == 1 else ''})"
