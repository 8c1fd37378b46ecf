"""MLF-DNN: LF-DNN with a task per modality (Yu et al., ACL 2020). Data need human labels of single
modalities: columns label_text, label_audio and label_vision of a table, or those of CH-SIMS."""

from __future__ import annotations

from collections.abc import Callable

from core.models.fusion.mlf_dnn import MLFDNN
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam_by_subnet, small_demo, table_run


def sims() -> Run:
    """MLF-DNN on CH-SIMS. MMSA's table: MAE .396, Corr .665.

    deepspeed launch/train.py mlf_dnn/sims data=shards/sims_features
    """
    optim = adam_by_subnet(2e-3, (1e-4, 1e-3, 1e-4, 0.0))
    return table_run("mlf_dnn", MLFDNN.Config(text=FEATURES), optim, 32, metrics="sims")


def simsv2() -> Run:
    """MLF-DNN on CH-SIMS v2, with the weight decays of CH-SIMS. MMSA's table: MAE .335, Corr .640.

    deepspeed launch/train.py mlf_dnn/simsv2 data=shards/simsv2_features
    """
    options = MLFDNN.Config(
        text_hidden=128,
        vision_hidden=128,
        hidden=64,
        drop_audio=0.2,
        drop_vision=0.2,
        drop_fusion=0.3,
        post_text=32,
        post_vision=64,
        drop_heads=0.3,
        fusion_weight=0.8,
        text_weight=1.0,
        audio_weight=0.6,
        vision_weight=0.8,
        text=FEATURES,
    )
    optim = adam_by_subnet(5e-3, (1e-4, 1e-3, 1e-4, 0.0))
    return table_run("mlf_dnn", options, optim, 64, metrics="sims")


def demo() -> Run:
    """MLF-DNN on the generated data of ``python -m data_shards.synthetic``, which has labels of single
    modalities.

    deepspeed launch/train.py mlf_dnn/demo data=demo/shards
    """
    options = MLFDNN.Config(
        text_hidden=32,
        vision_hidden=32,
        drop_audio=0.1,
        drop_vision=0.1,
        drop_fusion=0.1,
        drop_heads=0.1,
    )
    return small_demo("mlf_dnn", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "sims": sims,
    "simsv2": simsv2,
    "demo": demo,
}
