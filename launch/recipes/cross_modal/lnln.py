"""LNLN (Zhang, Wang and Yu, NeurIPS 2024): the authors' settings.

One half of the samples is complete in training, the rest lacks a share of its frames that is drawn
anew in each epoch. Half of the frames are missing in validation and test, which is the rate that
the authors chose their epoch by, on test; ``python -m launch.robustness RUN`` then scores that
epoch at every rate (protocol B). The released schedule rises over 20 of 200 epochs, here over a
tenth of all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.cross_modal.lnln import LNLN
from data_shards.missing import Missing
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, hscl


def _groups(rate: float, decay: float) -> dict[str, Group]:
    return {"text": Group(rate, decay), "main": Group(rate, decay)}


MISSING = Missing(protocol="frames", rate=0.5, train="random")


def mosi() -> Run:
    """LNLN on MOSI, unaligned features, text as BERT token ids. Paper, means over rates 0 to 0.9:
    MAE 1.046, Corr .527; at rate 0 .751, .778.

    deepspeed launch/train.py lnln/mosi data=shards/mosi
    """
    return Run(
        model="lnln",
        options=LNLN.Config(text=TextConfig(source="bert-base-uncased")),
        optim=Optim(groups=_groups(1e-4, 1e-4), schedule="cosine", warmup=0.1),
        missing=MISSING,
        batch_size=64,
        epochs=200,
        patience=0,
    )


def mosei() -> Run:
    """LNLN on MOSEI, unaligned features, text as BERT token ids. Paper, means over rates 0 to 0.9:
    MAE .692, Corr .530.

    deepspeed launch/train.py lnln/mosei data=shards/mosei
    """
    base = mosi()
    return replace(base, options=replace(base.options, fusion_layers=4))


def sims() -> Run:
    """LNLN on CH-SIMS. Paper, means over rates 0 to 0.9: MAE .514, Corr .397.

    deepspeed launch/train.py lnln/sims data=shards/sims
    """
    options = LNLN.Config(fusion_layers=4, beta=0.6, text=TextConfig(source="bert-base-chinese"))
    return replace(mosi(), options=options, metrics="sims")


def mosi_utterance() -> Run:
    """LNLN on MOSI with utterance-level sound and video, and transcripts; optimised as HSCL is.
    Nothing is missing.

    deepspeed launch/train.py lnln/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    return replace(
        base,
        model="lnln",
        options=LNLN.Config(squared=False, text=TextConfig(source="bert-base-uncased")),
        optim=replace(base.optim, groups=_groups(1e-4, 0.01)),
    )


def demo() -> Run:
    """LNLN on the generated data of ``python -m data_shards.synthetic``, a fifth of the frames
    missing in evaluation. Test MAE 0.643, Corr 0.789 with seed 1111.

    deepspeed launch/train.py lnln/demo data=demo/shards missing.rate=0.5
    """
    options = LNLN.Config(
        width=32,
        heads=4,
        head_width=16,
        hyper_heads=4,
        embed_layers=1,
        inner_layers=1,
        text=TextConfig(source="small"),
    )
    return demo_run("lnln", options, missing=replace(MISSING, rate=0.2))


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "sims": sims,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
