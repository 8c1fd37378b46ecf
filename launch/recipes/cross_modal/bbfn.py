"""BBFN (Han et al., ICMI 2021): the authors' settings, one learning rate for all, BERT too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.cross_modal.bbfn import BBFN
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, hscl


def mosi() -> Run:
    """BBFN on MOSI, aligned features, text as BERT token ids, its first nine layers as they are.
    Paper: MAE .776, Corr .755.

    deepspeed launch/train.py bbfn/mosi data=shards/mosi_aligned
    """
    text = TextConfig(source="bert-base-uncased")
    return Run(
        model="bbfn",
        options=BBFN.Config(frozen_layers=9, text=text),
        optim=Optim(algorithm="adam", groups={"text": Group(5e-4), "main": Group(5e-4)}, clip=0.8),
        batch_size=24,
        epochs=40,
        patience=20,
    )


def mosei() -> Run:
    """BBFN on MOSEI, aligned features, text as BERT token ids. The authors' settings are MOSI's.

    deepspeed launch/train.py bbfn/mosei data=shards/mosei_aligned
    """
    return mosi()


def mosi_utterance() -> Run:
    """BBFN on MOSI with utterance-level sound and video, and transcripts; optimised as HSCL is.

    deepspeed launch/train.py bbfn/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    groups = {"text": Group(1e-4, 0.01), "main": Group(1e-3, 0.01)}
    text = TextConfig(source="bert-base-uncased")
    return replace(
        base,
        model="bbfn",
        options=BBFN.Config(squared=False, text=text),
        optim=replace(base.optim, groups=groups),
    )


def demo() -> Run:
    """BBFN on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py bbfn/demo data=demo/shards
    """
    return demo_run("bbfn", BBFN.Config(levels=2, text=TextConfig(source="small")))


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
