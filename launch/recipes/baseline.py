"""Late fusion: what every model must beat. With options.modalities=text it is a head on the text
encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.encoders.text import TextConfig
from core.models.baseline import Baseline
from launch.config import ClassLoss, Run
from launch.recipes import for_classes, for_labels, hscl


def mosi_utterance() -> Run:
    """Late fusion on MOSI with utterance-level sound and video, and transcripts; optimised as HSCL
    is.

    Test MAE 0.739, Corr 0.739 with seed 1111 and a six-layer MiniLM as text
    encoder; with options.modalities=text MAE 0.796, Corr 0.735.

    deepspeed launch/train.py baseline/mosi_utterance data=shards/mosi_utterance
    options.text.source=PATH
    """
    base = hscl.mosi_utterance()
    return replace(base, model="baseline", options=Baseline.Config(text=base.options.text))


def mosi_large() -> Run:
    """Late fusion on MOSI with sound and pictures as they are, on the encoders of hscl/mosi_large;
    nothing was searched.

    deepspeed launch/train.py baseline/mosi_large data=shards/mosi_raw
    """
    base = hscl.mosi_large()
    options = Baseline.Config(text=base.options.text, inputs=base.options.inputs)
    return replace(base, model="baseline", options=options)


def demo() -> Run:
    """Late fusion on the generated data of ``python -m data_shards.synthetic``.

    deepspeed launch/train.py baseline/demo data=demo/shards
    """
    return replace(hscl.demo(), model="baseline", options=Baseline.Config())


def _on_features() -> Run:
    options = Baseline.Config(text=TextConfig(source="given"))
    return replace(mosi_utterance(), options=options, batch_size=32)


def iemocap() -> Run:
    """Late fusion on the utterances of IEMOCAP as six or four classes, from a file of dialogues
    (convert --emotions 6).

    deepspeed launch/train.py baseline/iemocap data=shards/iemocap
    """
    return for_classes(_on_features())


def meld() -> Run:
    """Late fusion on the utterances of MELD as seven emotions or three sentiments, from a file of
    dialogues (convert --emotions 7). Rare emotions count more.

    deepspeed launch/train.py baseline/meld data=shards/meld options.modalities=text,audio
    """
    return replace(for_classes(_on_features()), class_loss=ClassLoss(balance="root"))


def mosei_emotions() -> Run:
    """Late fusion on the six emotions of MOSEI, each of which a clip has or lacks: a table with
    a column for each (convert --targets happy,sad,anger,surprise,disgust,fear --labels 0:3:1/3
    --text features).

    deepspeed launch/train.py baseline/mosei_emotions data=shards/mosei_emotions
    As intensities: classes=given metrics=phq select=MAE goal=min class_loss.balance=none
    """
    return for_labels(_on_features())


RECIPES: dict[str, Callable[[], Run]] = {
    "mosi_utterance": mosi_utterance,
    "mosi_large": mosi_large,
    "iemocap": iemocap,
    "meld": meld,
    "mosei_emotions": mosei_emotions,
    "demo": demo,
}
