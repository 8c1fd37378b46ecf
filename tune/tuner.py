"""Ray Tune, fed with the trials one after the other by number, and told what to do with them."""

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

from core.command import NO_ROOM, is_no_room
from tune.asha import ResumableASHA
from tune.cluster import Capacity
from tune.journal import Journal, Record, RestoredFromJournal
from tune.sampling.domain import Choice, Domain
from tune.settings import Search
from tune.trial import Job, Trial
from tune.trial_progress import ProgressCallback, StopWithoutRoom, speaks_of_no_room

# The configuration of a trial by its number and the earlier trials; None when there are no more.
NextPoint = Callable[[int, list[Record]], dict[str, Any] | None]


class NumberedPBT(PopulationBasedTraining):
    """Ray's, whose trials keep their numbers when they take over the configuration of another."""

    def _get_new_config(
        self, trial: Any, trial_to_clone: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return {**config, "number": trial.config["number"], "origin": ""}, operations


class NumberedSearcher(RestoredFromJournal, Searcher):
    """Hands Ray the trials that were interrupted, then new ones by number, ``at_once`` at a time.

    ``tune.sampling.suggest`` says why it is not Ray's ``OptunaSearch``.
    """

    def __init__(self, next_point: NextPoint, journal: Journal, *, at_once: int, count: int):
        super().__init__(metric="best", mode="min")
        self.next_point, self.journal = next_point, journal
        self.at_once, self.count = at_once, count
        self.waiting = journal.unfinished()
        self.number = max(journal.records, default=0)  # of the newest trial
        self.live: set[str] = set()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.live) >= self.at_once:
            return None
        config = self._waiting_trial() if self.waiting else self._new_trial()
        if config is None:
            return Searcher.FINISHED
        self.live.add(trial_id)
        return config

    def _waiting_trial(self) -> dict[str, Any]:
        record = self.waiting.pop(0)
        config = {"number": record.number, **record.changes}
        if record.checkpoint:
            config["origin"] = record.checkpoint
        return config

    def _new_trial(self) -> dict[str, Any] | None:
        if self.number >= self.count:
            return None
        point = self.next_point(self.number + 1, self.journal.trials())
        if point is None:
            return None
        self.number += 1
        return {"number": self.number, **point}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def run(
    search: Search,
    part: str,
    next_point: NextPoint,
    journal: Journal,
    capacity: Capacity,
    count: int,
) -> None:
    """Trials until ``count`` have ended, or a signal stops it."""
    if part == "trials" and search.search == "pbt":
        run_population(search, next_point, journal, capacity)
        return
    scheduler: TrialScheduler = FIFOScheduler()
    if part == "trials" and search.scheduler == "asha":
        epochs = search.run().epochs
        scheduler = ResumableASHA(
            journal, epochs=epochs, grace=search.grace, reduction=search.reduction
        )
    searcher = NumberedSearcher(next_point, journal, at_once=capacity.concurrent, count=count)
    remaining = count - len(journal.records) + len(searcher.waiting)
    options = TuneConfig(
        metric="best",
        mode="min",
        num_samples=remaining,
        search_alg=searcher,
        scheduler=scheduler,
    )
    fit(search, part, journal, capacity, options, {}, count)


def run_population(
    search: Search, next_point: NextPoint, journal: Journal, capacity: Capacity
) -> None:
    """Population based training: worse trials go on from better ones."""
    waiting = journal.unfinished()
    for number in range(1, search.trials + 1):
        if number not in journal.records:
            waiting.append(Record(number, changes=next_point(number, []) or {}))
    config = search.run()
    domains = search.domains()
    random.seed(config.seed)  # Ray's scheduler draws from the global generators
    np.random.seed(config.seed)
    scheduler = NumberedPBT(
        time_attr="epoch",
        metric="objective",
        mode="min",
        perturbation_interval=search.interval or max(1, config.epochs // 5),
        hyperparam_mutations={key: to_ray(domain) for key, domain in domains.items()},
        custom_explore_fn=lambda changed: clip_to_ranges(changed, domains),
        synch=True,
        log_config=False,
    )
    options = TuneConfig(
        num_samples=1, scheduler=scheduler, max_concurrent_trials=capacity.concurrent
    )
    fit(search, "trials", journal, capacity, options, exactly(waiting), search.trials)


def to_ray(domain: Domain) -> Any:
    """A domain in Ray's terms."""
    if isinstance(domain, Choice):
        return list(domain.values)
    low, high = domain.low, domain.high
    if domain.whole:
        draw_whole = tune.lograndint if domain.log else tune.randint
        return draw_whole(int(low), int(high) + 1)  # Ray leaves out the upper end
    if domain.step:
        return tune.quniform(low, high, domain.step)
    draw = tune.loguniform if domain.log else tune.uniform
    return draw(low, high)


def clip_to_ranges(config: dict[str, Any], domains: dict[str, Domain]) -> dict[str, Any]:
    """A changed configuration with its numbers back in their ranges."""
    clipped = dict(config)
    for key, domain in domains.items():
        if not isinstance(domain, Choice):
            clipped[key] = min(max(config[key], domain.low), domain.high)
    return clipped


def fit(
    search: Search,
    part: str,
    journal: Journal,
    capacity: Capacity,
    options: TuneConfig,
    space: dict[str, Any],
    count: int,
) -> None:
    """Have Ray run the trials of a part of the search; what happens goes into the journal."""
    job = Job(
        search.recipe,
        search.changes,
        "" if search.storage else str(search.folder / part),
        processes=search.processes,
        cpus=search.cpus,
        threads=capacity.threads,
        gpus=capacity.gpus,
        cwd=os.getcwd(),
        extensions=capacity.extensions,
    )
    progress = ProgressCallback(journal, trials=count, select=search.run().select, sign=search.sign)
    # Ray stores checkpoints only where a run travels: between machines, or from trial to trial
    is_population = part == "trials" and search.search == "pbt"
    checkpoints = CheckpointConfig(
        num_to_keep=3 if search.storage or is_population else None,
        checkpoint_frequency=1 if search.storage else 0,  # pbt asks for those that it needs
        checkpoint_at_end=False,
    )
    tuner = Tuner(
        tune.with_resources(tune.with_parameters(Trial, job=job), job.resources()),
        param_space=space,
        tune_config=options,
        run_config=RunConfig(
            name=f"{part}-{journal.sessions}",
            storage_path=search.storage or str(search.folder / "ray"),
            failure_config=FailureConfig(max_failures=search.retries),
            checkpoint_config=checkpoints,
            callbacks=[progress],
            stop=StopWithoutRoom(progress),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        progress.no_room = progress.no_room or room_error(error)
        if not progress.no_room:
            raise
    if progress.no_room:
        raise SearchOutOfRoom(search, progress.no_room)


class SearchOutOfRoom(RuntimeError):
    """A full disk stopped the search; every trial that had not ended before goes on with it."""

    exit_code = NO_ROOM

    def __init__(self, search: Search, reason: str):
        super().__init__(
            f"there is no room: {reason}; every trial that had not ended is still open. Make room, "
            f"then go on with: python -m tune.search --resume {search.folder}"
        )


def room_error(error: BaseException | None) -> str:
    """What an error, or one that it came from, says of a full disk; empty when none does."""
    while error is not None:
        if is_no_room(error) or speaks_of_no_room(str(error)):
            return str(error)
        error = error.__cause__ or error.__context__
    return ""


def evaluate(search: Search, part: str, journal: Journal, capacity: Capacity) -> None:
    """Scores on test of every confirmed run that has none yet; they go into the journal."""
    untested = journal.untested()
    journal.write("session")
    space = {"test": True, **exactly(untested)}
    options = TuneConfig(
        metric="best", mode="min", num_samples=1, max_concurrent_trials=capacity.concurrent
    )
    fit(search, part, journal, capacity, options, space, len(journal.records))


def exactly(records: list[Record]) -> dict[str, Any]:
    """A space that consists of these trials."""
    by_number = {}
    for record in records:
        by_number[record.number] = {"origin": record.checkpoint, **record.changes}

    def value_of(key: str) -> Any:
        return tune.sample_from(lambda spec: by_number[spec.config["number"]][key])

    space: dict[str, Any] = {"number": tune.grid_search(sorted(by_number))}
    for key in by_number[records[0].number]:
        space[key] = value_of(key)
    return space
