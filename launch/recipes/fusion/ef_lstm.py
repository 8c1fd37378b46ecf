"""EF-LSTM (Williams et al., 2018), as MMSA has it: all modalities aligned to the words."""

from __future__ import annotations

from collections.abc import Callable

from core.encoders.text import TextConfig
from core.models.fusion.ef_lstm import EFLSTM
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam, small_demo, table_run, utterance_run


def mosi() -> Run:
    """EF-LSTM on MOSI, aligned features. MMSA's table: MAE .949, Corr .669.

    deepspeed launch/train.py ef_lstm/mosi data=shards/mosi_aligned_features
    """
    return table_run("ef_lstm", EFLSTM.Config(text=FEATURES), adam(1e-3, 1e-4), 128)


def mosi_mmsa() -> Run:
    """EF-LSTM on MOSI with the settings that MMSA has today.

    deepspeed launch/train.py ef_lstm/mosi_mmsa data=shards/mosi_aligned_features
    """
    options = EFLSTM.Config(hidden=128, layers=4, dropout=0.5, text=FEATURES)
    return table_run("ef_lstm", options, adam(1e-3, 5e-3), 32)


def mosei() -> Run:
    """EF-LSTM on MOSEI, aligned features. MMSA's table: MAE .601, Corr .683.

    deepspeed launch/train.py ef_lstm/mosei data=shards/mosei_aligned_features
    """
    options = EFLSTM.Config(layers=3, dropout=0.4, text=FEATURES)
    return table_run("ef_lstm", options, adam(5e-3, 1e-4), 128)


def mosei_mmsa() -> Run:
    """EF-LSTM on MOSEI with the settings that MMSA has today.

    deepspeed launch/train.py ef_lstm/mosei_mmsa data=shards/mosei_aligned_features
    """
    options = EFLSTM.Config(dropout=0.4, text=FEATURES)
    return table_run("ef_lstm", options, adam(5e-3, 1e-4), 128)


def sims() -> Run:
    """EF-LSTM on CH-SIMS, whose frames are averaged by word. MMSA's table: MAE .591, Corr .055.

    deepspeed launch/train.py ef_lstm/sims data=shards/sims_features
    """
    options = EFLSTM.Config(hidden=32, layers=3, dropout=0.5, text=FEATURES)
    return table_run("ef_lstm", options, adam(5e-4, 1e-3), 128, metrics="sims")


def simsv2() -> Run:
    """EF-LSTM on CH-SIMS v2, whose frames are averaged by word. MMSA's table: MAE .337, Corr .659.

    deepspeed launch/train.py ef_lstm/simsv2 data=shards/simsv2_features
    """
    options = EFLSTM.Config(hidden=128, layers=3, dropout=0.2, text=FEATURES)
    return table_run("ef_lstm", options, adam(5e-4), 32, metrics="sims")


def mosi_utterance() -> Run:
    """EF-LSTM on MOSI with utterance-level sound and video, which stand at every word.

    deepspeed launch/train.py ef_lstm/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    return utterance_run("ef_lstm", EFLSTM.Config(text=TextConfig(source="bert-base-uncased")))


def demo() -> Run:
    """EF-LSTM on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py ef_lstm/demo data=demo/shards
    """
    return small_demo("ef_lstm", EFLSTM.Config(hidden=64, layers=1, dropout=0.1))


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
