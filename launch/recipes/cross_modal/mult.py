"""MulT (Tsai et al., ACL 2019). Settings of MMSA's tables, which newer papers compare with, and the
paper's.

The text is features of a frozen BERT (``convert --text features``). MMSA sums the gradients of 8
batches before each step; here the 8 are one batch, whose gradient is their mean, so an eighth of
Adam's epsilon belongs to it. MMSA clips the values of the running sum, here the norm is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.cross_modal.mult import MulT
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, for_labels, hscl

SUMMED = 8  # batches of MMSA whose gradients are summed for one step
FEATURES = TextConfig(source="given")


def _optim(rate: float) -> Optim:
    return Optim(algorithm="adam", groups={"main": Group(rate)}, eps=1e-8 / SUMMED, clip=1.0)


def mosi() -> Run:
    """MulT on MOSI, unaligned features, with the settings of MMSA's table: MAE .880, Corr .702.

    deepspeed launch/train.py mult/mosi data=shards/mosi_features
    """
    return Run(
        model="mult",
        options=MulT.Config(text=FEATURES),
        optim=_optim(1e-3),
        batch_size=SUMMED * 4,
        epochs=100,
        patience=8,
    )


def mosi_mmsa() -> Run:
    """MulT on MOSI with the settings that MMSA has today, under which its encoders know no
    positions.

    deepspeed launch/train.py mult/mosi_mmsa data=shards/mosi_features
    """
    options = MulT.Config(
        width=50,
        kernels=(5, 5, 5),
        attention_dropout=(0.3, 0.2, 0.0),
        relu_dropout=0.0,
        embed_dropout=0.2,
        residual_dropout=0.0,
        text_dropout=0.5,
        out_dropout=0.5,
        positions=False,
        text=FEATURES,
    )
    return replace(mosi(), options=options, optim=_optim(2e-3), batch_size=SUMMED * 16)


def mosi_paper() -> Run:
    """MulT on MOSI with the settings of the paper, as far as they are known: MAE .871, Corr .698
    on GloVe, unaligned.

    deepspeed launch/train.py mult/mosi_paper data=shards/mosi_features
    """
    options = MulT.Config(
        kernels=(1, 1, 1),
        attention_dropout=(0.1, 0.0, 0.0),
        relu_dropout=0.1,
        embed_dropout=0.25,
        residual_dropout=0.1,
        text=FEATURES,
    )
    optim = Optim(algorithm="adam", groups={"main": Group(1e-3)}, clip=0.8)
    return replace(mosi(), options=options, optim=optim, batch_size=128)


def mosei() -> Run:
    """MulT on MOSEI, unaligned features, with the settings of MMSA's table: MAE .559, Corr .733.

    deepspeed launch/train.py mult/mosei data=shards/mosei_features
    """
    options = MulT.Config(
        width=30,
        heads=6,
        kernels=(5, 1, 3),
        attention_dropout=(0.4, 0.0, 0.0),
        relu_dropout=0.0,
        embed_dropout=0.0,
        residual_dropout=0.0,
        text_dropout=0.3,
        out_dropout=0.5,
        text=FEATURES,
    )
    return replace(mosi(), options=options, optim=_optim(5e-4))


def sims() -> Run:
    """MulT on CH-SIMS, with the settings of MMSA's table: MAE .453, Corr .564.

    deepspeed launch/train.py mult/sims data=shards/sims_features
    """
    options = MulT.Config(
        width=50,
        layers=2,
        kernels=(5, 1, 1),
        attention_dropout=(0.2, 0.1, 0.0),
        relu_dropout=0.0,
        text_dropout=0.3,
        text=FEATURES,
    )
    return replace(
        mosi(), options=options, optim=_optim(2e-3), batch_size=SUMMED * 16, metrics="sims"
    )


def simsv2() -> Run:
    """MulT on CH-SIMS v2, with the settings of MMSA's table: MAE .291, Corr .738, without positions
    (options.positions=false).

    deepspeed launch/train.py mult/simsv2 data=shards/simsv2_features
    """
    options = MulT.Config(
        width=30,
        heads=6,
        kernels=(5, 3, 1),
        attention_dropout=(0.1, 0.2, 0.0),
        relu_dropout=0.1,
        embed_dropout=0.2,
        residual_dropout=0.0,
        text_dropout=0.5,
        out_dropout=0.3,
        text=FEATURES,
    )
    return replace(sims(), options=options, optim=_optim(5e-4))


def iemocap() -> Run:
    """MulT on IEMOCAP's four emotions, each of which a clip has or lacks, from MulT's own file
    (convert iemocap_data.pkl --text features), with the sizes of MOSI.

    deepspeed launch/train.py mult/iemocap data=shards/iemocap_mult
    """
    return for_labels(mosi())


def mosi_utterance() -> Run:
    """MulT on MOSI with utterance-level sound and video, and transcripts; optimised as HSCL is.

    deepspeed launch/train.py mult/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    groups = {"text": Group(1e-4, 0.01), "main": Group(1e-3, 0.01)}
    return replace(
        base,
        model="mult",
        options=MulT.Config(text=TextConfig(source="bert-base-uncased")),
        optim=replace(base.optim, groups=groups),
    )


def demo() -> Run:
    """MulT on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py mult/demo data=demo/shards
    """
    options = MulT.Config(
        width=24,
        heads=4,
        layers=1,
        attention_dropout=(0.0, 0.0, 0.0),
        text_dropout=0.1,
        text=TextConfig(source="small"),
    )
    return demo_run("mult", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosi_mmsa": mosi_mmsa,
    "mosi_paper": mosi_paper,
    "mosei": mosei,
    "sims": sims,
    "simsv2": simsv2,
    "iemocap": iemocap,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
