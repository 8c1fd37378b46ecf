"""What the loop asks of a task: batches, scores, and a position that can be saved."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from core.batch import Batch
from core.model import DataSpec, Model
from data_shards.shards.manifest import DataError, Manifest
from data_shards.shards.split_names import NEEDED, missing_splits
from launch.config import Run
from launch.tasks.training_facts import TrainingFacts


@dataclass(frozen=True)
class EvaluationResult:
    """The last evaluation of a split, and what was written about it."""

    scores: dict[str, float]
    plots: list[tuple[str, str]] = field(default_factory=list)  # caption, file in the run directory
    remarks: list[str] = field(default_factory=list)  # sentences for the report


class Task(Protocol):
    """One data set with its scores. ``SentimentTask`` and ``AlignmentTask`` implement it; nothing
    else knows which."""

    data: DataSpec
    manifest: Manifest  # of the shards; says in ``task`` which task this is

    def steps(self, epoch: int) -> int:
        """Optimiser steps of this epoch, the same on every rank."""
        ...

    def train_samples(self) -> int:
        """Samples (or links) of an epoch, without those that are left out on purpose."""
        ...

    def batches(self, epoch: int) -> Iterator[list[Batch]]:
        """What is left of this epoch: per optimiser step, the micro-batches of this rank."""
        ...

    def mark_consumed(self) -> None:
        """The batch at hand has been trained on: ``state_dict`` counts it from now on, and not
        before."""
        ...

    def begin_epoch(self, epoch: int, model: Model) -> None:
        """Told before each epoch, in case the data depend on the model (new links, say)."""
        ...

    def end_epoch(self, epoch: int, model: Model, run_dir: Path) -> None:
        """Told after each epoch; rank 0 writes what the model keeps of each sample into
        ``run_dir``."""
        ...

    def remarks(self, model: Model) -> list[str]:
        """Sentences about data that this training leaves out, said once before it."""
        ...

    def score_names(self) -> list[str]:
        """What ``evaluate`` gives for the validation split, which a run may select by."""
        ...

    def parts(self) -> Sequence[str]:
        """Classes, labels or targets that have scores of their own, ``NAME/metric``."""
        ...

    def evaluate(self, model: Model, split: str, device: torch.device) -> dict[str, float]:
        """Scores over all samples of a split, the same on every rank."""
        ...

    def final(
        self, model: Model, split: str, device: torch.device, run_dir: Path
    ) -> EvaluationResult:
        """Like ``evaluate``, and rank 0 writes predictions and plots into ``run_dir``."""
        ...

    def splits(self) -> list[str]:
        """The splits that there are, among "train", "valid", "test"."""
        ...

    def check_splits(self) -> None:
        """DataError unless all that training and its evaluations read is there."""
        ...

    def constant_baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Name of a constant answer -> its scores on a split; empty where the task has none."""
        ...

    def facts(self) -> TrainingFacts:
        """What whoever scores new samples should know; measured by one process, at the end."""
        ...

    def objective(self, scores: dict[str, float]) -> float:
        """What selection minimises."""
        ...

    def sample_ids(self, micro_batches: list[Batch]) -> list[str]:
        """The samples of a step by the names that the raw data gave them, for messages."""
        ...

    def waiting_remarks(self, waited: float, seconds: float) -> list[str]:
        """What is to be said of an epoch of so many seconds, ``waited`` of which it waited for
        data. Called once after each epoch."""
        ...

    def wait_seconds(self) -> float:
        """Seconds spent waiting for data since the last call."""
        ...

    def skipped(self) -> int:
        """Training samples that are left out because their shards are damaged, as far as is
        known."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: the position in the stream, and what else the task has learnt of its data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def objective_of(run: Run, scores: dict[str, float]) -> float:
    """The score that the run selects by, negated where more is better."""
    score = scores[run.select]
    return score if run.goal == "min" else -score


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """How a model is evaluated: in the precision that it was trained in."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=kind, enabled=kind is not None)


def known_splits(splits: Container[str]) -> list[str]:
    """Those of the usual splits that there are."""
    return [split for split in ("train", "valid", "test") if split in splits]


def check_needed_splits(splits: Iterable[str], data: str) -> None:
    """DataError where training would lack a split, before its first step."""
    there = list(splits)
    missing = missing_splits(there)
    if missing:
        raise DataError(
            f"{data} has no split {missing[0]!r}, and training needs {' and '.join(NEEDED)}; it "
            f"has {', '.join(there)}; give some rows or tars that split, then convert or index again"
        )
