"""MISA (Hazarika et al., ACM MM 2020): settings of MMSA's tables, and those that MMSA has today.

MMSA sums the gradients of 2 batches before each step; here the 2 are one batch, whose gradient is
their mean, so half of Adam's epsilon belongs to it, and what draws parts together and holds them
apart sees both. MMSA clips the values of the running sum, here the norm is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.disentangled.misa import MISA
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, for_classes, for_labels, hscl

SUMMED = 2  # batches of MMSA whose gradients are summed for one step
ENGLISH = TextConfig(source="bert-base-uncased")
CHINESE = TextConfig(source="bert-base-chinese")


def _groups(rate: float, decay: float = 0.0) -> dict[str, Group]:
    return {
        "text": Group(rate, decay),
        "text_no_decay": Group(rate, 0.0),
        "main": Group(rate, decay),
    }


def _table_run(options: MISA.Config, batch_size: int) -> Run:
    """A run as MMSA makes it.

    Args:
        batch_size: MMSA's, of which the gradients of two are summed.
    """
    optim = Optim(algorithm="adam", groups=_groups(1e-4), eps=1e-8 / SUMMED, clip=1.0)
    return Run(
        model="misa",
        options=options,
        optim=optim,
        batch_size=SUMMED * batch_size,
        epochs=100,
        patience=8,
    )


def mosi() -> Run:
    """MISA on MOSI, text as BERT token ids. MMSA's table: MAE .777, Corr .778, with sound and video
    cut to the number of tokens (options.clock=text).

    deepspeed launch/train.py misa/mosi data=shards/mosi
    """
    return _table_run(MISA.Config(text=ENGLISH), 64)


def mosi_mmsa() -> Run:
    """MISA on MOSI with the settings that MMSA has today.

    deepspeed launch/train.py misa/mosi_mmsa data=shards/mosi
    """
    options = MISA.Config(difference=0.1, similarity=0.3, reconstruction=1.0, text=ENGLISH)
    return _table_run(options, 16)


def mosei() -> Run:
    """MISA on MOSEI, text as BERT token ids. MMSA's table: MAE .558, Corr .752, with sound and
    video cut to the number of tokens (options.clock=text).

    deepspeed launch/train.py misa/mosei data=shards/mosei
    """
    options = MISA.Config(difference=0.1, similarity=1.0, reconstruction=0.8, text=ENGLISH)
    return _table_run(options, 32)


def mosei_mmsa() -> Run:
    """MISA on MOSEI with the settings that MMSA has today.

    deepspeed launch/train.py misa/mosei_mmsa data=shards/mosei
    """
    options = MISA.Config(
        dropout=0.5, difference=0.3, similarity=0.8, reconstruction=1.0, text=ENGLISH
    )
    return _table_run(options, 64)


def sims() -> Run:
    """MISA on CH-SIMS, with the settings that MMSA had when its table was made, which has no score
    of it.

    deepspeed launch/train.py misa/sims data=shards/sims
    """
    options = MISA.Config(difference=0.5, similarity=0.5, reconstruction=0.8, text=CHINESE)
    return replace(_table_run(options, 64), metrics="sims")


def sims_mmsa() -> Run:
    """MISA on CH-SIMS with the settings that MMSA has today.

    deepspeed launch/train.py misa/sims_mmsa data=shards/sims
    """
    options = MISA.Config(
        dropout=0.0, difference=0.3, similarity=1.0, reconstruction=0.8, text=CHINESE
    )
    return replace(_table_run(options, 64), metrics="sims")


def simsv2() -> Run:
    """MISA on CH-SIMS v2, with MMSA's settings; its table has no score of it.

    deepspeed launch/train.py misa/simsv2 data=shards/simsv2
    """
    options = MISA.Config(
        width=64, dropout=0.5, difference=0.5, similarity=1.0, reconstruction=0.5, text=CHINESE
    )
    return replace(_table_run(options, 16), metrics="sims")


def iemocap() -> Run:
    """MISA on the utterances of IEMOCAP as six or four classes, from a file of dialogues (convert
    --emotions 6), with the weights of MOSI.

    deepspeed launch/train.py misa/iemocap data=shards/iemocap
    """
    return for_classes(_table_run(MISA.Config(text=TextConfig(source="given")), 64))


def mosei_emotions() -> Run:
    """MISA on the six emotions of MOSEI, each of which a clip has or lacks: a table with a column
    for each (convert --targets), with the weights of MOSEI.

    deepspeed launch/train.py misa/mosei_emotions data=shards/mosei_emotions
    """
    return for_labels(mosei())


def mosi_utterance() -> Run:
    """MISA on MOSI with utterance-level sound and video, and transcripts; optimised as HSCL is.

    deepspeed launch/train.py misa/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    optim = replace(base.optim, groups=_groups(1e-4, 0.01))
    return replace(base, model="misa", options=MISA.Config(text=ENGLISH), optim=optim)


def demo() -> Run:
    """MISA on the generated data of ``python -m data_shards.synthetic``.

    Nothing is rebuilt: what is rebuilt is what the encoders give, and a text encoder that begins
    from nothing then soon gives the same for every sentence. Test MAE 0.854, Corr 0.570 with seed
    1111.

    deepspeed launch/train.py misa/demo data=demo/shards
    """
    options = MISA.Config(
        width=32,
        feed=64,
        dropout=0.3,
        layer_dropout=0.1,
        difference=0.01,
        similarity=0.01,
        reconstruction=0.0,
        text=TextConfig(source="small"),
    )
    return demo_run("misa", options)


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosi_mmsa": mosi_mmsa,
    "mosei": mosei,
    "mosei_mmsa": mosei_mmsa,
    "sims": sims,
    "sims_mmsa": sims_mmsa,
    "simsv2": simsv2,
    "iemocap": iemocap,
    "mosei_emotions": mosei_emotions,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
