"""MTFN: TFN with a task per modality (Yu et al., ACL 2020). Data need human labels of single
modalities: columns label_text, label_audio and label_vision of a table, or those of CH-SIMS."""

from __future__ import annotations

from collections.abc import Callable

from core.models.fusion.mtfn import MTFN
from launch.config import Run
from launch.recipes.fusion import FEATURES, adam_by_subnet, small_demo, table_run


def sims() -> Run:
    """MTFN on CH-SIMS. MMSA's table: MAE .395, Corr .666.

    deepspeed launch/train.py mtfn/sims data=shards/sims_features
    """
    optim = adam_by_subnet(5e-3, (1e-3, 1e-4, 1e-5, 0.0))
    return table_run("mtfn", MTFN.Config(text=FEATURES), optim, 64, metrics="sims")


def simsv2() -> Run:
    """MTFN on CH-SIMS v2, with the weight decays of CH-SIMS. MMSA's table: MAE .293, Corr .720.

    deepspeed launch/train.py mtfn/simsv2 data=shards/simsv2_features
    """
    options = MTFN.Config(
        text_hidden=64,
        audio_hidden=16,
        vision_hidden=64,
        text_out=32,
        drop_audio=0.3,
        drop_vision=0.3,
        drop_fusion=0.5,
        post_text=16,
        post_audio=5,
        post_vision=64,
        drop_heads=0.5,
        fusion_weight=1.0,
        audio_weight=0.4,
        vision_weight=0.8,
        text=FEATURES,
    )
    optim = adam_by_subnet(5e-4, (1e-3, 1e-4, 1e-5, 0.0))
    return table_run("mtfn", options, optim, 32, metrics="sims")


def demo() -> Run:
    """MTFN on the generated data of ``python -m data_shards.synthetic``, which has labels of single
    modalities.

    deepspeed launch/train.py mtfn/demo data=demo/shards
    """
    options = MTFN.Config(
        text_hidden=64,
        audio_hidden=16,
        vision_hidden=16,
        text_out=32,
        drop_audio=0.1,
        drop_vision=0.1,
        drop_fusion=0.1,
        drop_heads=0.1,
        audio_weight=0.4,
    )
    return small_demo("mtfn", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "sims": sims,
    "simsv2": simsv2,
    "demo": demo,
}
