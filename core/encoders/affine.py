"""Affine maps that are multiplied with each other before they meet the data, and attention built of
them.

Behind a projection stands another one in every attention: (x Wq)(e Wk)^T is x (Wq Wk^T) e^T, and
(share e) Wv W is share e (Wv W). Where the data have more rows than a weight, it is cheaper to
multiply the weights, once a batch. What comes out is the same but for rounding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.encoders.attention import Attention

Form = Literal["vectors", "map", "readers"]


class Affine(nn.Linear):
    """A linear layer that may be put behind another map, or read from, without any data.

    A map is written as its rows, (inputs + 1, outputs): what each input adds to the outputs, and
    the constant. The weight is used inside of a call alone, because the third stage of ZeRO
    collects it only while its layer is called.
    """

    def forward(self, x: Tensor | None, form: Form = "vectors") -> Tensor:
        """
        Args:
            x: for the form
                "vectors": (..., inputs); gives (..., outputs), as ``nn.Linear`` does.
                "map": (n + 1, inputs), a map, or None for one that changes nothing; gives (n + 1,
                    outputs), the map with this layer behind it.
                "readers": (..., outputs), what the outputs are multiplied with; gives (...,
                    inputs + 1), what each input, and the constant, adds to that product.
        """
        if x is None:
            return torch.cat([self.weight.T, self.bias[None]])
        if form == "vectors":
            return F.linear(x, self.weight, self.bias)
        if form == "map":
            rows = F.linear(x, self.weight)
            return torch.cat([rows[:-1], rows[-1:] + self.bias])
        return F.linear(x, torch.cat([self.weight.T, self.bias[None]]))


class Mix(nn.Linear):
    """A linear layer on several inputs side by side, of which each may be a map or rows."""

    def forward(  # type: ignore[override]
        self, parts: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Of each part, (n, part of the inputs), what it adds to the outputs, (n, outputs); and the
        constant, (outputs,)."""
        mixed, start = [], 0
        for part in parts:
            end = start + part.shape[-1]
            mixed.append(F.linear(part, self.weight[:, start:end]))
            start = end
        # a copy: the weight itself may be gone when the call is over
        return mixed, self.bias.clone()


def affine(x: Tensor, rows: Tensor) -> Tensor:
    """(..., outputs) of (..., inputs) by a map's ``rows``, (inputs + 1, outputs)."""
    return F.linear(x, rows[:-1].T, rows[-1])


def readers_of_words(attention: Attention, words: Tensor) -> Tensor:
    """(width + 1, K): the map from a query to its scores with K words that all samples share.

    Args:
        attention: of one head, its layers ``Affine``.
        words: (K, key_width).
    """
    keys = attention.key(words)
    return (attention.query(keys, "readers") * scale_of(attention)).T


def readers_of_frames(attention: Attention, to_keys: Tensor | None) -> Tensor:
    """(width + 1, n + 1): the map from a query to what its score with frames x takes of each
    feature, and to the constant.

    Args:
        to_keys: (n + 1, key_width), the map from the frames' n features to what the attention is
            given as keys; None: they are that.
    """
    keys = attention.key(to_keys, "map")
    return (attention.query(keys, "readers") * scale_of(attention)).T


def scale_of(attention: Attention) -> float:
    """Of the scores before the softmax."""
    if attention.scale is not None:
        return attention.scale
    return float(attention.query.out_features**-0.5)


def shares_of_words(score: Tensor, counts: Tensor) -> Tensor:
    """(B, T, K): softmax over frames, of which many are the same word, summed by word.

    A query that may look at nothing gives zeros.

    Args:
        score: (B, T, K), of each query with each word.
        counts: (B, K), how many frames of a sample are that word.
    """
    sees_any = counts.sum(1, keepdim=True) > 0  # (B, 1)
    # softmax over nothing would be NaN, so such a query looks at everything, and is zeroed below
    number = counts.masked_fill(~sees_any, 1).to(score.dtype)
    share = (score + number.log()[:, None]).softmax(-1)
    return share * sees_any[..., None]


def shares_of_frames(
    query: Tensor, frames: Tensor, mask: Tensor | None, log_counts: Tensor | None = None
) -> Tensor:
    """(B, T, S): softmax over frames. A query that may look at nothing gives zeros.

    Args:
        query: (B, T, n + 1), what a score takes of each feature, and its constant.
        frames: (B, S, n).
        mask: (B, S), True at frames that exist; None: all do.
        log_counts: (S,), the logarithm of how often a frame counts; None: once.
    """
    # the constant moves no softmax; it stays, so that what it is made of has a gradient
    score = torch.baddbmm(query[..., -1:], query[..., :-1], frames.transpose(1, 2))
    if log_counts is not None:
        score = score + log_counts
    if mask is None:
        return score.softmax(-1)
    sees_any = mask.any(1)[:, None, None]
    hidden = ~mask[:, None] & sees_any
    return score.masked_fill_(hidden, -torch.inf).softmax(-1) * sees_any
