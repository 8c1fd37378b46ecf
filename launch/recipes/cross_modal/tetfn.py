"""TETFN (Wang et al., Pattern Recognition 2023). Settings of MMSA's tables.

MMSA sums the gradients of 4 batches before each step, as for Self-MM; the recipes of ``self_mm``
say what becomes of it. Its video passes the sound's kernel, which is written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.cross_modal.tetfn import TETFN
from launch.config import Run
from launch.recipes import demo_run, hscl
from launch.recipes.self_mm import SUMMED, optim_by_modality


def mosi() -> Run:
    """TETFN on MOSI, aligned features, text as BERT token ids. MMSA's table: MAE .708, Corr .798.

    deepspeed launch/train.py tetfn/mosi data=shards/mosi_aligned
    """
    decay = (1e-3, 1e-2, 0.0, 1e-2)
    return Run(
        model="tetfn",
        options=TETFN.Config(text=TextConfig(source="bert-base-uncased")),
        optim=optim_by_modality(5e-4, 3e-4, 3e-4, decay, text=3e-5, summed=SUMMED),
        batch_size=SUMMED * 64,
        epochs=100,
        patience=8,
    )


def mosei() -> Run:
    """TETFN on MOSEI, aligned features, text as BERT token ids. MMSA's table: MAE .537, Corr .770.

    deepspeed launch/train.py tetfn/mosei data=shards/mosei_aligned
    """
    options = TETFN.Config(
        audio_hidden=32,
        vision_hidden=32,
        embed_dropout=0.1,
        relu_dropout=0.1,
        residual_dropout=0.0,
        post_text=64,
        drop_text=0.1,
        drop_vision=0.1,
        text=TextConfig(source="bert-base-uncased"),
    )
    decay = (1e-3, 0.0, 1e-3, 1e-2)
    return replace(
        mosi(),
        options=options,
        optim=optim_by_modality(1e-3, 5e-3, 1e-4, decay, text=3e-5, summed=SUMMED),
        batch_size=SUMMED * 32,
    )


def sims() -> Run:
    """TETFN on CH-SIMS. MMSA's table: MAE .420, Corr .577, with labels limited to 3 instead of
    their range of 1.

    deepspeed launch/train.py tetfn/sims data=shards/sims
    """
    options = TETFN.Config(
        kernels=(3, 5, 5),
        attention_dropout=(0.0, 0.1, 0.0),
        relu_dropout=0.1,
        residual_dropout=0.0,
        post_text=64,
        post_audio=16,
        post_vision=32,
        drop_fusion=0.1,
        text=TextConfig(source="bert-base-chinese"),
    )
    decay = (1e-3, 0.0, 1e-2, 1e-3)
    return replace(
        mosi(),
        options=options,
        optim=optim_by_modality(3e-3, 5e-4, 3e-3, decay, text=3e-5, summed=SUMMED),
        metrics="sims",
    )


def simsv2() -> Run:
    """TETFN on CH-SIMS v2. MMSA's table: MAE .310, Corr .695, with labels limited to 3 instead of
    their range of 1.

    deepspeed launch/train.py tetfn/simsv2 data=shards/simsv2
    """
    options = TETFN.Config(
        vision_hidden=32,
        kernels=(5, 3, 3),
        post_fusion=128,
        post_text=64,
        post_audio=16,
        post_vision=32,
        drop_fusion=0.1,
        drop_text=0.1,
        text=TextConfig(source="bert-base-chinese"),
    )
    decay = (1e-3, 1e-3, 1e-3, 1e-3)
    return replace(
        sims(),
        options=options,
        optim=optim_by_modality(5e-4, 5e-3, 3e-4, decay, text=5e-6, summed=SUMMED),
    )


def mosi_utterance() -> Run:
    """TETFN on MOSI with utterance-level sound and video, and transcripts; rates for the reason
    that HSCL's recipe gives.

    deepspeed launch/train.py tetfn/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    rates = optim_by_modality(1e-5, 1e-5, 1e-3, (0.01, 0.01, 0.01, 0.01), text=1e-4)
    return replace(
        base,
        model="tetfn",
        options=TETFN.Config(text=TextConfig(source="bert-base-uncased")),
        optim=replace(base.optim, groups=rates.groups),
    )


def demo() -> Run:
    """TETFN on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py tetfn/demo data=demo/shards
    """
    options = TETFN.Config(
        width=20,
        heads=2,
        attention_dropout=(0.0, 0.0, 0.0),
        text=TextConfig(source="small"),
    )
    optim = optim_by_modality(2e-3, 2e-3, 2e-3, (0.0, 0.0, 0.0, 1e-3))
    schedule = replace(optim, clip=1.0, schedule="cosine", warmup=0.05)
    return demo_run("tetfn", options, optim=schedule)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "sims": sims,
    "simsv2": simsv2,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
