"""A BERT on the tokens that exist, one behind the other, instead of on padded sentences: on a CPU,
where a third of a batch is padding and nothing else hides it.

Every layer but the attention goes from token to token, so it never sees padding. Where a model
reads only the first hidden state, the last layer computes nothing else: its keys and values are of
all tokens, its query, and all that follows, of one each. Both give what the padded form gives, but
for rounding; dropout's bits are those of the padded form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.dropout import token_rows
from core.encoders.attention import attend, attend_few, projects_few

NARROWEST = 64  # of hidden states, below which copies cost what products save


class Tokens:
    """Which places of padded sentences exist, (B, T), and the way from one form to the other."""

    def __init__(self, exists: Tensor):
        self.exists = exists
        self.sample, self.place = exists.nonzero(as_tuple=True)  # (N,)
        self.flat = self.sample * exists.shape[1] + self.place

    def pack(self, padded: Tensor) -> Tensor:
        """(N, ...) of (B, T, ...)."""
        return padded.flatten(0, 1).index_select(0, self.flat)

    def pad(self, rows: Tensor) -> Tensor:
        """(B, T, width) of (N, width), zero where nothing exists."""
        samples, length = self.exists.shape
        padded = rows.new_zeros(samples * length, rows.shape[1])
        return padded.index_copy(0, self.flat, rows).view(samples, length, -1)

    def of_first(self) -> Tokens:
        """The first place of each sentence alone."""
        return Tokens(torch.ones_like(self.exists[:, :1]))


def serves(backbone: Any, exists: Tensor) -> bool:
    """Whether ``encode`` can take the place of this transformers model, for these sentences (B,
    T)."""
    return (
        exists.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and backbone.config.model_type == "bert"
        and not backbone.config.is_decoder
        and backbone.config.hidden_size >= NARROWEST
        and not _is_changed(backbone.encoder)
        and bool(exists[:, 0].all())
    )


def _is_changed(encoder: Any) -> bool:
    """Whether somebody has put something in the place of a layer's forward, as ``core.recompute``
    does."""
    return any("forward" in layer.__dict__ for layer in encoder.layer)


def encode(
    backbone: Any,
    inputs: dict[str, Tensor],
    exists: Tensor,
    change: Callable[[Tensor], Tensor] | None = None,
    layer: int = 0,
    first_only: bool = False,
) -> Tensor:
    """Hidden states (B, T, width), zero where nothing exists; (B, 1, width) with ``first_only``.

    Args:
        backbone: a transformers ``BertModel``.
        inputs: what its embeddings take, by name: (B, T) or (B, T, width).
        exists: (B, T) bool; the first place of every sentence does.
        change: applied to the padded hidden states before the layer of that number.
        first_only: only the first hidden state of each sentence is wanted.
    """
    tokens = Tokens(exists)
    rows_of_inputs = {name: tokens.pack(values)[None] for name, values in inputs.items()}
    with token_rows(tokens.sample, tokens.place):
        hidden = backbone.embeddings(position_ids=tokens.place[None], **rows_of_inputs)[0]
    layers = backbone.encoder.layer
    for number, module in enumerate(layers):
        if change is not None and number == layer:
            hidden = tokens.pack(change(tokens.pad(hidden)))
        if not (first_only and number == len(layers) - 1):
            hidden = _through(module, hidden, tokens)
            continue
        firsts = tokens.of_first()
        own = hidden.index_select(0, (tokens.place == 0).nonzero().squeeze(1))
        return firsts.pad(_through(module, hidden, tokens, own, firsts))
    return tokens.pad(hidden)


def _through(
    layer: Any,
    hidden: Tensor,
    tokens: Tokens,
    own: Tensor | None = None,
    wanted: Tokens | None = None,
) -> Tensor:
    """(N, width) behind a ``BertLayer``.

    Args:
        own: the rows of ``hidden`` that belong to the ``wanted`` tokens; None: all of them.
    """
    if own is None or wanted is None:
        own, wanted = hidden, tokens
    module = layer.attention.self
    heads = module.num_attention_heads
    with token_rows(wanted.sample, wanted.place):  # an adapter may have dropouts, too
        query = _split_heads(wanted.pad(module.query(own)), heads)
    allowed = tokens.exists[:, None, None]
    if projects_few(module.key, module.value, query, tokens.exists):
        mixed = attend_few(
            query,
            tokens.pad(hidden),
            module.key,
            module.value,
            allowed,
            module.dropout,
            module.scaling,
        )
    else:
        with token_rows(tokens.sample, tokens.place):
            key, value = module.key(hidden), module.value(hidden)
        key, value = (_split_heads(tokens.pad(part), heads) for part in (key, value))
        mixed = attend(query, key, value, allowed, module.dropout, module.scaling)
    seen = wanted.pack(mixed.transpose(1, 2).flatten(2))
    with token_rows(wanted.sample, wanted.place):
        attended = layer.attention.output(seen, own)
        return layer.output(layer.intermediate(attended), attended)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, T, d)
