"""What a service of numbers is asked, and how those that a run names are opened (``log=wandb,mlflow``).

All get the same names, ``kind/name`` as in TensorBoard, the run's settings once, and at its end its
report, scores and settings as files. Credentials are the services' own business: they read their
own variables, and nothing of them is looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from core.command import Refused
from launch.config import Run

HOMES = {
    "wandb": ("launch.reports.loggers.wandb_logger", "WandbLogger"),
    "mlflow": ("launch.reports.loggers.mlflow_logger", "MlflowLogger"),
}
ARTEFACTS = ("report.html", "report.md", "scores.json", "config.json", "predictions.csv")


class Logger(Protocol):
    """One service, open for one run; a run that goes on goes on there as well."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Values by their names, ``kind/name``, at a step of the optimiser."""
        ...

    def files(self, paths: Sequence[Path]) -> None:
        """Keep these files with the run."""
        ...

    def close(self) -> None: ...


def open_loggers(run: Run, run_dir: Path) -> dict[str, Logger]:
    """The services that a run names, by name.

    Raises:
        Refused: one is not installed, or cannot be opened; the message says what to do.
    """
    opened: dict[str, Logger] = {}
    for name in dict.fromkeys(run.log):
        module, kind = HOMES[name]
        try:
            make: Callable[[Run, Path], Logger] = getattr(import_module(module), kind)
        except ImportError as error:
            raise Refused(
                f"log={name} needs a package that is not installed ({error.name}); install it with: "
                "pip install 'concord-train[log]'"
            ) from None
        opened[name] = make(run, run_dir)
    return opened


def artefacts_of(run_dir: Path) -> list[Path]:
    """What is kept with a finished run, as far as it is there."""
    return [run_dir / name for name in ARTEFACTS if (run_dir / name).is_file()]
