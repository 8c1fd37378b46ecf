"""MLMF: LMF with a task per modality (Yu et al., ACL 2020). Data need human labels of single
modalities: columns label_text, label_audio and label_vision of a table, or those of CH-SIMS."""

from __future__ import annotations

from collections.abc import Callable

from core.models.fusion.mlmf import MLMF
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam_by_subnet, small_demo, table_run


def sims() -> Run:
    """MLMF on CH-SIMS. MMSA's table: MAE .409, Corr .639.

    deepspeed launch/train.py mlmf/sims data=shards/sims_features
    """
    optim = adam_by_subnet(1e-3, (1e-4, 0.0, 1e-4, 5e-3), factors=1e-3)
    return table_run("mlmf", MLMF.Config(text=FEATURES), optim, 128, metrics="sims")


def simsv2() -> Run:
    """MLMF on CH-SIMS v2, with the weight decays of CH-SIMS. MMSA's table: MAE .322, Corr .670.

    deepspeed launch/train.py mlmf/simsv2 data=shards/simsv2_features
    """
    options = MLMF.Config(
        text_hidden=64,
        audio_hidden=16,
        vision_hidden=64,
        rank=6,
        post_text=16,
        post_audio=5,
        post_vision=16,
        fusion_weight=0.4,
        text_weight=0.0,
        vision_weight=1.0,
        text=FEATURES,
    )
    optim = adam_by_subnet(5e-3, (1e-4, 0.0, 1e-4, 5e-3), factors=5e-4)
    return table_run("mlmf", options, optim, 64, metrics="sims")


def demo() -> Run:
    """MLMF on the generated data of ``python -m data_shards.synthetic``, which has labels of single
    modalities.

    deepspeed launch/train.py mlmf/demo data=demo/shards
    """
    options = MLMF.Config(
        text_hidden=64,
        vision_hidden=32,
        drop_audio=0.1,
        drop_vision=0.1,
        drop_heads=0.1,
        fusion_weight=1.0,
    )
    return small_demo("mlmf", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "sims": sims,
    "simsv2": simsv2,
    "demo": demo,
}
