"""Whether configurations can be trained: found out by building their models."""

from __future__ import annotations

import time
from typing import Any

from launch.config import ConfigError
from launch.engine.optimizer import parameter_groups
from launch.tasks.build import build_model, build_task
from tune.sampling.domain import one_line
from tune.sampling.suggest import Suggester
from tune.settings import Search

ATTEMPTS = 20  # draws of all other settings before a value counts as impossible
SECONDS = 60.0  # spent on trying out a space
SLOW = 1.0  # seconds; a model that takes longer to build is not built for every single draw


class TrainableCheck:
    """Call with a configuration: why it cannot be trained, or an empty string."""

    def __init__(self, search: Search):
        self.search = search
        self.data = build_task(search.run()).data  # opens the shards: errors in them come first
        self.slow = False

    def shapes(self, changes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Parameter shapes of the configuration's model.

        Raises:
            ValueError: the recipe or the model refuses a value.
        """
        run = self.search.run(changes)
        started = time.monotonic()
        model = build_model(run, self.data)
        parameter_groups(model, run)
        self.slow = time.monotonic() - started > SLOW
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def __call__(self, changes: dict[str, Any]) -> str:
        try:
            if self.slow:
                self.search.run(changes)
            else:
                self.shapes(changes)
            return ""
        except ValueError as error:  # ConfigError and DataError too
            return str(error)

    def space(self, suggester: Suggester) -> list[str]:
        """Try out the ends of every range, all values of every list, and all points of a grid.

        Returns:
            What is left out of a grid, and why.

        Raises:
            ConfigError: a value that cannot be trained, whatever the others are.
        """
        try:
            usual_shapes = self.shapes({})
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if suggester.grid:
            return self._thin(suggester)
        deadline = time.monotonic() + SECONDS
        for key, domain in suggester.domains.items():
            for value in domain.ends():
                point = {key: value}
                reason = self(point)
                if reason and not self._fits_any(point, suggester):
                    raise ConfigError(f"{key}={value} cannot be trained: {reason}")
                if suggester.kind == "pbt" and self.shapes(point) != usual_shapes:
                    raise ConfigError(
                        f"search=pbt cannot change {key}: trials copy each other's weights, "
                        "and these would have other shapes"
                    )
            if time.monotonic() > deadline:
                break
        return []

    def _fits_any(self, point: dict[str, Any], suggester: Suggester) -> bool:
        """Whether the values of ``point`` can be trained with some values of the others."""
        return any(not self(others | point) for others in suggester.samples(ATTEMPTS))

    def _thin(self, suggester: Suggester) -> list[str]:
        """Take what cannot be trained out of a grid; one line for each point of it."""
        fitting, left_out, reasons = [], [], []
        for point in suggester.grid:
            reason = self(point)
            if reason:
                left_out.append(f"{one_line(point)}: {reason}")
                reasons.append(reason)
            else:
                fitting.append(point)
        if not fitting:
            raise ConfigError(f"no point of the grid can be trained; the first: {reasons[0]}")
        suggester.grid = fitting
        return left_out
