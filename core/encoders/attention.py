"""Attention from one sequence to another, with masks, and the Transformer layer built of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.dropout import SampleDropout
from core.kernels.attention import attention_op, narrow_attention


class Attention(nn.Module):
    """Multi-head attention of (B, T, width) queries on (B, S, key_width) keys and values.

    Args:
        key_width: of what keys and values are made of; None: as wide as the queries.
        out: whether heads go through an output projection.
        head_width: of each head; None: the heads share the width out among them.
        out_bias: of the output projection; None: as ``bias``.
        scale: of the scores before the softmax; None: one over the root of a head's width.
        layer: the class of the projections of queries, keys and values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        out: bool = True,
        head_width: int | None = None,
        out_bias: bool | None = None,
        scale: float | None = None,
        layer: type[nn.Linear] = nn.Linear,
    ):
        super().__init__()
        if head_width is None and width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        inner = width if head_width is None else heads * head_width
        out_bias = bias if out_bias is None else out_bias
        key_width = width if key_width is None else key_width
        self.heads = heads
        self.scale = scale
        # a module of its own, so that its masks can be tied to the samples
        self.dropout = nn.Dropout(dropout)
        self.query = layer(width, inner, bias=bias)
        self.key = layer(key_width, inner, bias=bias)
        self.value = layer(key_width, inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=out_bias) if out else nn.Identity()

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """(B, T, width). A query that may look at nothing gives zeros.

        Args:
            keys: (B, S, key_width), what is looked at.
            values: (B, S, key_width), what is seen there; None: the keys.
            mask: (B, S), True at keys that exist.
            attn_mask: (T, S), True where a query may look at a key; used where there is a ``mask``.
        """
        query = self._split_heads(self.query(x))
        if values is None and projects_few(self.key, self.value, query, keys):
            return self._join_heads(*self._of_few(query, keys, mask, attn_mask))
        key = self._split_heads(self.key(keys))
        value = self._split_heads(self.value(keys if values is None else values))
        if mask is None:
            mixed = attend(query, key, value, None, self.dropout, self.scale)  # (B, h, T, d)
            return self._join_heads(mixed)
        allowed, sees_any = _pairs(mask, attn_mask)
        if not is_fused(query, key, value, allowed[:, None], self.dropout):
            # softmax over nothing would be NaN, so such a query looks at everything, and is zeroed
            # below
            allowed = allowed | ~sees_any
        mixed = attend(query, key, value, allowed[:, None], self.dropout, self.scale)
        return self._join_heads(mixed, sees_any)

    def _of_few(
        self, query: Tensor, keys: Tensor, mask: Tensor | None, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What few queries see, (B, h, T, d), and which see anything."""
        allowed = sees_any = None
        if mask is not None:
            pairs, sees_any = _pairs(mask, attn_mask)
            allowed = (pairs | ~sees_any)[:, None]
        mixed = attend_few(query, keys, self.key, self.value, allowed, self.dropout, self.scale)
        return mixed, sees_any

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, h, T, d)

    def _join_heads(self, x: Tensor, sees_any: Tensor | None = None) -> Tensor:
        joined = self.out(x.transpose(1, 2).flatten(2))
        return joined if sees_any is None else joined * sees_any


def _pairs(mask: Tensor, attn_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, 1 or T, S) which pairs are allowed, and (B, 1 or T, 1) which queries see anything."""
    allowed = mask[:, None]
    if attn_mask is not None:
        allowed = allowed & attn_mask
    return allowed, allowed.any(2, keepdim=True)


def projects_few(key_layer: nn.Linear, value_layer: nn.Linear, query: Tensor, keys: Tensor) -> bool:
    """Whether ``attend_few`` is for these (B, h, T, d) queries on (B, S, key_width) keys: on a CPU,
    where there is less to do if the weights of keys and values are multiplied with the queries and
    with what they see, and not with all keys."""
    heads, few = query.shape[1:3]
    length, width = keys.shape[1], key_layer.out_features
    return (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and few * (width + length * heads) < length * width
        and _is_plain(key_layer)
        and _is_plain(value_layer)
    )


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer does nothing but multiply with a weight that is there. One with an adapter
    does more; the third stage of ZeRO marks weights that are there in their layers' calls alone."""
    return type(layer) is nn.Linear and not hasattr(layer.weight, "ds_id")


def attend_few(
    query: Tensor,
    keys: Tensor,
    key_layer: nn.Linear,
    value_layer: nn.Linear,
    allowed: Tensor | None,
    dropout: nn.Module,
    scale: float | None = None,
) -> Tensor:
    """``attend`` of (B, h, T, d) queries on what two layers make of (B, S, width) keys, which are
    never made: q (e Wk) is (q Wk) e, and share (e Wv) is (share e) Wv. Every query sees a key."""
    if scale is None:
        scale = query.shape[-1] ** -0.5
    heads, few = query.shape[1:3]
    # the biases are weights of a feature that is one everywhere
    features = F.pad(keys, (0, 1), value=1.0)  # (B, S, width + 1)
    asked = torch.einsum("bhtd,hdk->bhtk", query * scale, _by_head(key_layer, heads))
    score = asked.flatten(1, 2) @ features.transpose(1, 2)
    score = score.unflatten(1, (heads, few))  # (B, h, T, S)
    if allowed is not None:
        score = score.masked_fill(~allowed, -math.inf)
    share = dropout(score.softmax(-1))
    read = (share.flatten(1, 2) @ features).unflatten(1, (heads, few))
    return torch.einsum("bhtk,hdk->bhtd", read, _by_head(value_layer, heads))


def _by_head(layer: nn.Linear, heads: int) -> Tensor:
    """(h, d, width + 1), the weight and the bias of each head's outputs."""
    bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
    return torch.cat([layer.weight, bias[:, None]], dim=1).unflatten(0, (heads, -1))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    dropout: nn.Module,
    scale: float | None = None,
) -> Tensor:
    """softmax(query key^T * scale) value, over (B, h, T, d), with the module ``dropout`` on the
    softmax.

    ``allowed`` is boolean or added to the scores. torch's fused kernels draw dropout from their
    process's generator, so they serve only where nothing is dropped. Masks that belong to the
    sample (``core.dropout``) are drawn inside this project's kernels, on a GPU and for narrow heads
    on a CPU; elsewhere the scores are written out.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    drops = _drops(dropout)
    if is_fused(query, key, value, allowed, dropout):
        states, layer, p = None, 0, 0.0
        if drops:
            assert isinstance(dropout, SampleDropout)
            states, layer, p = dropout.states_of(query), dropout.layer, dropout.p
        on_gpu = attention_op.serves(query, key, value, p)
        kernel = attention_op.fused_attention if on_gpu else narrow_attention.narrow_attention
        return kernel(query, key, value, allowed, scale, states, layer, p)
    if not drops:
        return F.scaled_dot_product_attention(query, key, value, allowed, scale=scale)
    # in place where the backward pass does not ask for what was there: these are the largest
    # tensors of a model
    score = (query @ key.transpose(-1, -2)).mul_(scale)  # (B, h, T, S)
    if allowed is not None and allowed.dtype == torch.bool:
        score = score.masked_fill_(~allowed, -math.inf)
    elif allowed is not None:
        score = score + allowed
    return dropout(score.softmax(-1)).to(value.dtype) @ value


def is_fused(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, dropout: nn.Module
) -> bool:
    """Whether ``attend`` is one of this project's kernels, in which a query that may look at
    nothing gives zeros."""
    drops = _drops(dropout)
    if drops and not (isinstance(dropout, SampleDropout) and dropout.states_of(query) is not None):
        return False
    p: float = getattr(dropout, "p", 0.0) if drops else 0.0
    if attention_op.serves(query, key, value, p):
        return drops  # elsewhere torch's kernels are as good
    return narrow_attention.serves(query, key, value, allowed, p)


def _drops(dropout: nn.Module) -> bool:
    return dropout.training and getattr(dropout, "p", 0.0) > 0


class TransformerLayer(nn.Module):
    """The post-norm Transformer encoder layer with ReLU (Vaswani et al., 2017,
    arXiv:1706.03762)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = Attention(width, heads, dropout=dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
        )
        self.norm_attention = nn.LayerNorm(width)
        self.norm_feed = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width); ``mask`` (B, T) is True at places that exist."""
        attended = self.attention(x, x, mask)
        x = self.norm_attention(x + self.dropout(attended))
        return self.norm_feed(x + self.dropout(self.feed(x)))


def largest_heads(width: int, at_most: int, narrowest: int = 1) -> int:
    """The largest number of heads up to ``at_most`` that divides ``width`` into heads of
    ``narrowest`` or more."""
    for heads in range(at_most, 1, -1):
        if width % heads == 0 and width // heads >= narrowest:
            return heads
    return 1
