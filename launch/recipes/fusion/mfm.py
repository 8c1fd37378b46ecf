"""MFM (Tsai et al., ICLR 2019). MMSA's table has no row of it; sizes are of the order of MFN's."""

from __future__ import annotations

from collections.abc import Callable

from core.encoders.text import TextConfig
from core.models.fusion.mfm import MFM
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam, small_demo, table_run, utterance_run


def mosi() -> Run:
    """MFM on MOSI, aligned features.

    deepspeed launch/train.py mfm/mosi data=shards/mosi_aligned_features
    """
    return table_run("mfm", MFM.Config(text=FEATURES), adam(1e-3), 64)


def mosi_utterance() -> Run:
    """MFM on MOSI with utterance-level sound and video, and transcripts; optimised as HSCL is.

    deepspeed launch/train.py mfm/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    return utterance_run("mfm", MFM.Config(text=TextConfig(source="bert-base-uncased")))


def demo() -> Run:
    """MFM on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py mfm/demo data=demo/shards
    """
    options = MFM.Config(
        text_hidden=32,
        audio_hidden=16,
        memory=32,
        attention_hidden=32,
        proposal_hidden=32,
        proposal_dropout=0.2,
        update_hidden=32,
        out_hidden=32,
        decoder_hidden=32,
    )
    return small_demo("mfm", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
