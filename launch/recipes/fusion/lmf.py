"""LMF (Liu et al., ACL 2018), as MMSA has it; the factors learn at a rate of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.fusion.lmf import LMF
from launch.config import Group, Optim, Run
from launch.recipes.fusion import FEATURES, adam, small_demo, table_run, utterance_run


def _optim(rate: float, of_factors: float, decay: float) -> Optim:
    optim = adam(rate, decay)
    return replace(optim, groups=optim.groups | {"factors": Group(of_factors, decay)})


def mosi() -> Run:
    """LMF on MOSI, unaligned features. MMSA's table: MAE .950, Corr .651.

    deepspeed launch/train.py lmf/mosi data=shards/mosi_features
    """
    return table_run("lmf", LMF.Config(text=FEATURES), _optim(1e-3, 1e-3, 1e-4), 32)


def mosi_mmsa() -> Run:
    """LMF on MOSI with the settings that MMSA has today.

    deepspeed launch/train.py lmf/mosi_mmsa data=shards/mosi_features
    """
    options = LMF.Config(text_hidden=128, audio_hidden=16, vision_hidden=128, rank=3, text=FEATURES)
    return table_run("lmf", options, _optim(1e-3, 1e-3, 5e-3), 64)


def mosei() -> Run:
    """LMF on MOSEI, unaligned features. MMSA's table: MAE .576, Corr .717.

    deepspeed launch/train.py lmf/mosei data=shards/mosei_features
    """
    options = LMF.Config(
        text_hidden=128,
        audio_hidden=16,
        vision_hidden=128,
        rank=5,
        drop_audio=0.4,
        drop_vision=0.4,
        text=FEATURES,
    )
    return table_run("lmf", options, _optim(5e-4, 1e-4, 5e-3), 64)


def mosei_mmsa() -> Run:
    """LMF on MOSEI with the settings that MMSA has today.

    deepspeed launch/train.py lmf/mosei_mmsa data=shards/mosei_features
    """
    options = LMF.Config(
        text_hidden=128,
        audio_hidden=16,
        vision_hidden=128,
        drop_audio=0.2,
        drop_vision=0.2,
        text=FEATURES,
    )
    return table_run("lmf", options, _optim(1e-3, 1e-3, 1e-3), 32)


def sims() -> Run:
    """LMF on CH-SIMS. MMSA's table: MAE .441, Corr .576.

    deepspeed launch/train.py lmf/sims data=shards/sims_features
    """
    options = LMF.Config(rank=3, drop_audio=0.2, drop_vision=0.2, text=FEATURES)
    return table_run("lmf", options, _optim(2e-3, 1e-3, 5e-3), 32, metrics="sims")


def sims_mmsa() -> Run:
    """LMF on CH-SIMS with the settings that MMSA has today.

    deepspeed launch/train.py lmf/sims_mmsa data=shards/sims_features
    """
    options = LMF.Config(
        text_hidden=64,
        audio_hidden=16,
        vision_hidden=64,
        drop_audio=0.2,
        drop_vision=0.2,
        text=FEATURES,
    )
    return table_run("lmf", options, _optim(2e-3, 5e-4, 5e-3), 64, metrics="sims")


def simsv2() -> Run:
    """LMF on CH-SIMS v2. MMSA's table: MAE .367, Corr .557.

    deepspeed launch/train.py lmf/simsv2 data=shards/simsv2_features
    """
    options = LMF.Config(text_hidden=64, vision_hidden=64, text=FEATURES)
    return table_run("lmf", options, _optim(2e-3, 5e-4, 1e-4), 32, metrics="sims")


def mosi_utterance() -> Run:
    """LMF on MOSI with utterance-level sound and video, and transcripts.

    deepspeed launch/train.py lmf/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    return utterance_run("lmf", LMF.Config(text=TextConfig(source="bert-base-uncased")))


def demo() -> Run:
    """LMF on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py lmf/demo data=demo/shards
    """
    options = LMF.Config(text_hidden=64, vision_hidden=32, drop_audio=0.1, drop_vision=0.1)
    return small_demo("lmf", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosi_mmsa": mosi_mmsa,
    "mosei": mosei,
    "mosei_mmsa": mosei_mmsa,
    "sims": sims,
    "sims_mmsa": sims_mmsa,
    "simsv2": simsv2,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
