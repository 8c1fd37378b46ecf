"""Ray Tune, given the trials one after the other by number, and told what to do with them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from launch.config import Run
from tune.asha import Rungs
from tune.cluster import Capacity
from tune.domain import Choice, Domain
from tune.driver import Driver
from tune.journal import Journal, Record
from tune.settings import Search
from tune.trial import Job, Trial
from tune.trial_progress import Progress

Points = Callable[[int, list[Record]], dict[str, Any] | None]


class Population(PopulationBasedTraining):
    """Ray's, whose trials keep their numbers when they take over the configuration of another."""

    def _get_new_config(
        self, trial: Any, trial_to_clone: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return {**config, "number": trial.config["number"], "origin": ""}, operations


class Numbered(Driver, Searcher):
    """Hands Ray the trials that were interrupted, then new ones by number, ``at_once`` at a time."""

    def __init__(self, points: Points, journal: Journal, *, at_once: int, count: int):
        super().__init__(metric="best", mode="min")
        self.points, self.journal, self.at_once, self.count = points, journal, at_once, count
        self.waiting = journal.unfinished()
        self.number = max(journal.records, default=0)
        self.live: set[str] = set()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.live) >= self.at_once:
            return None
        if self.waiting:
            record = self.waiting.pop(0)
            config = {"number": record.number, **record.changes}
            config |= {"origin": record.checkpoint} if record.checkpoint else {}
        else:
            point = (
                self.points(self.number + 1, self.journal.trials())
                if self.number < self.count
                else None
            )
            if point is None:
                return Searcher.FINISHED
            self.number += 1
            config = {"number": self.number, **point}
        self.live.add(trial_id)
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def run(
    search: Search, part: str, points: Points, journal: Journal, capacity: Capacity, count: int
) -> None:
    """Trials until ``count`` have ended, or a signal stops it."""
    config = search.run()
    if part == "trials" and search.search == "pbt":
        population(search, points, journal, capacity, config)
        return
    scheduler: TrialScheduler = FIFOScheduler()
    if part == "trials" and search.scheduler == "asha":
        scheduler = Rungs(
            journal, epochs=config.epochs, grace=search.grace, reduction=search.reduction
        )
    searcher = Numbered(points, journal, at_once=capacity.concurrent, count=count)
    left = count - len(journal.records) + len(searcher.waiting)
    options = TuneConfig(
        metric="best", mode="min", num_samples=left, search_alg=searcher, scheduler=scheduler
    )
    fit(search, part, journal, capacity, options, {}, count)


def population(
    search: Search, points: Points, journal: Journal, capacity: Capacity, config: Run
) -> None:
    """Population based training: all trials side by side or in turns, worse ones going on from better ones."""
    waiting = {record.number: record for record in journal.unfinished()}
    for number in range(1, search.trials + 1):
        if number not in journal.records:
            waiting[number] = Record(number, changes=points(number, []) or {})
    domains = search.domains()
    random.seed(config.seed)  # Ray's scheduler draws from the global generators
    np.random.seed(config.seed)
    scheduler = Population(
        time_attr="epoch",
        metric="objective",
        mode="min",
        perturbation_interval=search.interval or max(1, config.epochs // 5),
        hyperparam_mutations={key: to_ray(domain) for key, domain in domains.items()},
        custom_explore_fn=lambda new: inside(new, domains),
        synch=True,
        log_config=False,
    )
    options = TuneConfig(
        num_samples=1, scheduler=scheduler, max_concurrent_trials=capacity.concurrent
    )
    fit(search, "trials", journal, capacity, options, listed(list(waiting.values())), search.trials)


def to_ray(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return list(domain.values)
    low, high = domain.low, domain.high
    if domain.whole:
        return (tune.lograndint if domain.log else tune.randint)(int(low), int(high) + 1)
    if domain.step:
        return tune.quniform(low, high, domain.step)
    return (tune.loguniform if domain.log else tune.uniform)(low, high)


def inside(config: dict[str, Any], domains: dict[str, Domain]) -> dict[str, Any]:
    """A changed configuration with its numbers back in their ranges."""
    clipped = {
        key: min(max(config[key], domain.low), domain.high)
        for key, domain in domains.items()
        if not isinstance(domain, Choice)
    }
    return {**config, **clipped}


def fit(
    search: Search,
    part: str,
    journal: Journal,
    capacity: Capacity,
    options: TuneConfig,
    space: dict[str, Any],
    count: int,
) -> None:
    config = search.run()
    carried = bool(search.storage) or (part == "trials" and search.search == "pbt")
    job = Job(
        search.recipe,
        search.changes,
        "" if search.storage else str(search.folder / part),
        processes=search.processes,
        cpus=search.cpus,
        gpus=capacity.gpus,
        cwd=os.getcwd(),
        extensions=capacity.extensions,
    )
    trainable = tune.with_resources(tune.with_parameters(Trial, job=job), job.resources())
    progress = Progress(
        journal, trials=count, select=config.select, sign=1.0 if config.goal == "min" else -1.0
    )
    every = 1 if search.storage else 0  # pbt asks for the checkpoints that it needs
    Tuner(
        trainable,
        param_space=space,
        tune_config=options,
        run_config=RunConfig(
            name=f"{part}-{journal.sessions}",
            storage_path=search.storage or str(search.folder / "ray"),
            failure_config=FailureConfig(max_failures=search.retries),
            checkpoint_config=CheckpointConfig(
                num_to_keep=3 if carried else None,
                checkpoint_frequency=every,
                checkpoint_at_end=False,
            ),
            callbacks=[progress],
            verbose=0,
        ),
    ).fit()


def evaluate(search: Search, part: str, journal: Journal, capacity: Capacity) -> None:
    """Scores on test of every confirmed run that has none yet; they go into the journal."""
    todo = [record for record in journal.trials() if record.usable and not record.test]
    journal.write("session")
    space = {"test": True, **listed(todo)}
    options = TuneConfig(
        metric="best", mode="min", num_samples=1, max_concurrent_trials=capacity.concurrent
    )
    fit(search, part, journal, capacity, options, space, len(journal.records))


def listed(records: list[Record]) -> dict[str, Any]:
    """A space that consists of exactly these trials."""
    by_number = {
        record.number: {"origin": record.checkpoint, **record.changes} for record in records
    }

    def of(key: str) -> Any:
        return tune.sample_from(lambda spec: by_number[spec.config["number"]][key])

    keys = next(iter(by_number.values()))
    return {"number": tune.grid_search(sorted(by_number)), **{key: of(key) for key in keys}}
