"""TFR-Net (Yuan et al., ACM MM 2021): settings of the authors' code, under their protocol of
missing frames.

A fifth of the frames is missing, in training and in evaluation, as in MMSA's settings: without
missing frames there is nothing to rebuild. Protocol A trains one model per rate: missing.rate=0.3.
The recipes that end in ``_simam`` are the variant with SimAM.
Gradients are cut by their norm instead of their values (to 0.8), and each step takes one batch: the
released loop steps on sums of one to four batches by mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.tfr_net import TFRNet
from data_shards.missing import Missing
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, for_depression, hscl


def _groups(text: float, main: float) -> dict[str, Group]:
    return {
        "text": Group(text, 1e-4),
        "text_no_decay": Group(text, 0.0),
        "main": Group(main, 1e-3),
    }


MISSING = Missing(protocol="frames", rate=0.2)


def mosi() -> Run:
    """TFR-Net on MOSI, unaligned features, text as BERT token ids. Paper: AUILC over rates 0 to 1
    MAE 1.155, Corr .467.

    deepspeed launch/train.py tfr_net/mosi data=shards/mosi missing.rate=0.3
    """
    return Run(
        model="tfr_net",
        options=TFRNet.Config(text=TextConfig(source="bert-base-uncased")),
        optim=Optim(algorithm="adam", groups=_groups(1e-5, 2e-3), clip=1.0),
        missing=MISSING,
        batch_size=24,
        epochs=100,
        patience=6,
    )


def mosei() -> Run:
    """TFR-Net on MOSEI; no settings of the authors are known, so these are EMT-DLFR's for its
    re-run.

    deepspeed launch/train.py tfr_net/mosei data=shards/mosei missing.rate=0.3
    """
    return replace(mosi(), batch_size=16)


def sims() -> Run:
    """TFR-Net on CH-SIMS. Paper: AUILC over rates 0 to 0.5 MAE .237, Corr .253.

    deepspeed launch/train.py tfr_net/sims data=shards/sims missing.rate=0.3
    """
    base = mosi()
    options = TFRNet.Config(
        cross_layers=2,
        relu_dropout=0.0,
        embed_dropout=0.1,
        class_dropout=0.1,
        lambdas=(1.0, 0.01, 1e-4),
        text=TextConfig(source="bert-base-chinese"),
    )
    return replace(base, options=options, batch_size=16, metrics="sims")


def simsv2() -> Run:
    """TFR-Net on CH-SIMS v2. No settings exist; these are those for CH-SIMS.

    deepspeed launch/train.py tfr_net/simsv2 data=shards/simsv2 missing.rate=0.3
    """
    return sims()


def avec2019() -> Run:
    """TFR-Net on the depression scores of AVEC 2019 (PHQ-8 in [0, 24]) from MFCC, AU poses and
    text.

    The data are licensed: bring them as a table (docs/data.md) with --labels 0:24:1. No published
    settings exist; these are MOSI's. Rebuilding is as wide as the longest clip, so average the
    frames down to some hundreds.

    deepspeed launch/train.py tfr_net/avec2019 data=shards/avec2019
    """
    return for_depression(mosi())


def mosi_utterance() -> Run:
    """TFR-Net on MOSI with utterance-level sound and video; rates are those of HSCL's recipe.

    All text goes through 30 channels into encoders that 138 steps train from scratch. Nothing is
    missing, so nothing is rebuilt.

    deepspeed launch/train.py tfr_net/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    options = TFRNet.Config(text=TextConfig(source="bert-base-uncased"), own_rates=True)
    groups = base.optim.groups | {"text_no_decay": Group(5e-5, 0.0)}
    return replace(base, model="tfr_net", options=options, optim=replace(base.optim, groups=groups))


def demo() -> Run:
    """TFR-Net on the generated data of ``python -m data_shards.synthetic``, a fifth of the frames
    missing.

    deepspeed launch/train.py tfr_net/demo data=demo/shards missing.rate=0.5
    """
    options = TFRNet.Config(
        text=TextConfig(source="small"),
        layers=1,
        cross_layers=1,
        gru_layers=1,
        text_dropout=0.1,
    )
    return demo_run("tfr_net", options, missing=MISSING)


def _with_simam(base: Run) -> Run:
    """The run with SimAM behind the first convolutions."""
    return replace(base, options=replace(base.options, simam="conv"))


def mosi_simam() -> Run:
    """TFR-Net with SimAM on MOSI. Where it stands was not published; options.simam=enhanced is the
    other place.

    deepspeed launch/train.py tfr_net/mosi_simam data=shards/mosi
    """
    return _with_simam(mosi())


def demo_simam() -> Run:
    """TFR-Net with SimAM on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py tfr_net/demo_simam data=demo/shards
    """
    return _with_simam(demo())


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "sims": sims,
    "simsv2": simsv2,
    "avec2019": avec2019,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
    "mosi_simam": mosi_simam,
    "demo_simam": demo_simam,
}
