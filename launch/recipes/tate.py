"""TATE (Zeng et al., SIGIR 2022): whole modalities missing. A teacher on complete data comes first,
in one command:

deepspeed launch/distill.py tate/mosi data=shards/mosi run_dir=runs/tate

The plain command that stands with each recipe, ``launch/train.py``, trains without a teacher, and
says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.tate import TATE
from data_shards.missing import Missing
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, for_depression, hscl


def mosi() -> Run:
    """TATE on MOSI as three classes (negative, neutral, positive), a fifth of the samples without a
    modality or two.

    deepspeed launch/train.py tate/mosi data=shards/mosi
    """
    return Run(
        model="tate",
        options=TATE.Config(text=TextConfig(source="bert-base-uncased", frozen=True)),
        optim=Optim(algorithm="adam", groups={"main": Group(1e-3)}),
        missing=Missing(protocol="modality", rate=0.2),
        batch_size=32,
        epochs=15,
        patience=0,
        classes="sign",
        metrics="classes",
        select="Macro_F1",
        goal="max",
    )


def classes() -> Run:
    """TATE on labels that are classes, such as IEMOCAP's four: a table (docs/data.md) with a column
    ``class``.

    The released code takes away vision, audio or text there, but not two of them:
    missing.sets=vision,audio,text

    deepspeed launch/train.py tate/classes data=shards/mine
    """
    return replace(mosi(), classes="given")


def avec2019() -> Run:
    """TATE on the depression scores of AVEC 2019 (PHQ-8 in [0, 24]) from MFCC, AU poses and text.

    The data are licensed: bring them as a table (docs/data.md) with --labels 0:24:1. No published
    settings exist; these are MOSI's, with a score to learn instead of classes.

    deepspeed launch/train.py tate/avec2019 data=shards/avec2019
    """
    return for_depression(mosi())


def mosi_utterance() -> Run:
    """TATE on the scores of MOSI with utterance-level sound and video; rates are those of HSCL's
    recipe.

    deepspeed launch/train.py tate/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    options = TATE.Config(text=TextConfig(source="bert-base-uncased"), own_rates=True)
    return replace(base, model="tate", options=options)


def demo() -> Run:
    """TATE on the scores of the generated data of ``python -m data_shards.synthetic``, nothing
    missing.

    Test MAE 0.372, Corr 0.922 with seed 1111.

    deepspeed launch/train.py tate/demo data=demo/shards missing.rate=0.5
    """
    return demo_run(
        "tate",
        TATE.Config(width=60, text=TextConfig(source="small")),
        missing=Missing(protocol="modality"),
        # under a high rate five epochs without gain are common, and the last ones are the best
        patience=0,
    )


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "classes": classes,
    "avec2019": avec2019,
    "mosi_utterance": mosi_utterance,
    "demo": demo,
}
