"""Recipes of the baselines that align entities; what they share."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from launch.config import Group, Optim, Run
from launch.tasks.alignment_options import AlignmentOptions


def alignment_run(model: str, options: Any, rate: float, **task_options: Any) -> Run:
    """A run on aligned graphs, as long as MCLEA's is; the epoch that ranks best on validation is
    tested."""
    return Run(
        model=model,
        options=options,
        optim=Optim(groups={"main": Group(lr=rate, weight_decay=0.01)}),
        batch_size=512,
        epochs=120,
        patience=20,
        seed=42,
        metrics="alignment",
        select="all/MRR",
        goal="max",
        task_options=asdict(AlignmentOptions(**task_options)),
    )
