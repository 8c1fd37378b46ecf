"""Which configuration a trial gets: a function of seed, number, and the trials before it.

So a search that was interrupted goes on with the trials that it would have had, and the same seed
gives the same search. The first trial is the recipe itself, where the space holds it: nothing found
is worse than the default.

optuna draws, and Ray's ``OptunaSearch`` is not used, also not with optuna's journal storage.
``tests/tune/test_libraries.py`` shows what it lacks:

- ``test_optuna_search_repeats_itself_after_a_restart``: with a seed, it draws the configurations
  again that it began with.
- ``test_optuna_search_loses_the_trials_that_ran``: they stay in the storage as running, are not
  handed out again, and their results are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from launch.config import ConfigError, leaves, to_dict
from tune.journal import WORST, Record
from tune.sampling.domain import Choice, Domain
from tune.settings import Search, grid_values

ATTEMPTS = 100  # draws before a space counts as impossible


def distributions(domains: Mapping[str, Domain]) -> dict[str, BaseDistribution]:
    """The domains as optuna knows them; a choice is its value's index: values may be lists."""
    return {key: _distribution(domain) for key, domain in domains.items()}


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(tuple(range(len(domain.values))))
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step or None)


def to_params(domains: Mapping[str, Domain], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in optuna's terms."""
    params = {}
    for key, domain in domains.items():
        value = changes[key]
        params[key] = domain.values.index(value) if isinstance(domain, Choice) else value
    return params


def from_params(domains: Mapping[str, Domain], params: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that optuna's terms stand for."""
    changes = {}
    for key, domain in domains.items():
        param = params[key]
        changes[key] = domain.values[param] if isinstance(domain, Choice) else param
    return changes


def default_point(search: Search, domains: Mapping[str, Domain]) -> dict[str, Any] | None:
    """The recipe's own values of what is searched, if the space holds all of them."""
    values = leaves(to_dict(search.run()))
    point = {}
    for key, domain in domains.items():
        value = values[key]
        point[key] = list(value) if isinstance(value, tuple) else value
        if not domain.contains(point[key]):
            return None
    return point


def grid(domains: Mapping[str, Domain]) -> list[dict[str, Any]]:
    """Every combination of the values of all domains; the last one varies fastest."""
    axes = [grid_values(domain) for domain in domains.values()]
    return [dict(zip(domains, values, strict=True)) for values in itertools.product(*axes)]


class Suggester:
    """Draws the configurations of a search.

    Args:
        refuse: why a configuration cannot be trained, or an empty string.
    """

    def __init__(self, search: Search, refuse: Callable[[dict[str, Any]], str]):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.kind, self.seed = search.search, search.run().seed
        self.domains = search.domains()
        self.refuse = refuse
        self.distributions = distributions(self.domains)
        self.first: dict[str, Any] | None = None
        self.grid: list[dict[str, Any]] = []
        if self.kind == "grid":
            self.grid = grid(self.domains)
        else:
            self.first = default_point(search, self.domains)
        # trials at random before the model of optuna is used
        self.startup = max(5, min(10, search.trials // 3))

    def point(self, number: int, trials: Sequence[Record]) -> dict[str, Any] | None:
        """The configuration of trial ``number`` after ``trials``; None at the end of a grid.

        Raises:
            ConfigError: nothing that can be drawn can be trained.
        """
        if self.kind == "grid":
            return self.grid[number - 1] if number <= len(self.grid) else None
        if number == 1 and self.first is not None:
            return self.first
        reason = ""
        for attempt in range(ATTEMPTS):
            point = self._draw(number, attempt, trials)
            reason = self.refuse(point)
            if not reason:
                return point
        raise ConfigError(
            f"none of {ATTEMPTS} configurations drawn for trial {number} can be trained; "
            f"the last: {reason}"
        )

    def _draw(self, number: int, attempt: int, trials: Sequence[Record]) -> dict[str, Any]:
        # a generator for each draw, so that nothing depends on what was drawn before
        seed = int(np.random.SeedSequence([self.seed, number, attempt]).generate_state(1)[0])
        sampler: BaseSampler = RandomSampler(seed=seed)
        known: list[FrozenTrial] = []
        if self.kind == "optuna":
            sampler = TPESampler(seed=seed, n_startup_trials=self.startup, constant_liar=True)
            known = [self.frozen(record) for record in trials if record.state != "failed"]
        study = optuna.create_study(sampler=sampler)
        study.add_trials(known)
        return from_params(self.domains, study.ask(self.distributions).params)

    def samples(self, count: int) -> list[dict[str, Any]]:
        """A few configurations that no trial gets."""
        return [self._draw(0, attempt, []) for attempt in range(count)]

    def frozen(self, record: Record) -> FrozenTrial:
        """A trial as optuna knows it. One that still runs only keeps others away."""
        state = TrialState.COMPLETE
        value: float | None = record.best if record.usable else WORST
        if record.state == "running":
            state, value = TrialState.RUNNING, None
        return create_trial(
            state=state,
            value=value,
            params=to_params(self.domains, record.changes),
            distributions=self.distributions,
        )
