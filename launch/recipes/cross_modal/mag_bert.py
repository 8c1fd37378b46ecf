"""MAG-BERT (Rahman et al., ACL 2020): the authors' settings, and MMSA's, which has no row of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.cross_modal.mag_bert import MAGBert
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, hscl

ENGLISH = TextConfig(source="bert-base-uncased")


def _groups(rate: float, decay: float) -> dict[str, Group]:
    return {
        "text": Group(rate, decay),
        "text_no_decay": Group(rate, 0.0),
        "main": Group(rate, decay),
    }


def mosi() -> Run:
    """MAG-BERT on MOSI, aligned features, text as BERT token ids, with the authors' settings.
    Paper: MAE .712, Corr .796.

    deepspeed launch/train.py mag_bert/mosi data=shards/mosi_aligned
    """
    return Run(
        model="mag_bert",
        options=MAGBert.Config(text=ENGLISH),
        optim=Optim(groups=_groups(1e-5, 0.01), schedule="linear", warmup=0.1),
        batch_size=48,
        epochs=40,
        patience=0,
    )


def _mmsa(rate: float, options: MAGBert.Config) -> Run:
    optim = Optim(algorithm="adam", groups=_groups(rate, 0.0))
    return Run(
        model="mag_bert", options=options, optim=optim, batch_size=32, epochs=100, patience=8
    )


def mosi_mmsa() -> Run:
    """MAG-BERT on MOSI with the settings of MMSA.

    deepspeed launch/train.py mag_bert/mosi_mmsa data=shards/mosi_aligned
    """
    return _mmsa(2e-5, MAGBert.Config(dropout=0.3, squared=False, text=ENGLISH))


def mosei() -> Run:
    """MAG-BERT on MOSEI, aligned features, with the settings of MMSA.

    deepspeed launch/train.py mag_bert/mosei data=shards/mosei_aligned
    """
    return _mmsa(1e-5, MAGBert.Config(dropout=0.2, squared=False, text=ENGLISH))


def sims() -> Run:
    """MAG-BERT on CH-SIMS, whose frames are pooled to the characters, with the settings of MMSA.

    deepspeed launch/train.py mag_bert/sims data=shards/sims
    """
    text = TextConfig(source="bert-base-chinese")
    run = _mmsa(5e-5, MAGBert.Config(dropout=0.1, squared=False, text=text))
    return replace(run, metrics="sims")


def mosi_utterance() -> Run:
    """MAG-BERT on MOSI with utterance-level sound and video, which move every word alike, and
    transcripts; optimised as HSCL is.

    deepspeed launch/train.py mag_bert/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    groups = _groups(1e-4, 0.01)
    return replace(
        base,
        model="mag_bert",
        options=MAGBert.Config(dropout=0.1, squared=False, text=ENGLISH),
        optim=replace(base.optim, groups=groups),
    )


def demo() -> Run:
    """MAG-BERT on the generated data of ``python -m data_shards.synthetic``. Test MAE 0.394, Corr
    0.910 with seed 1111.

    deepspeed launch/train.py mag_bert/demo data=demo/shards
    """
    options = MAGBert.Config(dropout=0.1, squared=False, text=TextConfig(source="small"))
    return demo_run("mag_bert", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosi_mmsa": mosi_mmsa,
    "mosei": mosei,
    "sims": sims,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
