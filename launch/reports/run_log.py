"""One run's record: a JSON line per event, TensorBoard scalars, and a progress bar. Only rank 0 writes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from core import distributed


class RunLog:
    """Use as a context manager; ``log.jsonl`` and the TensorBoard files appear in ``run_dir``."""

    def __init__(self, run_dir: Path, steps_per_epoch: int = 0, *, quiet: bool = False):
        self.writes = distributed.rank() == 0
        self.bar: tqdm | None = None
        self.quiet = quiet
        if self.writes:
            from torch.utils.tensorboard import SummaryWriter

            self._lines = (run_dir / "log.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(run_dir / "tensorboard"))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_bar()
        if self.writes:
            self._lines.close()
            self._board.close()

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line, and every number in it to TensorBoard under ``kind/name``."""
        if not self.writes:
            return
        body = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._lines.write(json.dumps(body, ensure_ascii=False) + "\n")
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def say(self, text: str) -> None:
        """A sentence for the person at the terminal."""
        if self.writes:
            tqdm.write(text, file=sys.stderr)

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

    def advance(self, losses: dict[str, float], samples_per_second: float) -> None:
        if self.bar is not None:
            shown = {name: f"{value:.3f}" for name, value in losses.items()}
            self.bar.set_postfix({**shown, "samples/s": f"{samples_per_second:.0f}"}, refresh=False)
            self.bar.update()

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
