"""The loss modules of ``core.losses`` under one name."""

from __future__ import annotations

from core.losses.info_nce import ICL
from core.losses.inter_modal import IAL
from core.losses.supcon import SupCon
from core.losses.supcr import SupCR

__all__ = ["IAL", "ICL", "SupCR", "SupCon"]
