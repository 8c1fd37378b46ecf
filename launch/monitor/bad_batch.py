"""The end of a run whose loss or gradient is not finite: which samples did it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

import torch

from core import distributed
from core.batch import Batch
from core.files import write_atomically
from launch.engine.deepspeed_engine import engine_autocast, engine_batches
from launch.monitor import control_plane
from launch.session import TrainingSession, TrainingStopped


def report_bad_batch(
    session: TrainingSession,
    micro_batches: list[Batch],
    losses: Mapping[str, float],
    grad_norm: float,
    step: int,
) -> NoReturn:
    """Write which samples made a loss or the gradient non-finite, and stop. Collective.

    Args:
        step: at which it was; the optimiser has not moved since.

    Raises:
        TrainingStopped: always, on every rank.
    """
    progress = session.progress
    path = session.run_dir / f"bad_batch_rank{distributed.rank()}.json"
    not_finite = _not_finite_rows(session, micro_batches, step)
    body = {
        "epoch": progress.epoch,
        "step": step,
        "losses": {name: str(value) for name, value in losses.items()},
        "gradient_norm": str(grad_norm),
        "samples": session.task.sample_ids(micro_batches),
        "not_finite": not_finite,
    }
    write_atomically(path, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    details = [", ".join(f"{name} {value:g}" for name, value in losses.items())]
    details += _sentences_of_all_ranks(not_finite)
    total = sum(losses.values())
    if math.isfinite(total):
        fault = "the gradient is not finite although the loss is"
    else:
        fault = f"loss became {total}"
    raise TrainingStopped(
        f"{fault} in epoch {progress.epoch} at step {step} ({'; '.join(details)}); "
        f"the batch's sample ids are in {path}; the last checkpoint is untouched"
    )


def _not_finite_rows(
    session: TrainingSession, micro_batches: list[Batch], step: int
) -> dict[str, list[str]]:
    """Embedding -> the samples of this rank whose rows of it are not finite. Computed again, to the
    same values: the parameters have not moved, and masks of dropout go by step."""
    found: dict[str, list[str]] = {}
    with torch.no_grad(), engine_autocast(session.engine):
        for batch in engine_batches(session.engine, micro_batches):
            output = session.engine.module.run(batch, step)
            rows = session.model.global_batch_rows(output)
            for name, embedding in rows.embeddings.items():
                bad = ~embedding.isfinite().all(1) & (batch.weight > 0)
                if bool(bad.any()):
                    only_bad = replace(batch, weight=batch.weight * bad)
                    found.setdefault(name, []).extend(session.task.sample_ids([only_bad]))
    return found


def _sentences_of_all_ranks(not_finite: dict[str, list[str]]) -> list[str]:
    sentences = []
    for name, samples in not_finite.items():
        sentences.append(f"embedding {name} of sample {samples[0]} is not finite")
    return [text for text in control_plane.gather_text("; ".join(sentences)) if text]
