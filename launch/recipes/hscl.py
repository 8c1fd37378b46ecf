"""HSCL (Chen, Wang and Hao, MMM 2024). The released code has settings for MOSI and MOSEI only.

The text encoder is a path or hub name, for example options.text.source=bert-base-uncased.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from core.encoders.backbones.media_encoders import EncoderConfig
from core.encoders.inputs import InputConfig
from core.encoders.text import TextConfig
from core.models.hscl import HSCL
from launch.config import Group, Loading, Optim, Run
from launch.recipes import demo_run, for_classes


def _groups(text: float, main: float, decay: float) -> dict[str, Group]:
    """``main``: the learning rate of all but the text encoder."""
    return {
        "text": Group(text, decay),
        "audio": Group(main, decay),
        "vision": Group(main, decay),
        "main": Group(main, decay),
    }


def mosi() -> Run:
    """HSCL on MOSI, unaligned features, text as BERT token ids.

    deepspeed launch/train.py hscl/mosi data=shards/mosi
    """
    return Run(
        model="hscl",
        options=HSCL.Config(text=TextConfig(source="bert-base-uncased")),
        optim=Optim(
            algorithm="adam",
            groups=_groups(5e-5, 1e-3, 1e-4),
            clip=1.0,
            schedule="step",
            step_epochs=11,
        ),
        batch_size=128,
        epochs=20,
        patience=10,
    )


def mosei() -> Run:
    """HSCL on MOSEI, unaligned features, text as BERT token ids.

    deepspeed launch/train.py hscl/mosei data=shards/mosei
    """
    base = mosi()
    return replace(
        base,
        options=replace(base.options, omega2=0.05, vision_hidden=32, audio_heads=2),
        optim=replace(
            base.optim,
            groups=_groups(1e-5, 1e-4, 1e-4),
            step_epochs=5,
        ),
    )


def sims() -> Run:
    """HSCL on CH-SIMS. No published settings exist; these are MOSI's, with a Chinese encoder.

    deepspeed launch/train.py hscl/sims data=shards/sims
    """
    base = mosi()
    return replace(
        base,
        options=replace(base.options, text=TextConfig(source="bert-base-chinese")),
        metrics="sims",
    )


def simsv2() -> Run:
    """HSCL on CH-SIMS v2. No published settings exist; these are MOSI's, with a Chinese encoder.

    deepspeed launch/train.py hscl/simsv2 data=shards/simsv2
    """
    return sims()


def mosi_utterance() -> Run:
    """HSCL on MOSI with utterance-level sound and video (examples/mosi_utterance.py) and
    transcripts.

    The rates of text and of all else were searched on validation, with late fusion and one seed
    (benchmarks/results/mosi_utterance_search.csv); the other recipes of this name have the same,
    and nothing else was searched. The video features were extracted by a network trained on the
    labels of the train videos: in training they promise what they do not hold on others. Of the two
    main rates the lower won at every rate of the text.

    deepspeed launch/train.py hscl/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    return replace(
        mosi(),
        optim=Optim(
            groups=_groups(5e-5, 1e-4, 0.01),
            clip=1.0,
            schedule="linear",
            warmup=0.1,
        ),
        loading=Loading(bucket=True),
        batch_size=32,
        epochs=3,
        patience=0,
    )


def classes() -> Run:
    """HSCL on labels that are classes, which are 0 or 1 apart in its contrast: a table
    (docs/data.md) with a column ``class``, rates and sizes as on MOSI.

    deepspeed launch/train.py hscl/classes data=shards/mine
    """
    return for_classes(mosi())


def mosi_large() -> Run:
    """HSCL on MOSI with sound and pictures as they are (concord extract --audio raw --vision raw),
    on three large encoders with LoRA.

    Rank, scale, rate, warm-up and schedule of the matrices are those of RoBERTa large in the LoRA
    paper (Hu et al., arXiv:2106.09685, appendix D), which has them on queries and values. Nothing is
    published for HSCL at this size, and nothing was searched: no score is known.

    deepspeed launch/train.py hscl/mosi_large data=shards/mosi_raw
    """
    beside: dict[str, Any] = {"train": "lora", "rank": 8, "adapter_scale": 16.0}
    text = TextConfig(source="roberta-large", targets=("query", "value"), **beside)
    audio = EncoderConfig(
        source="facebook/hubert-large-ll60k", targets=("q_proj", "v_proj"), **beside
    )
    vision = EncoderConfig(
        source="openai/clip-vit-large-patch14", targets=("q_proj", "v_proj"), **beside
    )
    groups = _groups(3e-4, 1e-4, 0.0)
    groups |= {"audio_encoder": Group(3e-4), "vision_encoder": Group(3e-4)}
    return replace(
        mosi(),
        options=HSCL.Config(text=text, inputs=InputConfig(audio=audio, vision=vision)),
        optim=Optim(groups=groups, clip=1.0, schedule="linear", warmup=0.06),
        batch_size=32,
        precision="bf16",
        recompute=True,
    )


def demo() -> Run:
    """HSCL on the generated data of ``python -m data_shards.synthetic``; a small text encoder
    trained from scratch.

    deepspeed launch/train.py hscl/demo data=demo/shards
    """
    return demo_run(
        "hscl",
        HSCL.Config(text=TextConfig(source="small"), layers=1),
        optim=Optim(groups=_groups(2e-3, 2e-3, 1e-3), clip=1.0, schedule="cosine", warmup=0.05),
    )


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi": mosi,
    "mosei": mosei,
    "sims": sims,
    "simsv2": simsv2,
    "mosi_utterance": mosi_utterance,
    "classes": classes,
    "mosi_large": mosi_large,
    "demo": demo,
}
