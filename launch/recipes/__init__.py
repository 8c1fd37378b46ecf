"""One file per model, one function per data set; what several recipes share is here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.encoders.text import TextConfig
from launch.config import ClassLoss, Group, Optim, Run


def demo_run(model: str, options: Any, **settings: Any) -> Run:
    """A run on the generated data, which takes a minute; ``settings`` are fields of ``Run`` to set
    otherwise."""
    run = Run(
        model=model,
        options=options,
        optim=Optim(groups={"main": Group(2e-3, 1e-3)}, clip=1.0, schedule="cosine", warmup=0.05),
        batch_size=32,
        epochs=15,
        patience=5,
    )
    return replace(run, **settings)


def for_classes(base: Run) -> Run:
    """The run with labels that are classes; the epoch is chosen by the mean F1 of the classes."""
    return replace(
        base,
        classes="given",
        metrics="classes",
        select="Macro_F1",
        goal="max",
        epochs=60,
        patience=10,
    )


def for_labels(base: Run) -> Run:
    """The run with several labels at once, made of targets above 0; having a rare one counts
    more."""
    return replace(
        for_classes(base),
        classes="present",
        metrics="labels",
        class_loss=ClassLoss(balance="root"),
    )


def for_depression(base: Run) -> Run:
    """The run with the PHQ-8 scores of AVEC 2019 to learn.

    There are few interviews, so batches are small and BERT stays as it is; the concordance
    correlation selects.
    """
    text = TextConfig(source="bert-base-uncased", frozen=True)
    return replace(
        base,
        options=replace(base.options, text=text),
        batch_size=16,
        classes="given",
        metrics="phq",
        select="CCC",
        goal="max",
    )
