"""Whether configurations can be trained at all: found out by building their models before a trial starts."""

from __future__ import annotations

import time
from typing import Any

from launch.config import ConfigError
from launch.engine.optimizer import parameter_groups
from launch.tasks.build import build_model, build_task
from tune.overrides import values
from tune.settings import Search
from tune.suggest import Source

ATTEMPTS = 20  # draws of all other settings before a value counts as impossible
SECONDS = 60.0  # spent on trying out a space
SLOW = 1.0  # a model that takes longer to build is not built for every single draw


class Check:
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

    def space(self, source: Source) -> list[str]:
        """Try out the ends of every range, all values of every list, and all points of a grid.

        Returns:
            What is left out of a grid, and why.

        Raises:
            ConfigError: a value that cannot be trained, whatever the others are.
        """
        try:
            usual = self.shapes({})
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if source.grid:
            return self._thin(source)
        until = time.monotonic() + SECONDS
        for key, domain in source.domains.items():
            for value in domain.ends():
                if self(point := {key: value}) and all(
                    self(draw | point) for draw in source.some(ATTEMPTS)
                ):
                    raise ConfigError(f"{key}={value} cannot be trained: {self(point)}")
                if source.kind == "pbt" and self.shapes(point) != usual:
                    raise ConfigError(
                        f"search=pbt cannot change {key}: trials copy each other's weights, and these would have "
                        "other shapes"
                    )
            if time.monotonic() > until:
                break
        return []

    def _thin(self, source: Source) -> list[str]:
        """Take what cannot be trained out of a grid."""
        reasons = [self(point) for point in source.grid]
        left = [point for point, reason in zip(source.grid, reasons, strict=True) if not reason]
        if not left:
            raise ConfigError(f"no point of the grid can be trained; the first: {reasons[0]}")
        out = [
            f"{values(p)}: {reason}"
            for p, reason in zip(source.grid, reasons, strict=True)
            if reason
        ]
        source.grid[:] = left
        return out
