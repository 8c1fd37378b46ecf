"""Small TFR-Nets, and batches some of whose frames are dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.tfr_net import TFRNet

SMALL = TFRNet.Config(
    width=12, heads=2, layers=2, cross_layers=1, gru_layers=1, fusion_hidden=(6, 5, 4), hidden=8,
    text=TextConfig(width=16, layers=1, heads=2),
)  # fmt: skip


def build(data: DataSpec, **changes: Any) -> TFRNet:
    torch.manual_seed(6)
    return TFRNet(replace(SMALL, **changes), data)


def damaged(batch: Utterances) -> Utterances:
    return replace(
        batch,
        present={
            m: mask & (torch.arange(mask.shape[1]) % 3 != 1) for m, mask in batch.mask.items()
        },
    )


def counted(model: TFRNet, batch: Utterances) -> Utterances:
    return replace(batch, loss_denominators=model.loss_denominators(batch))
