"""One vector for a sequence of hidden states, by a stated rule."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from core.encoders.sequence import last_frame, masked_mean

# auto: what the kind of encoder asks for
Rule = Literal["auto", "first", "mean", "attention", "last"]


class Pool(nn.Module):
    """(B, width) of hidden states (B, T, width) and their mask (B, T); zero where nothing exists.

    first: the state of [CLS]; mean; last: the state of the last token that exists, which in a
    decoder has seen all others; attention: a mean whose weights are a softmax of each state's
    product with a learnt vector (Yang et al., NAACL 2016, without the hidden layer).
    """

    def __init__(self, rule: Rule, width: int):
        super().__init__()
        self.rule = rule
        if rule == "attention":
            self.query = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.rule == "mean":
            return masked_mean(hidden, mask)
        if self.rule == "last":
            return last_frame(hidden, mask)
        exists = mask.any(1, keepdim=True)  # (B, 1)
        if self.rule == "first":
            return hidden[:, 0] * exists
        score = (hidden @ self.query.to(hidden.dtype)) * hidden.shape[2] ** -0.5  # (B, T)
        # a row without anything looks everywhere, and is zeroed
        weight = score.masked_fill(~(mask | ~exists), float("-inf")).softmax(1)
        return (weight[..., None] * hidden).sum(1) * exists
