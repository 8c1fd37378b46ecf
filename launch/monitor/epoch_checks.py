"""What the loop asks itself now and then: whether every loss did something, and whether the ranks
still hold the same model."""

from __future__ import annotations

from core.model import Model
from launch.monitor.health import diverged
from launch.session import TrainingSession, TrainingStopped


def warn_of_idle_losses(session: TrainingSession) -> None:
    """Say which losses were zero all epoch, unless the model means them to be: they trained
    nothing."""
    progress = session.progress
    resting = session.model.resting_losses()
    idle = [name for name, total in progress.sums.items() if total == 0 and name not in resting]
    if progress.epoch_steps and idle:
        session.log.warn(
            progress.step,
            f"in every step of epoch {progress.epoch + 1} these losses were 0: "
            f"{', '.join(idle)}. Nothing was learnt from them; their weights or the data "
            "(missing.rate, say) leave them nothing to do",
        )


def compare_ranks(model: Model, step: int) -> None:
    """Collective.

    Raises:
        TrainingStopped: the parameters of the ranks have come to differ.
    """
    different = diverged(model)
    if different:
        raise TrainingStopped(
            f"after step {step} the ranks hold different parameters: {'; '.join(different[:4])}; "
            "checkpoints since the comparison before it may be affected. Look at the memory and "
            "the network of these machines"
        )
