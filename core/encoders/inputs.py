"""Frames as the encoders want them: standardised, zero where padded, and with dropped frames
hidden."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Literal, get_args

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.encoders.backbones.media_encoders import EncoderConfig
from core.model import DataSpec
from core.names import suggest, unknown_names

Role = Literal["text", "audio", "vision"]
MODALITIES: tuple[Role, ...] = get_args(Role)


def _checked_role(name: object) -> object:
    """``name`` where it is a role; for settings of models whose formulas tell sound from video."""
    if name in MODALITIES:
        return name
    raise ValueError(
        f"this model reads roles, which should be 'text', 'audio' or 'vision'{suggest(str(name), MODALITIES)}; "
        f"a field of another name gets one of them with roles.vision={name}"
    )


# of models that treat sound and video differently; others take any names, as ``tuple[str, ...]``
Modality = Annotated[Role, BeforeValidator(_checked_role)]


@validated_dataclass(frozen=True)
class InputConfig:
    """What happens to frames before any encoder sees them."""

    # float features: by mean and standard deviation of the train frames, where known
    standardise: bool = True
    # standardised values further out are cut to this (COVAREP has spikes of 450); 0: none
    clip: NonNegativeFloat = 10.0
    # token that stands for a dropped one; -1: DataSpec.unknown_id
    unknown_id: Annotated[int, Field(ge=-1)] = -1
    # what makes frames of sound and pictures that the data hold as they are
    audio: EncoderConfig = EncoderConfig()
    vision: EncoderConfig = EncoderConfig()


DEFAULT_INPUTS = InputConfig()


class Inputs(nn.Module):
    """Standardises float features and hides what ``present`` marks as dropped.

    A dropped token becomes the unknown token, a dropped frame becomes zero, which after
    standardising is the mean frame. A modality of which a sample has nothing left counts as absent:
    its mask becomes all False. A feature that never varies on the train frames becomes zero, for it
    would be divided by zero.
    """

    def __init__(
        self,
        data: DataSpec,
        settings: InputConfig = DEFAULT_INPUTS,
        modalities: Iterable[str] = MODALITIES,
    ):
        super().__init__()
        self.clip = settings.clip
        self.unknown_id = data.unknown_id if settings.unknown_id < 0 else settings.unknown_id
        self.modalities = tuple(modalities)
        _refuse_modalities(self.modalities, data)
        if data.vocab_size and self.unknown_id >= data.vocab_size:
            raise ValueError(
                f"unknown_id {self.unknown_id} is outside the vocabulary of {data.vocab_size} tokens"
            )
        self.scaled: list[str] = []
        for m in self.modalities:
            are_features = data.features[m] > 0  # 0: token ids
            if settings.standardise and are_features and m in data.moments:
                self._register_moments(m, data)
                self.scaled.append(m)

    def _register_moments(self, m: str, data: DataSpec) -> None:
        # on the CPU even in a sketch of the model: their values are looked at here
        numbers = partial(torch.tensor, dtype=torch.float32, device="cpu")
        mean, std = map(numbers, data.moments[m])
        if mean.shape != (data.features[m],) or std.shape != mean.shape:
            raise ValueError(
                f"{m} has {data.features[m]} features, but moments of {len(mean)} and {len(std)}"
            )
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(f"the moments of {m} are not finite; convert the data again")
        flat = std <= 1e-6 * (1 + mean.abs())
        self.register_buffer(f"{m}_mean", mean)
        self.register_buffer(f"{m}_scale", torch.where(flat, 0, 1 / std))

    def forward(self, batch: Utterances) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Frames with the dropped ones hidden, and masks, by modality; each at least one frame
        long."""
        frames = self.complete(batch)
        masks = {}
        for m in self.modalities:
            mask, present = one_frame(batch.mask[m]), one_frame(batch.present[m])
            hidden = mask & ~present
            if frames[m].is_floating_point():
                frames[m] = frames[m].masked_fill(hidden[..., None], 0)
            else:
                frames[m] = frames[m].masked_fill(hidden, self.unknown_id)
            masks[m] = mask & present.any(1, keepdim=True)  # (B, T)
        return frames, masks

    def complete(self, batch: Utterances) -> dict[str, Tensor]:
        """Standardised frames by modality, nothing hidden; each at least one frame long."""
        frames = {}
        for m in self.modalities:
            values, mask = one_frame(batch.frames[m]), one_frame(batch.mask[m])
            if m in self.scaled:
                mean, scale = self.get_buffer(f"{m}_mean"), self.get_buffer(f"{m}_scale")
                values = (values - mean) * scale
                if self.clip:
                    values = values.clamp(-self.clip, self.clip)
            if values.is_floating_point():
                values = values.masked_fill(~mask[..., None], 0)
            frames[m] = values
        return frames


def in_order(modalities: Iterable[str]) -> list[str]:
    """The modalities in the one order that every model goes through them: by their names behind the
    usual ones."""
    chosen = set(modalities)
    usual = [m for m in MODALITIES if m in chosen]
    return [*usual, *sorted(chosen - set(MODALITIES))]


def _refuse_modalities(modalities: tuple[str, ...], data: DataSpec) -> None:
    """ValueError unless the data have each of them once, under a name that a module may have."""
    unknown = unknown_names(modalities, data.features)
    if unknown or not modalities:
        hint = suggest(unknown[0], data.features) if unknown else ""
        raise ValueError(
            f"the model wants the modalities {', '.join(modalities) or '(none)'}, the data has "
            f"{', '.join(data.features)}; choose with options.modalities, or say with roles.vision=NAME which field "
            f"stands for which{hint}"
        )
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"options.modalities={','.join(modalities)} names a modality twice")
    for m in modalities:
        if hasattr(nn.ModuleDict, m):
            raise ValueError(
                f"a modality cannot be called {m!r} here; convert again with --rename {m}=NAME"
            )


def one_frame(tensor: Tensor) -> Tensor:
    """The tensor, at least one frame long: a batch in which nobody has a modality may be 0 frames
    long."""
    if tensor.shape[1]:
        return tensor
    return tensor.new_zeros((tensor.shape[0], 1, *tensor.shape[2:]))


def has_frames(mask: Tensor) -> Tensor:
    """(B,) bool, True where a sample has anything of a modality, from its (B, T) mask."""
    return mask.any(1)


def groups(model: nn.Module, **named: Iterable[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by group: the named ones, those of encoders of sound and pictures as
    "audio_encoder" and "vision_encoder", then all others as "main". Empty groups are left out."""
    by_group = {}
    grouped: set[int] = set()
    encoders = getattr(model, "media_encoders", None)
    for role, encoder in encoders.items() if encoders is not None else ():
        named[f"{role}_encoder"] = encoder.parameters()
    for name, parameters in named.items():
        by_group[name] = [p for p in parameters if p.requires_grad]
        grouped.update(id(p) for p in by_group[name])
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in grouped]
    by_group["main"] = others
    return {name: parameters for name, parameters in by_group.items() if parameters}


def refuse_without_unimodal_labels(data: DataSpec, name: str, modalities: Iterable[str]) -> None:
    """ValueError unless the data have human labels of each of these modalities."""
    lacking = [m for m in modalities if m not in data.unimodal_labels]
    if lacking:
        there = ", ".join(data.unimodal_labels) or "no modality"
        raise ValueError(
            f"{name} learns from human labels of {', '.join(lacking)}, and the data have them of "
            f"{there}; convert data with a column label_{lacking[0]} (CH-SIMS has them), or choose "
            "another model"
        )
