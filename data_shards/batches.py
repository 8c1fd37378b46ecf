"""Arrays from a sentiment shard as the batch that models receive."""

from __future__ import annotations

import torch
from torch import Tensor

from core.batch import Utterances
from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import DataError
from data_shards.shards.sentiment_schema import TEXT, VIEW, is_label


def utterances(micro_batch: Arrays) -> Utterances:
    """The samples as utterances: the label, human labels per view (nan where there is none), every
    other field a modality.

    Token ids come as (B, 3, T) int32 from the shards (ids, mask, segment) or as (B, T); only the
    ids are kept, int64. Pictures stay bytes, (B, T, 3 * side * side) uint8.
    """
    arrays, lengths = micro_batch.arrays, micro_batch.lengths
    label = arrays.get("label", arrays.get("class"))
    if label is None:
        raise DataError(
            f"sentiment shards need a field 'label' or 'class', these have {sorted(arrays)}"
        )
    frames: dict[str, Tensor] = {}
    mask: dict[str, Tensor] = {}
    unimodal_labels: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if name.startswith(VIEW):
            unimodal_labels[name.removeprefix(VIEW)] = array.float()
        if is_label(name):
            continue
        if name not in lengths:
            raise DataError(
                f"field {name!r} has no time axis, so it is no modality; choose others with fields="
            )
        if array.dtype == torch.uint8 and name != TEXT:  # pictures
            frames[name] = array
            mask[name] = torch.arange(array.shape[1]) < lengths[name][:, None]
            continue
        frames[name], mask[name] = _frames(array, lengths[name])
    return Utterances(
        index=micro_batch.index,
        weight=micro_batch.weight,
        loss_scale=micro_batch.loss_scale,
        label=label.float(),
        frames=frames,
        mask=mask,
        present=mask,
        unimodal_labels=unimodal_labels,
    )


def _frames(array: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (B, T, D) float32 or token ids (B, T) int64, and their mask (B, T)."""
    is_integer = not array.dtype.is_floating_point
    if is_integer and array.ndim == 3:  # (B, 3, T): ids, mask and segment of BERT
        array = array[:, 0]
    mask = torch.arange(array.shape[1]) < length[:, None]  # (B, T)
    return array.long() if is_integer else array.float(), mask
