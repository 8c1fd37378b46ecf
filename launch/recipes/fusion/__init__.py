"""Recipes of the models that encode each modality on its own and then fuse; what they share.

Settings are those that MMSA's published tables were made with; where MMSA has other ones today,
recipes that end in ``_mmsa`` have these. Text is features of a frozen BERT
(``python -m data_shards.convert --text features``), as in MMSA.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from core.encoders.text import TextConfig
from launch.config import Group, Optim, Run
from launch.recipes import demo_run, hscl

FEATURES = TextConfig(source="given")
# of sound and video, which other recipes let learn at rates of their own, and of all the rest
GROUPS = ("audio", "vision", "main")
TEXT = Group(5e-5, 1e-3)  # of a pretrained encoder, where text is token ids


def adam(rate: float, decay: float = 0.0, groups: Iterable[str] = GROUPS) -> Optim:
    """Adam with one rate for all groups, as MMSA has it."""
    by_group = {name: Group(rate, decay) for name in groups}
    return Optim(algorithm="adam", groups={"text": TEXT, **by_group})


def adam_by_subnet(
    rate: float, decays: tuple[float, float, float, float], factors: float = 0.0
) -> Optim:
    """Adam as MMSA has it for the multi-label models.

    Args:
        decays: of the text's subnet, sound's, video's, and of the rest.
        factors: the rate of the low-rank factors; 0: the model has none.
    """
    groups = {"text": TEXT}
    for name, decay in zip(("text_net", *GROUPS), decays, strict=True):
        groups[name] = Group(rate, decay)
    if factors:
        groups["factors"] = Group(factors, decays[3])
    return Optim(algorithm="adam", groups=groups)


def table_run(model: str, options: Any, optim: Optim, batch_size: int, **settings: Any) -> Run:
    """A run as MMSA makes it: it stops after 8 epochs without a better validation score."""
    run = Run(
        model=model,
        options=options,
        optim=optim,
        batch_size=batch_size,
        epochs=100,
        patience=8,
    )
    return replace(run, **settings)


def utterance_run(model: str, options: Any) -> Run:
    """On utterance-level MOSI, optimised as HSCL is."""
    base = hscl.mosi_utterance()
    groups = base.optim.groups | {"factors": base.optim.groups["main"]}
    return replace(base, model=model, options=options, optim=replace(base.optim, groups=groups))


def small_demo(model: str, options: Any, rate: float = 2e-3, **settings: Any) -> Run:
    """On the generated data, every group at one rate."""
    group = Group(rate, 1e-3)
    groups = dict.fromkeys(("text_net", "factors", *GROUPS), group)
    optim = Optim(groups=groups, clip=1.0, schedule="cosine", warmup=0.05)
    return demo_run(model, options, optim=optim, **settings)
