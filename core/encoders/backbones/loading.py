"""A backbone out of a folder or a hub, ready to be part of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from core.encoders.backbones.adaptation import Adaptation, adapt, note_base
from core.encoders.backbones.registered_attention import (
    NAME,
    make_attention_known,
    tie_dropout,
)
from core.encoders.pretrained import Source, load_config, load_model, model_of_config
from core.sketch import is_sketched

# in the config.json of a folder without weights, which are stored elsewhere
NO_WEIGHTS = "weights_are_elsewhere"


def load_backbone(holder: nn.Module, source: Source, how: Adaptation, settings: Any = None) -> Any:
    """The encoder of a source, adapted, with dropout tied to samples; what of it is frozen is noted
    on ``holder``, whose ``backbone`` it becomes.

    Args:
        settings: its configuration, where it has been read already.

    Raises:
        ValueError: it cannot be loaded, or not be adapted so.
    """
    make_attention_known()
    settings = settings or load_config(source)
    settings.use_cache = False  # of decoders, which write nothing here
    has_weights = not (getattr(settings, NO_WEIGHTS, False) or is_sketched())
    options = {"attn_implementation": NAME, "dtype": torch.float32}
    if has_weights:
        model = load_model(source, config=settings, **options)
    else:
        _leave_decoder_out(settings)
        model = model_of_config(settings, **options)
    backbone = encoder_of(model)
    tie_dropout(backbone)
    adapt(backbone, how, source.key.rpartition(".")[0])
    if has_weights:
        note_base(holder, backbone, how, source.name)
    return backbone


def _leave_decoder_out(settings: Any) -> None:
    """As far as a configuration can: it is built and thrown away."""
    for name in ("decoder_layers", "num_decoder_layers"):
        if getattr(settings, "is_encoder_decoder", False) and hasattr(settings, name):
            setattr(settings, name, 1)


def encoder_of(model: Any) -> Any:
    """The part of a model that encodes, without the pooler, which no model here reads: a parameter
    without gradient is a trap."""
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    model = getattr(model, "vision_model", model)  # of CLIP, the half that sees
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    if getattr(model, "masked_spec_embed", None) is not None:
        model.masked_spec_embed = None  # of what is masked while an encoder is pretrained
    if model.config.model_type.startswith("clip_vision"):
        model.post_layernorm = nn.Identity()  # of its pooled answer alone
    return model


def architecture(backbone: Any) -> dict[str, Any]:
    """For a folder that serves as source where all weights are stored elsewhere."""
    return {**backbone.config.to_dict(), NO_WEIGHTS: True}
