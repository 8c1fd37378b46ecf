"""Numbers for Weights & Biases. ``WANDB_MODE=offline`` keeps them in the run's directory, from where
``wandb sync`` sends them later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from core.command import Refused
from launch.config import Run, to_dict

PROJECT = "concord"


class WandbLogger:
    """Implements ``launch.reports.loggers.interface.Logger``."""

    def __init__(self, run: Run, run_dir: Path):
        place = str(run_dir.absolute())
        try:
            self._run = wandb.init(
                project=PROJECT,
                name=run_dir.name,
                # the same when the run goes on, which then is one run there as well
                id=hashlib.sha256(place.encode()).hexdigest()[:16],
                resume="allow",
                dir=place,
                config=to_dict(run),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.Error, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise Refused(
                f"log=wandb: {reason}; log in with wandb login, or set WANDB_MODE=offline"
            ) from None
        self._run.define_metric("*", step_metric="optimiser_step")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "optimiser_step": step})

    def files(self, paths: Sequence[Path]) -> None:
        artefact = wandb.Artifact(f"run-{self._run.id}", type="run")
        for path in paths:
            artefact.add_file(str(path), name=path.name)
        self._run.log_artifact(artefact)

    def close(self) -> None:
        self._run.finish()
