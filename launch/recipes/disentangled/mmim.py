"""MMIM (Han et al., EMNLP 2021): settings that MMSA has for all data alike; its tables have no row
of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.disentangled.mmim import MMIM
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, hscl

ENGLISH = TextConfig(source="bert-base-uncased")


def _groups(text: float, others: float, decay: float) -> dict[str, Group]:
    return {
        "text": Group(text, decay),
        "text_no_decay": Group(text, 0.0),
        "mmilb": Group(others, decay),
        "main": Group(others, decay),
    }


def mosi() -> Run:
    """MMIM on MOSI, unaligned features, text as BERT token ids. Paper: MAE .700, Corr .800.

    deepspeed launch/train.py mmim/mosi data=shards/mosi
    """
    return Run(
        model="mmim",
        options=MMIM.Config(text=ENGLISH),
        optim=Optim(algorithm="adam", groups=_groups(5e-5, 1e-3, 1e-4), clip=1.0),
        batch_size=32,
        epochs=100,
        patience=8,
    )


def mosei() -> Run:
    """MMIM on MOSEI, unaligned features, text as BERT token ids. Paper: MAE .526, Corr .772.

    deepspeed launch/train.py mmim/mosei data=shards/mosei
    """
    return mosi()


def sims() -> Run:
    """MMIM on CH-SIMS.

    deepspeed launch/train.py mmim/sims data=shards/sims
    """
    options = MMIM.Config(text=TextConfig(source="bert-base-chinese"))
    return replace(mosi(), options=options, metrics="sims")


def mosi_utterance() -> Run:
    """MMIM on MOSI with utterance-level sound and video, and transcripts; optimised as HSCL is.

    deepspeed launch/train.py mmim/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    optim = replace(base.optim, groups=_groups(1e-4, 1e-3, 0.01))
    return replace(base, model="mmim", options=MMIM.Config(text=ENGLISH), optim=optim)


def demo() -> Run:
    """MMIM on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py mmim/demo data=demo/shards
    """
    options = MMIM.Config(width=64, text=TextConfig(source="small"))
    optim = Optim(groups=_groups(2e-3, 2e-3, 1e-3), clip=1.0, schedule="cosine", warmup=0.05)
    return demo_run("mmim", options, optim=optim)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "sims": sims,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
