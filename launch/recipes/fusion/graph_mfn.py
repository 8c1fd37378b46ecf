"""Graph-MFN (Zadeh et al., ACL 2018). In MMSA, whose rows are named, the networks of the graph's
nodes are never trained; here they are."""

from __future__ import annotations

from collections.abc import Callable

from core.encoders.text import TextConfig
from core.models.fusion.graph_mfn import GraphMFN
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam, small_demo, table_run, utterance_run


def mosi() -> Run:
    """Graph-MFN on MOSI, aligned features. MMSA's table, with untrained nodes: MAE .956, Corr .649.

    deepspeed launch/train.py graph_mfn/mosi data=shards/mosi_aligned_features
    """
    return table_run("graph_mfn", GraphMFN.Config(text=FEATURES), adam(1e-3), 32)


def mosi_mmsa() -> Run:
    """Graph-MFN on MOSI with the settings that MMSA has today.

    deepspeed launch/train.py graph_mfn/mosi_mmsa data=shards/mosi_aligned_features
    """
    options = GraphMFN.Config(
        text_hidden=256,
        vision_hidden=256,
        memory=300,
        inner=64,
        proposal_hidden=32,
        retain_hidden=128,
        retain_dropout=0.5,
        update_dropout=0.5,
        out_hidden=256,
        out_dropout=0.0,
        text=FEATURES,
    )
    return table_run("graph_mfn", options, adam(2e-3, 5e-3), 32)


def mosei() -> Run:
    """Graph-MFN on MOSEI, aligned features. MMSA's table, with untrained nodes: MAE .575, Corr
    .713.

    deepspeed launch/train.py graph_mfn/mosei data=shards/mosei_aligned_features
    """
    options = GraphMFN.Config(
        memory=400,
        inner=20,
        proposal_hidden=64,
        proposal_dropout=0.7,
        retain_dropout=0.2,
        update_dropout=0.5,
        out_hidden=64,
        out_dropout=0.5,
        text=FEATURES,
    )
    return table_run("graph_mfn", options, adam(1e-3), 64)


def mosei_mmsa() -> Run:
    """Graph-MFN on MOSEI with the settings that MMSA has today.

    deepspeed launch/train.py graph_mfn/mosei_mmsa data=shards/mosei_aligned_features
    """
    options = GraphMFN.Config(
        audio_hidden=16,
        memory=300,
        inner=128,
        proposal_hidden=32,
        proposal_dropout=0.5,
        retain_hidden=64,
        retain_dropout=0.0,
        update_hidden=256,
        out_hidden=128,
        text=FEATURES,
    )
    return table_run("graph_mfn", options, adam(2e-3, 1e-3), 64)


def sims() -> Run:
    """Graph-MFN on CH-SIMS, whose frames are averaged by word. MMSA's table, with untrained nodes:
    MAE .445, Corr .578.

    deepspeed launch/train.py graph_mfn/sims data=shards/sims_features
    """
    options = GraphMFN.Config(
        text_hidden=256,
        vision_hidden=256,
        memory=64,
        inner=128,
        proposal_hidden=256,
        proposal_dropout=0.5,
        retain_dropout=0.2,
        update_hidden=32,
        out_hidden=256,
        out_dropout=0.2,
        text=FEATURES,
    )
    return table_run("graph_mfn", options, adam(5e-4, 1e-3), 64, metrics="sims")


def simsv2() -> Run:
    """Graph-MFN on CH-SIMS v2, whose frames are averaged by word. MMSA's table, with untrained
    nodes: MAE .379, Corr .574.

    deepspeed launch/train.py graph_mfn/simsv2 data=shards/simsv2_features
    """
    options = GraphMFN.Config(
        audio_hidden=16,
        memory=400,
        proposal_hidden=32,
        proposal_dropout=0.7,
        retain_hidden=256,
        retain_dropout=0.5,
        update_hidden=256,
        update_dropout=0.2,
        out_hidden=256,
        out_dropout=0.2,
        text=FEATURES,
    )
    return table_run("graph_mfn", options, adam(2e-3), 32, metrics="sims")


def mosi_utterance() -> Run:
    """Graph-MFN on MOSI with utterance-level sound and video, which stand at every word.

    deepspeed launch/train.py graph_mfn/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    return utterance_run("graph_mfn", GraphMFN.Config(text=TextConfig(source="bert-base-uncased")))


def demo() -> Run:
    """Graph-MFN on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py graph_mfn/demo data=demo/shards
    """
    options = GraphMFN.Config(
        text_hidden=32,
        audio_hidden=16,
        vision_hidden=32,
        memory=32,
        proposal_hidden=32,
        retain_dropout=0.1,
        update_dropout=0.1,
        out_dropout=0.1,
    )
    return small_demo("graph_mfn", options)


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
