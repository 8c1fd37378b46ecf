"""Self-MM (Yu et al., AAAI 2021). Settings of MMSA's tables, which newer papers compare with; the
paper's own are lost.

MMSA sums gradients over 4 batches before each step, and Adam adds the weight decay to that sum.
Here the 4 are one batch, whose gradient is their mean: a quarter of the sum. So a quarter of the
decay and of Adam's epsilon belongs to it, and then every step is MMSA's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.self_mm import SelfMM
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, for_depression, hscl

SUMMED = 4  # batches of MMSA whose gradients are summed for one step


def optim_by_modality(
    audio: float,
    vision: float,
    main: float,
    decay: tuple[float, float, float, float],
    text: float = 5e-5,
    summed: int = 1,
) -> Optim:
    """Learning rates of sound, video and the rest; weight decay of text, sound, video and the rest.

    ``summed``: the decay and epsilon belong to a sum of so many gradients; the optimiser here gets
    their mean.
    """
    decay_text, decay_audio, decay_vision, decay_main = (value / summed for value in decay)
    return Optim(
        algorithm="adam",
        groups={
            "text": Group(text, decay_text),
            "text_no_decay": Group(text, 0.0),
            "audio": Group(audio, decay_audio),
            "vision": Group(vision, decay_vision),
            "main": Group(main, decay_main),
        },
        eps=1e-8 / summed,
    )


def mosi() -> Run:
    """Self-MM on MOSI, unaligned features, text as BERT token ids. MMSA's table: MAE .708, Corr
    .796.

    deepspeed launch/train.py self_mm/mosi data=shards/mosi
    """
    return Run(
        model="self_mm",
        options=SelfMM.Config(text=TextConfig(source="bert-base-uncased")),
        optim=optim_by_modality(5e-3, 5e-3, 1e-3, (1e-3, 1e-3, 1e-3, 1e-3), summed=SUMMED),
        batch_size=SUMMED * 16,
        epochs=100,
        patience=8,
    )


def mosei() -> Run:
    """Self-MM on MOSEI, unaligned features, text as BERT token ids. MMSA's table: MAE .531, Corr
    .765.

    deepspeed launch/train.py self_mm/mosei data=shards/mosei
    """
    base = mosi()
    return replace(
        base,
        options=replace(base.options, drop_fusion=0.1, drop_text=0.0, drop_audio=0.0),
        optim=optim_by_modality(5e-3, 1e-4, 1e-3, (1e-3, 0.0, 0.0, 1e-2), summed=SUMMED),
        batch_size=SUMMED * 32,
    )


def sims() -> Run:
    """Self-MM on CH-SIMS. MMSA's table: MAE .425, Corr .595. The human unimodal labels are only
    compared with.

    deepspeed launch/train.py self_mm/sims data=shards/sims
    """
    base = mosi()
    return replace(
        base,
        options=SelfMM.Config(
            vision_hidden=64, post_text=64, text=TextConfig(source="bert-base-chinese")
        ),
        optim=optim_by_modality(5e-3, 5e-3, 1e-3, (1e-3, 1e-2, 1e-2, 1e-3), summed=SUMMED),
        batch_size=SUMMED * 32,
        metrics="sims",
    )


def simsv2() -> Run:
    """Self-MM on CH-SIMS v2. MMSA's table: MAE .311, Corr .695, with labels limited to 3 instead of
    their range of 1.

    deepspeed launch/train.py self_mm/simsv2 data=shards/simsv2
    """
    base = sims()
    return replace(
        base,
        options=replace(base.options, post_vision=32, post_audio=32, drop_text=0.0),
        optim=optim_by_modality(1e-3, 1e-3, 1e-3, (1e-2, 0.0, 0.0, 1e-3), summed=SUMMED),
        batch_size=SUMMED * 16,
    )


def avec2019() -> Run:
    """Self-MM on the depression scores of AVEC 2019 (PHQ-8 in [0, 24]) from MFCC, AU poses and
    text.

    The data are licensed: bring them as a table (docs/data.md) with --labels 0:24:1. No published
    settings exist; these are MOSI's, with the same decay beside the mean gradient of a batch.

    deepspeed launch/train.py self_mm/avec2019 data=shards/avec2019
    """
    return for_depression(mosi())


def mosi_utterance() -> Run:
    """Self-MM on MOSI with utterance-level sound and video; rates are those of HSCL's recipe.

    deepspeed launch/train.py self_mm/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    optim = replace(
        base.optim,
        groups=optim_by_modality(1e-4, 1e-4, 1e-4, (0.01, 0.01, 0.01, 0.01), text=5e-5).groups,
    )
    return replace(
        base,
        model="self_mm",
        options=SelfMM.Config(text=TextConfig(source="bert-base-uncased")),
        optim=optim,
    )


def mmmo() -> Run:
    """Self-MM on MMMO, word-level sequences, where the text of all 220 train clips is missing.
    Scores in [1, 5].

    Test MAE 1.212, Corr 0.266 with seed 1111. A constant answer has MAE 1.360; ridge regression on
    mean sound and video 1.128, Corr 0.381.

    deepspeed launch/train.py self_mm/mmmo data=shards/mmmo
    """
    return replace(
        demo(),
        options=SelfMM.Config(text=TextConfig(source="small", width=32)),
        metrics="mmmo",
        epochs=20,
        patience=6,
    )


def demo() -> Run:
    """Self-MM on the generated data of ``python -m data_shards.synthetic``.

    Test MAE 0.677, Corr 0.741 with seed 1111; 0.559, 0.821 with 1112. It starts slowly, so it is
    not stopped early.

    deepspeed launch/train.py self_mm/demo data=demo/shards
    """
    optim = optim_by_modality(2e-3, 2e-3, 2e-3, (0.0, 0.0, 0.0, 1e-3))
    return demo_run(
        "self_mm",
        SelfMM.Config(text=TextConfig(source="small")),
        optim=replace(optim, clip=1.0, schedule="cosine", warmup=0.05),
        epochs=20,
        patience=0,
    )


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "sims": sims,
    "simsv2": simsv2,
    "avec2019": avec2019,
    "mosi_utterance": mosi_utterance,
    "mmmo": mmmo,
    "demo": demo,
}
