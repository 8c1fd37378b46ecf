"""From a run to its task and its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from core import building
from core.model import DataSpec, Model
from core.models import MODELS
from core.sketch import sketch
from launch.config import ConfigError, Run
from launch.tasks.task import Task


def build_task(run: Run) -> Task:
    """The task that the run's model names; opens its data.

    Raises:
        ConfigError: the run selects by a score that the task does not give.
    """
    task: Task
    if MODELS[run.model].task == "alignment":
        from launch.tasks.alignment import AlignmentTask

        task = AlignmentTask(run)
    else:
        from launch.tasks.sentiment import SentimentTask

        task = SentimentTask(run)
    if run.select not in task.score_names():
        raise ConfigError(
            f"select={run.select!r} is no score of metrics={run.metrics}; there are "
            f"{', '.join(task.score_names())}"
        )
    return task


def build_model(run: Run, data: DataSpec) -> Model:
    """The run's model for these data. A model that refuses its options or the data does so with a
    ConfigError here, and so does PyTorch where they make it too large for this machine."""
    with _refusing(run):
        return building.build_model(run.model, run.options, data)


def sketch_model(run: Run, data: DataSpec, stored: int, settings: str) -> Model | None:
    """Its shapes alone (``core.sketch``), to be compared with what a checkpoint holds.

    Args:
        stored: parameters of the checkpoint.
        settings: the file that the run's settings are from, for messages.
    """
    with _refusing(run):
        return sketch(partial(building.build_model, run.model, run.options, data), stored, settings)


@contextmanager
def _refusing(run: Run) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, RuntimeError, MemoryError, OverflowError, TypeError) as error:
        if isinstance(error, TypeError) and "verflow" not in str(error):  # of a size, in PyTorch
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"model {run.model!r} cannot be built: {reason}") from error
