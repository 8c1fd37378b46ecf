"""MFN (Zadeh et al., AAAI 2018). MMSA's published rows read the mean frame of sound and video at
every step: options.mean_frames=true. These recipes read the sequences."""

from __future__ import annotations

from collections.abc import Callable

from core.encoders.text import TextConfig
from core.models.fusion.mfn import MFN
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam, small_demo, table_run, utterance_run


def mosi() -> Run:
    """MFN on MOSI, aligned features. MMSA's table, of mean frames: MAE .927, Corr .670.

    deepspeed launch/train.py mfn/mosi data=shards/mosi_aligned_features
    """
    return table_run("mfn", MFN.Config(text=FEATURES), adam(1e-3), 64)


def mosi_mmsa() -> Run:
    """MFN on MOSI with the settings that MMSA has today.

    deepspeed launch/train.py mfn/mosi_mmsa data=shards/mosi_aligned_features
    """
    options = MFN.Config(
        text_hidden=256,
        vision_hidden=256,
        attention_hidden=32,
        proposal_dropout=0.0,
        retain_hidden=256,
        retain_dropout=0.7,
        update_hidden=32,
        update_dropout=0.5,
        out_hidden=128,
        out_dropout=0.0,
        text=FEATURES,
    )
    return table_run("mfn", options, adam(2e-3), 128)


def mosei() -> Run:
    """MFN on MOSEI, aligned features. MMSA's table, of mean frames: MAE .573, Corr .718.

    deepspeed launch/train.py mfn/mosei data=shards/mosei_aligned_features
    """
    options = MFN.Config(
        audio_hidden=16,
        memory=256,
        attention_hidden=32,
        attention_dropout=0.7,
        proposal_hidden=256,
        proposal_dropout=0.2,
        retain_hidden=256,
        retain_dropout=0.2,
        out_hidden=128,
        out_dropout=0.0,
        text=FEATURES,
    )
    return table_run("mfn", options, adam(2e-3), 32)


def mosei_mmsa() -> Run:
    """MFN on MOSEI with the settings that MMSA has today.

    deepspeed launch/train.py mfn/mosei_mmsa data=shards/mosei_aligned_features
    """
    options = MFN.Config(
        memory=128,
        proposal_hidden=128,
        proposal_dropout=0.5,
        retain_hidden=256,
        retain_dropout=0.7,
        out_hidden=128,
        out_dropout=0.5,
        text=FEATURES,
    )
    return table_run("mfn", options, adam(5e-4, 1e-4), 64)


def sims() -> Run:
    """MFN on CH-SIMS, whose frames are averaged by word. MMSA's table, of mean frames: MAE .435,
    Corr .582.

    deepspeed launch/train.py mfn/sims data=shards/sims_features
    """
    options = MFN.Config(
        text_hidden=64,
        audio_hidden=16,
        vision_hidden=64,
        memory=64,
        proposal_hidden=128,
        proposal_dropout=0.0,
        retain_dropout=0.2,
        update_hidden=64,
        update_dropout=0.7,
        out_hidden=64,
        out_dropout=0.7,
        text=FEATURES,
    )
    return table_run("mfn", options, adam(1e-3), 32, metrics="sims")


def simsv2() -> Run:
    """MFN on CH-SIMS v2, whose frames are averaged by word. MMSA's table, of mean frames: MAE .295,
    Corr .727.

    deepspeed launch/train.py mfn/simsv2 data=shards/simsv2_features
    """
    options = MFN.Config(
        audio_hidden=16,
        attention_hidden=32,
        proposal_hidden=128,
        proposal_dropout=0.5,
        retain_hidden=32,
        retain_dropout=0.5,
        update_hidden=32,
        update_dropout=0.2,
        out_hidden=64,
        text=FEATURES,
    )
    return table_run("mfn", options, adam(1e-3), 64, metrics="sims")


def mosi_utterance() -> Run:
    """MFN on MOSI with utterance-level sound and video, which stand at every word.

    deepspeed launch/train.py mfn/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    return utterance_run("mfn", MFN.Config(text=TextConfig(source="bert-base-uncased")))


def demo() -> Run:
    """MFN on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py mfn/demo data=demo/shards
    """
    options = MFN.Config(
        text_hidden=32,
        audio_hidden=16,
        vision_hidden=32,
        memory=32,
        attention_hidden=32,
        attention_dropout=0.1,
        proposal_hidden=32,
        proposal_dropout=0.1,
        retain_hidden=32,
        update_hidden=32,
        out_hidden=32,
        out_dropout=0.1,
    )
    return small_demo("mfn", options)


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
