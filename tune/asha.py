"""Asynchronous successive halving (Li et al., MLSys 2020) by Ray, which remembers its rungs over a restart."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from tune.driver import Driver
from tune.journal import ENDS, Journal


class Rungs(Driver, AsyncHyperBandScheduler):
    """Ray restores a search without the scores that stopped trials had left on the rungs, and a NaN is never stopped.

    Here the rungs are filled from the journal with every trial that has ended. Those that are to go on report from
    their first epoch anew and take their places again. Trials that failed are ended by themselves and take none.
    """

    def __init__(self, journal: Journal, *, epochs: int, grace: int, reduction: int):
        super().__init__(
            time_attr="epoch", max_t=epochs, grace_period=grace, reduction_factor=reduction
        )
        for milestone, scores in self.rungs():
            for record in journal.trials():
                reached = [epoch for epoch in record.history if epoch >= milestone]
                if record.state in ENDS and reached:
                    until = range(1, min(reached) + 1)
                    best = min(
                        record.history[epoch]["objective"]
                        for epoch in until
                        if epoch in record.history
                    )
                    scores[f"trial {record.number}"] = -best  # Ray maximises

    def rungs(self) -> list[tuple[int, dict[str, float]]]:
        """(epoch, trial -> score), the highest first."""
        [bracket] = self._brackets
        return bracket._rungs

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result.get("state") in ("diverged", "failed"):
            self.on_trial_remove(tune_controller, trial)
        else:
            super().on_trial_complete(tune_controller, trial, result)
