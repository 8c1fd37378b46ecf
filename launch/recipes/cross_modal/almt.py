"""ALMT (Zhang et al., EMNLP 2023). The authors' settings, which are MMSA's too; MMSA has no row of
it.

The released schedule rises over 20 of 200 epochs, here over a tenth of all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.cross_modal.almt import ALMT
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, hscl


def _groups(rate: float, decay: float) -> dict[str, Group]:
    return {"text": Group(rate, decay), "main": Group(rate, decay)}


def mosi() -> Run:
    """ALMT on MOSI, unaligned features, text as BERT token ids. Paper, with epochs chosen on test:
    MAE .683, Corr .805.

    deepspeed launch/train.py almt/mosi data=shards/mosi
    """
    return Run(
        model="almt",
        options=ALMT.Config(text=TextConfig(source="bert-base-uncased")),
        optim=Optim(groups=_groups(1e-4, 1e-4), schedule="cosine", warmup=0.1),
        batch_size=64,
        epochs=200,
        patience=32,
    )


def mosei() -> Run:
    """ALMT on MOSEI, unaligned features, text as BERT token ids. Paper, with epochs chosen on test:
    MAE .526, Corr .779.

    deepspeed launch/train.py almt/mosei data=shards/mosei
    """
    base = mosi()
    return replace(base, options=replace(base.options, fusion_layers=4))


def sims() -> Run:
    """ALMT on CH-SIMS. Paper, with epochs chosen on test: MAE .404, Corr .619.

    deepspeed launch/train.py almt/sims data=shards/sims
    """
    options = ALMT.Config(fusion_layers=4, text=TextConfig(source="bert-base-chinese"))
    return replace(mosi(), options=options, metrics="sims")


def mosi_utterance() -> Run:
    """ALMT on MOSI with utterance-level sound and video, and transcripts; optimised as HSCL is.

    deepspeed launch/train.py almt/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    return replace(
        base,
        model="almt",
        options=ALMT.Config(squared=False, text=TextConfig(source="bert-base-uncased")),
        optim=replace(base.optim, groups=_groups(1e-4, 0.01)),
    )


def demo() -> Run:
    """ALMT on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py almt/demo data=demo/shards
    """
    options = ALMT.Config(
        width=32, heads=4, head_width=16, hyper_heads=4, text=TextConfig(source="small")
    )
    return demo_run("almt", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "sims": sims,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
