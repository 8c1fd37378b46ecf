"""A model by its name, for data whose sound and pictures may be stored as they are: then encoders
stand in front of it, and the model itself reads their frames like any others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from core.batch import Utterances
from core.encoders.backbones.media_encoders import (
    MediaEncoder,
    encoded_spec,
    media_encoders,
    refuse_unencoded,
)
from core.encoders.inputs import one_frame
from core.model import DataSpec, Model
from core.models import MODELS


def build_model(name: str, options: Any, data: DataSpec) -> Model[Any, Any]:
    """The model ``name`` for these data.

    Raises:
        ValueError: what the model refuses; media without an encoder, or the other way round.
    """
    kind = MODELS[name]
    inputs = getattr(options, "inputs", None)
    if inputs is None:  # of graphs
        return kind(options, data)
    refuse_unencoded(getattr(options, "modalities", tuple(data.media)), inputs, data)
    encoders = media_encoders(inputs, data)
    if not encoders:
        return kind(options, data)
    model = kind(options, encoded_spec(data, encoders))
    reader: Any = model.inputs
    unread = [role for role in encoders if role not in reader.modalities]
    if unread:
        raise ValueError(
            f"options.{unread[0]}.source is given, and {name} does not read {unread[0]}; leave it "
            "out, or name it in options.modalities"
        )
    model.media_encoders = nn.ModuleDict(encoders)
    model.register_forward_pre_hook(_encode)
    return model


def _encode(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Before the forward of a model: its batch with frames in place of sound and pictures."""
    batch, *others = arguments
    encoders: Any = model.media_encoders
    return (encoded(batch, dict(encoders.items())), *others)


def encoded(batch: Utterances, encoders: dict[str, MediaEncoder]) -> Utterances:
    """The batch with each encoder's frames and their mask.

    What was dropped on purpose is silent, or black, before it is encoded. A modality of which a
    sample has nothing left counts as absent.
    """
    frames, masks = dict(batch.frames), dict(batch.mask)
    present = dict(batch.present)
    for role, encoder in encoders.items():
        raw, mask = one_frame(batch.frames[role]), one_frame(batch.mask[role])
        is_left = one_frame(batch.present[role])
        mask = mask & is_left.any(1, keepdim=True)
        raw = _without(raw, mask & ~is_left)
        frames[role], masks[role] = encoder(raw, mask)
        present[role] = masks[role]
    return replace(batch, frames=frames, mask=masks, present=present)


def _without(raw: Tensor, dropped: Tensor) -> Tensor:
    return raw.masked_fill(dropped[..., None], 0)
