"""Arrays from a sentiment shard as the batch that models receive."""

from __future__ import annotations

import torch
from torch import Tensor

from core.batch import Utterances
from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import DataError

LABELS = ("label", "label_text", "label_audio", "label_vision", "class")


def utterances(part: Arrays) -> Utterances:
    """``part`` as utterances: the label, human labels per view (nan where there is none), every other field a modality.

    Token ids come as (B, 3, T) int32 from the shards (ids, mask, segment) or as (B, T); only the ids are kept, int64.
    """
    label = part.arrays.get("label", part.arrays.get("class"))
    if label is None:
        raise DataError(
            f"sentiment shards need a field 'label' or 'class', these have {sorted(part.arrays)}"
        )
    frames: dict[str, Tensor] = {}
    mask: dict[str, Tensor] = {}
    for name, array in part.arrays.items():
        if name in LABELS:
            continue
        if name not in part.lengths:
            raise DataError(
                f"field {name!r} has no time axis, so it is no modality; choose others with fields="
            )
        frames[name], mask[name] = _frames(array, part.lengths[name])
    views = {name[6:]: part.arrays[name].float() for name in LABELS[1:4] if name in part.arrays}
    return Utterances(
        index=part.index,
        weight=part.weight,
        loss_scale=part.loss_scale,
        label=label.float(),
        frames=frames,
        mask=mask,
        present=mask,
        view_labels=views,
    )


def _frames(array: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (B, T, D) float32 or token ids (B, T) int64, and their mask (B, T)."""
    tokens = (
        not array.dtype.is_floating_point and array.ndim == 3
    )  # (B, 3, T): ids, mask and segment of BERT
    if tokens:
        array = array[:, 0]
    mask = torch.arange(array.shape[1]) < length[:, None]  # (B, T)
    return array.float() if array.dtype.is_floating_point else array.long(), mask
