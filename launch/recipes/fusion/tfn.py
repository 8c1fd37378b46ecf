"""TFN (Zadeh et al., EMNLP 2017), as MMSA has it."""

from __future__ import annotations

from collections.abc import Callable

from core.encoders.text import TextConfig
from core.models.fusion.tfn import TFN
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam, small_demo, table_run, utterance_run


def mosi() -> Run:
    """TFN on MOSI, unaligned features. MMSA's table: MAE .947, Corr .673.

    deepspeed launch/train.py tfn/mosi data=shards/mosi_features
    """
    return table_run("tfn", TFN.Config(text=FEATURES), adam(5e-4), 32)


def mosi_mmsa() -> Run:
    """TFN on MOSI with the settings that MMSA has today.

    deepspeed launch/train.py tfn/mosi_mmsa data=shards/mosi_features
    """
    options = TFN.Config(
        audio_hidden=32,
        text_out=32,
        hidden=64,
        drop_audio=0.3,
        drop_vision=0.3,
        drop_fusion=0.5,
        text=FEATURES,
    )
    return table_run("tfn", options, adam(1e-3), 32)


def mosei() -> Run:
    """TFN on MOSEI, unaligned features. MMSA's table: MAE .573, Corr .714.

    deepspeed launch/train.py tfn/mosei data=shards/mosei_features
    """
    options = TFN.Config(
        text_out=64, drop_audio=0.3, drop_vision=0.3, drop_fusion=0.5, text=FEATURES
    )
    return table_run("tfn", options, adam(1e-3), 64)


def mosei_mmsa() -> Run:
    """TFN on MOSEI with the settings that MMSA has today.

    deepspeed launch/train.py tfn/mosei_mmsa data=shards/mosei_features
    """
    options = TFN.Config(hidden=16, drop_audio=0.4, drop_vision=0.4, drop_fusion=0.4, text=FEATURES)
    return table_run("tfn", options, adam(5e-3), 128)


def sims() -> Run:
    """TFN on CH-SIMS. MMSA's table: MAE .432, Corr .591, with scores squashed into [-3, 3].

    deepspeed launch/train.py tfn/sims data=shards/sims_features
    """
    options = TFN.Config(
        audio_hidden=32,
        text_out=256,
        drop_audio=0.4,
        drop_vision=0.4,
        drop_fusion=0.4,
        text=FEATURES,
    )
    return table_run("tfn", options, adam(5e-4), 32, metrics="sims")


def simsv2() -> Run:
    """TFN on CH-SIMS v2. MMSA's table: MAE .303, Corr .707, with scores squashed into [-3, 3].

    deepspeed launch/train.py tfn/simsv2 data=shards/simsv2_features
    """
    options = TFN.Config(
        audio_hidden=32, drop_audio=0.3, drop_vision=0.3, drop_fusion=0.5, text=FEATURES
    )
    return table_run("tfn", options, adam(2e-3), 128, metrics="sims")


def mosi_utterance() -> Run:
    """TFN on MOSI with utterance-level sound and video, and transcripts.

    deepspeed launch/train.py tfn/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    return utterance_run("tfn", TFN.Config(text=TextConfig(source="bert-base-uncased")))


def demo() -> Run:
    """TFN on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py tfn/demo data=demo/shards
    """
    options = TFN.Config(
        vision_hidden=16, text_out=32, drop_audio=0.1, drop_vision=0.1, drop_fusion=0.1
    )
    return small_demo("tfn", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosi_mmsa": mosi_mmsa,
    "mosei": mosei,
    "mosei_mmsa": mosei_mmsa,
    "sims": sims,
    "simsv2": simsv2,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
