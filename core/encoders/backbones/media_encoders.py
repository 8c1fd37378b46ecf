"""Sound and pictures as they are, encoded within the model: what makes frames of them that every
sentiment model reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import torch
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.encoders.backbones.adaptation import Adaptation
from core.encoders.backbones.loading import architecture, load_backbone
from core.encoders.backbones.picture_backbone import PictureReader, encode_pictures
from core.encoders.backbones.pooling import Pool, Rule
from core.encoders.backbones.sound_backbone import sound_reader
from core.encoders.pretrained import (
    Source,
    load_image_preparation,
    load_sound_preparation,
)
from core.model import DataSpec

FEATURES = "features"
ENCODED = ("audio", "vision")  # the roles that may be encoded, each with settings of its own


@validated_dataclass(frozen=True)
class EncoderConfig(Adaptation):
    """What makes frames of sound or pictures that are stored as they are.

    ``source`` is "features" where the data hold frames already, or path or hub name of a
    transformers encoder.
    """

    source: str = FEATURES
    # of sound: auto leaves all hidden states, the others make one frame of them; of pictures: of the
    # parts of each picture, auto is first
    pool: Rule = "auto"


class MediaEncoder(nn.Module):
    """Sound (B, S, 1) or pictures (B, T, D) to frames (B, T', ``width``) and their mask."""

    def __init__(self, role: str, config: EncoderConfig, data: DataSpec):
        super().__init__()
        self.kind = data.media[role]
        self.frozen = config.train == "none"
        source = Source(config.source, f"options.{role}.source=")
        self.backbone: Any = load_backbone(self, source, config)
        self.width = int(_width_of(self.backbone.config))
        rule = config.pool
        if self.kind == "sound":
            self.preparation: Any = load_sound_preparation(source)
            self.reader: Any = sound_reader(self.backbone, self.preparation, str(source))
            self.pool = None if rule == "auto" else Pool(rule, self.width)
            self._refuse_longer(data.max_length.get(role, 0), source)
        else:
            self.preparation = load_image_preparation(source)
            side = math.isqrt(data.features[role] // 3)
            self.reader = PictureReader(self.backbone, self.preparation, side)
            self.pool = Pool("first" if rule == "auto" else rule, self.width)
        if self.frozen:
            self.backbone.eval()

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "pictures":
            assert self.pool is not None
            encoded = encode_pictures(
                self.backbone, self.reader, self.pool, frames, mask, frozen=self.frozen
            )
            return encoded, mask
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden, shown = self.reader(self.backbone, frames[..., 0] * mask, mask)
        hidden = hidden * shown[..., None]
        if self.pool is None:
            return hidden, shown
        return self.pool(hidden, shown)[:, None], shown.any(1, keepdim=True)

    def longest(self, longest: int) -> int:
        """Frames that so many samples of sound, or pictures, become at most."""
        if self.kind == "pictures" or not longest:
            return longest
        return 1 if self.pool is not None else self.reader.frames(self.backbone, longest)

    def train(self, mode: bool = True) -> MediaEncoder:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def files(self) -> dict[str, dict[str, Any]]:
        """Name -> JSON, of a folder that serves as source where all weights are stored elsewhere."""
        return {
            "config.json": architecture(self.backbone),
            "preprocessor_config.json": json.loads(self.preparation.to_json_string()),
        }

    def _refuse_longer(self, longest: int, source: Source) -> None:
        most = self.reader.longest()
        if most is not None and longest > most:
            raise ValueError(
                f"{source} hears {most} samples of sound at most, and the data have {longest}; "
                "extract the clips again with --windows SECONDS"
            )


def _width_of(config: Any) -> int:
    """Numbers of a hidden state; of an encoder of convolutions those of its last stage."""
    for name in ("hidden_size", "d_model"):
        width = getattr(config, name, None)
        if isinstance(width, int):
            return width
    stages: Any = getattr(config, "hidden_sizes", [0])
    return int(stages[-1])


def media_encoders(inputs: Any, data: DataSpec) -> dict[str, MediaEncoder]:
    """The encoders that the data need, by role.

    Args:
        inputs: an ``InputConfig``, which has settings for each role of ``ENCODED``.

    Raises:
        ValueError: data of media without an encoder, or an encoder of what is frames already.
    """
    encoders = {}
    for role in ENCODED:
        config: EncoderConfig = getattr(inputs, role)
        if config.source == FEATURES and config != EncoderConfig():
            raise ValueError(
                f"settings of options.{role} are for an encoder, and its source is {FEATURES}; give "
                f"options.{role}.source=DIR, or leave them out"
            )
        if config.source != FEATURES and role not in data.features:
            raise ValueError(f"options.{role}.source={config.source}: the data have no {role}")
        if config.source != FEATURES and role not in data.media:
            raise ValueError(
                f"options.{role}.source={config.source} encodes {role} as it is, and the data hold "
                f"features of width {data.features[role]}; extract the clips with --{role} raw, or "
                f"leave options.{role}.source={FEATURES}"
            )
        if config.source != FEATURES:
            encoders[role] = MediaEncoder(role, config, data)
    return encoders


def refuse_unencoded(modalities: tuple[str, ...], inputs: Any, data: DataSpec) -> None:
    """ValueError where a model is to read media without an encoder for them."""
    for name in modalities:
        if name not in data.media:
            continue
        if name not in ENCODED:
            raise ValueError(
                f"{name} holds {data.media[name]}, which only the roles {' and '.join(ENCODED)} "
                f"encode; give it one of them, such as roles.audio={name}"
            )
        if getattr(inputs, name).source == FEATURES:
            raise ValueError(
                f"the data hold {name} as {data.media[name]}, not as features; say which encoder "
                f"reads it with options.{name}.source=DIR, or leave {name} out of "
                "options.modalities"
            )


def encoded_spec(data: DataSpec, encoders: dict[str, MediaEncoder]) -> DataSpec:
    """The data as they are once they are encoded: widths and lengths of the encoders' frames."""
    features, longest = dict(data.features), dict(data.max_length)
    for role, encoder in encoders.items():
        features[role] = encoder.width
        longest[role] = encoder.longest(data.max_length.get(role, 0))
    return replace(data, features=features, max_length=longest)
