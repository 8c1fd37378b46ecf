"""Asynchronous successive halving (Li et al., MLSys 2020) with rungs that survive a restart.

What Ray's scheduler lacks is shown in ``tests/tune/test_libraries.py``:

- ``test_ray_restores_a_search_with_empty_rungs``: the scores that trials had left there are
  forgotten, so that the first trials after a restart all go on.
- ``test_asha_of_ray_lets_a_trial_without_a_score_go_on``: a trial whose score is no number is never
  stopped.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from tune.journal import Journal, Record, RestoredFromJournal

Rung = tuple[int, dict[str, float]]  # (epoch, trial -> score, of which more is better)


class ResumableASHA(RestoredFromJournal, AsyncHyperBandScheduler):
    """Ray's scheduler, its rungs filled from the journal with every trial that has ended.

    Trials that are to go on report from their first epoch anew and take their places again. Trials
    that failed are ended by themselves and take none.
    """

    def __init__(self, journal: Journal, *, epochs: int, grace: int, reduction: int):
        super().__init__(
            time_attr="epoch", max_t=epochs, grace_period=grace, reduction_factor=reduction
        )
        for milestone, scores in self.rungs():
            for record in journal.trials():
                best = best_at(record, milestone)
                if record.state != "running" and best is not None:
                    scores[f"trial {record.number}"] = -best  # Ray maximises

    def rungs(self) -> list[Rung]:
        """The highest first."""
        [bracket] = self._brackets
        return bracket._rungs

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result.get("state") in ("diverged", "failed"):
            self.on_trial_remove(tune_controller, trial)
        else:
            super().on_trial_complete(tune_controller, trial, result)


def best_at(record: Record, milestone: int) -> float | None:
    """Lowest objective with which a trial came to a rung; None if it did not get there."""
    reached = [epoch for epoch in record.history if epoch >= milestone]
    if not reached:
        return None
    first = min(reached)
    return min(event["objective"] for epoch, event in record.history.items() if epoch <= first)
