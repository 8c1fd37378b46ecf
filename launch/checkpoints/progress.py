"""Where a run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Saved with every checkpoint."""

    epoch: int = 0  # the epoch in hand
    step: int = 0  # optimiser steps taken
    best: float = math.inf  # lowest objective so far
    best_epoch: int = -1
    finished: bool = False
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's losses so far
    epoch_steps: int = 0  # steps of this epoch so far
