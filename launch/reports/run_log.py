"""One run's record: a JSON line per event, TensorBoard scalars, and a progress bar. Only rank 0
writes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from core import distributed
from core.environment.credentials import redact
from core.files import naming
from core.metrics.declared import headline_metrics, metric_of
from launch.config import Run
from launch.reports.loggers.interface import Logger, open_loggers


class RunLog:
    """Use as a context manager; ``log.jsonl`` and the TensorBoard files appear in ``run_dir``;
    None: no record."""

    def __init__(self, run_dir: Path | None, *, quiet: bool = False, run: Run | None = None):
        self.loggers: dict[str, Logger] = {}  # services that the run names
        self.bar: tqdm | None = None
        self.quiet = quiet
        self.writes = False
        if run_dir is not None and distributed.rank() == 0:
            from torch.utils.tensorboard import SummaryWriter

            self.loggers = open_loggers(run, run_dir) if run is not None else {}
            self.writes = True
            self._path = run_dir / "log.jsonl"
            self._lines = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(run_dir / "tensorboard"))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_bar()
        if self.writes:
            with naming(self._path):
                self._lines.close()
            with naming(Path(self._board.log_dir)):
                self._board.close()
            self._tell(lambda logger: logger.close())

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line, and every number in it to TensorBoard under ``kind/name``."""
        if not self.writes:
            return
        body = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with naming(self._path):
            self._lines.write(json.dumps(body, ensure_ascii=False) + "\n")
            self._lines.flush()
        numbers = {}
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[f"{kind}/{name}"] = float(value)
        with naming(Path(self._board.log_dir)):
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if numbers:
            self._tell(lambda logger: logger.numbers(step, numbers))

    def keep_files(self, paths: Sequence[Path]) -> None:
        """Hand files of the finished run to the services that it names."""
        self._tell(lambda logger: logger.files(paths))

    def _tell(self, what: Callable[[Logger], None]) -> None:
        """Ask every service. One that fails is said and left out from then on: training goes on,
        and all is in the run's own log."""
        for name, logger in list(self.loggers.items()):
            try:
                what(logger)
            except Exception as error:
                del self.loggers[name]
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self.say(f"warning: log={name} failed, and gets nothing more: {redact(reason)}")

    def say(self, text: str) -> None:
        """A sentence for the person at the terminal."""
        if self.writes:
            tqdm.write(text, file=sys.stderr)

    def warn(self, step: int, text: str) -> None:
        """Say what looks wrong, and keep it in the record."""
        self.say(f"warning: {text}")
        self.event("warning", step, {"text": text})

    def open_bar(self, epoch: int, epochs: int, done: int, steps: int) -> None:
        if self.writes and not self.quiet:
            # a bar per epoch where someone watches; elsewhere a line every half minute
            self.bar = tqdm(
                total=steps,
                initial=done,
                desc=f"epoch {epoch + 1}/{epochs}",
                unit="step",
                mininterval=0.2 if sys.stderr.isatty() else 30,
                dynamic_ncols=True,
                leave=False,
            )

    def advance(
        self, losses: dict[str, float], samples_per_second: float, mfu: float | None = None
    ) -> None:
        """One step more on the bar.

        Args:
            mfu: model FLOPs utilisation, where the device's peak is known.
        """
        if self.bar is not None:
            shown = {name: f"{value:.3f}" for name, value in losses.items()}
            shown["samples/s"] = f"{samples_per_second:.0f}"
            if mfu is not None:
                shown["mfu"] = f"{mfu:.1%}"
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """The values under ``prefix_name``, as they stand in the log."""
    return {f"{prefix}_{name}": value for name, value in values.items()}


def epoch_line(scores: dict[str, float], run: Run) -> str:
    """One epoch in one line: the loss, what selection goes by, and how fast it went."""
    loss = sum(value for name, value in scores.items() if name.startswith("loss_"))
    headlines = headline_metrics(scores)
    shown = list(dict.fromkeys([run.select, *headlines]))[:3]
    numbers = "  ".join(f"{name} {metric_of(name).text(scores[name])}" for name in shown)
    done = int(scores["epoch"]) + 1
    left = scores["seconds"] * (run.epochs - done)
    rest = f", at most {spoken_duration(left)} left" if done < run.epochs else ""
    return (
        f"epoch {done}/{run.epochs}  loss {loss:.4f}  valid {numbers}  "
        f"{scores['samples_per_second']:.0f} samples/s, {scores['data_wait']:.1%} waiting for "
        f"data{rest}"
    )


def spoken_duration(seconds: float) -> str:
    """As people say it: 4.2 s, 35 s, 12 min, 3.1 h."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
