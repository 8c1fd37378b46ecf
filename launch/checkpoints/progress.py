"""Where a run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, NonNegativeInt


@dataclass
class Progress:
    """Saved with every checkpoint."""

    epoch: NonNegativeInt = 0  # the epoch in hand
    step: NonNegativeInt = 0  # optimiser steps taken
    best: float = math.inf  # lowest objective so far
    best_epoch: Annotated[int, Field(ge=-1)] = -1
    finished: bool = False
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's losses so far
    epoch_steps: NonNegativeInt = 0  # steps of this epoch so far
