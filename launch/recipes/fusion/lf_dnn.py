"""LF-DNN (Cambria et al., 2017), as MMSA has it: a mean frame of sound and video, and text."""

from __future__ import annotations

from collections.abc import Callable

from core.encoders.text import TextConfig
from core.models.fusion.lf_dnn import LFDNN
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam, small_demo, table_run, utterance_run


def mosi() -> Run:
    """LF-DNN on MOSI, unaligned features. MMSA's table: MAE .955, Corr .658.

    deepspeed launch/train.py lf_dnn/mosi data=shards/mosi_features
    """
    return table_run("lf_dnn", LFDNN.Config(text=FEATURES), adam(1e-3, 1e-2), 128)


def mosi_mmsa() -> Run:
    """LF-DNN on MOSI with the settings that MMSA has today.

    deepspeed launch/train.py lf_dnn/mosi_mmsa data=shards/mosi_features
    """
    options = LFDNN.Config(
        text_hidden=128,
        vision_hidden=128,
        hidden=128,
        drop_audio=0.2,
        drop_vision=0.2,
        drop_fusion=0.2,
        text=FEATURES,
    )
    return table_run("lf_dnn", options, adam(1e-3, 1e-2), 128)


def mosei() -> Run:
    """LF-DNN on MOSEI, unaligned features. MMSA's table: MAE .580, Corr .709.

    deepspeed launch/train.py lf_dnn/mosei data=shards/mosei_features
    """
    options = LFDNN.Config(audio_hidden=32, text=FEATURES)
    return table_run("lf_dnn", options, adam(5e-4, 1e-2), 32)


def mosei_mmsa() -> Run:
    """LF-DNN on MOSEI with the settings that MMSA has today.

    deepspeed launch/train.py lf_dnn/mosei_mmsa data=shards/mosei_features
    """
    options = LFDNN.Config(
        text_hidden=128,
        audio_hidden=32,
        vision_hidden=128,
        text_out=128,
        hidden=128,
        drop_audio=0.2,
        drop_vision=0.2,
        drop_fusion=0.2,
        text=FEATURES,
    )
    return table_run("lf_dnn", options, adam(2e-3, 1e-3), 64)


def sims() -> Run:
    """LF-DNN on CH-SIMS. MMSA's table: MAE .446, Corr .555.

    deepspeed launch/train.py lf_dnn/sims data=shards/sims_features
    """
    options = LFDNN.Config(
        text_hidden=128,
        audio_hidden=32,
        vision_hidden=128,
        hidden=32,
        drop_audio=0.3,
        drop_vision=0.3,
        drop_fusion=0.5,
        text=FEATURES,
    )
    return table_run("lf_dnn", options, adam(5e-3, 5e-3), 128, metrics="sims")


def simsv2() -> Run:
    """LF-DNN on CH-SIMS v2. MMSA's table: MAE .301, Corr .712.

    deepspeed launch/train.py lf_dnn/simsv2 data=shards/simsv2_features
    """
    options = LFDNN.Config(audio_hidden=32, hidden=32, text=FEATURES)
    return table_run("lf_dnn", options, adam(5e-3), 128, metrics="sims")


def mosi_utterance() -> Run:
    """LF-DNN on MOSI with utterance-level sound and video, and transcripts.

    deepspeed launch/train.py lf_dnn/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    return utterance_run("lf_dnn", LFDNN.Config(text=TextConfig(source="bert-base-uncased")))


def demo() -> Run:
    """LF-DNN on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py lf_dnn/demo data=demo/shards
    """
    options = LFDNN.Config(text_out=64, hidden=64, drop_audio=0.1, drop_vision=0.1, drop_fusion=0.1)
    return small_demo("lf_dnn", options)


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
