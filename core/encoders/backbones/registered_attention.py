"""The attention of this project, under a name by which transformers knows it; and dropout in the
models of that library, tied to samples.

Dropout that a model has as a module of its own is replaced with all others (``core.dropout``).
What is left is of two kinds. The rate of attention is a number in many models: there a module is put
beside it, which the registered attention uses. A rate that is used by a function call cannot be tied
to samples, and layers that are left out at random would leave parameters without gradients on some
ranks: both are set to zero, as most published recipes have them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from core.encoders.attention import attend

NAME = "module_dropout"  # under which transformers knows the attention below
SAMPLE_DROPOUT = "sample_dropout"  # the module beside the number of a rate
_RATES_OF_ATTENTION = ("attention_dropout", "dropout_prob", "dropout")
_RATES_OF_CALLS = ("dropout", "activation_dropout", "layerdrop")
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # what some models add to their scores
_OWN_ATTENTION = ("wavlm",)  # models that do not ask for a registered attention


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """``attend`` as transformers calls it, with the layer's own dropout module: (B, T, heads, d)
    and no weights."""
    unsupported = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if unsupported:
        raise ValueError(
            f"{type(module).__name__} adds {unsupported[0]} to its attention, which is not known "
            "here; use another encoder"
        )
    dropout_module = getattr(module, SAMPLE_DROPOUT, getattr(module, "dropout", None))
    if not isinstance(dropout_module, nn.Module):
        dropout_module = nn.Dropout(dropout).train(module.training)
    repeated = query.shape[1] // key.shape[1]  # several heads of queries share one of keys
    if repeated > 1:
        key = key.repeat_interleave(repeated, dim=1)
        value = value.repeat_interleave(repeated, dim=1)
    mixed = attend(query, key, value, attention_mask, dropout_module, scaling)  # (B, heads, T, d)
    return mixed.transpose(1, 2).contiguous(), None


def _mask(**asked: Any) -> Tensor | None:
    """``sdpa_mask`` as transformers calls it, without its question whether everything exists, for
    which a GPU would have to be waited for; (B, 1, T, S), the same memory for all T queries.

    A mask that is causal is always written out: nothing here knows it otherwise.
    """
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    exists = asked.get("attention_mask")
    is_bidirectional = asked.get("mask_function") is bidirectional_mask_function
    is_padding_alone = (
        isinstance(exists, Tensor)
        and exists.device.type != "cpu"
        and is_bidirectional
        and exists.shape == (asked["batch_size"], asked["kv_length"])
    )
    if not is_padding_alone:
        found: Tensor | None = sdpa_mask(**{**asked, "allow_is_causal_skip": False})
        return found
    assert isinstance(exists, Tensor)
    return exists.bool()[:, None, None].expand(-1, -1, asked["q_length"], -1)


@cache
def make_attention_known() -> None:
    """To transformers, before the first encoder is made; importing it takes seconds."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def tie_dropout(backbone: nn.Module) -> None:
    """Give every attention of a model a dropout module, and set the rates to zero that no module
    stands for. In place; a model whose rates are modules already stays as it is."""
    config: Any = getattr(backbone, "config", None)
    model_type = getattr(config, "model_type", "")
    for module in list(backbone.modules()):
        is_attention = "Attention" in type(module).__name__
        if is_attention and model_type not in _OWN_ATTENTION:
            _add_dropout_module(module)
            continue
        for name in _RATES_OF_CALLS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if hasattr(config, "layerdrop"):
        config.layerdrop = 0.0
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False  # it draws from NumPy's generator of the process


def _add_dropout_module(module: nn.Module) -> None:
    for name in _RATES_OF_ATTENTION:
        rate = getattr(module, name, None)
        if isinstance(rate, nn.Module):
            return
        if isinstance(rate, float):
            setattr(module, SAMPLE_DROPOUT, nn.Dropout(rate))
            return


def is_causal(backbone: nn.Module) -> bool:
    """Whether a token sees only those before it, as in a decoder."""
    return any(getattr(module, "is_causal", False) is True for module in backbone.modules())
