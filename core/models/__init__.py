"""Every model by name. To add one: write its file and its recipe, add a line here."""

from __future__ import annotations

from typing import Any

from core.model import Model
from core.models.baseline import Baseline
from core.models.cenet import CENet
from core.models.cross_modal.almt import ALMT
from core.models.cross_modal.bbfn import BBFN
from core.models.cross_modal.lnln import LNLN
from core.models.cross_modal.mag_bert import MAGBert
from core.models.cross_modal.mult import MulT
from core.models.cross_modal.tetfn import TETFN
from core.models.hscl import HSCL
from core.models.mclea import MCLEA
from core.models.meaformer import MEAformer
from core.models.self_mm import SelfMM
from core.models.tate import TATE
from core.models.tfr_net import TFRNet

MODELS: dict[str, type[Model[Any, Any]]] = {
    "almt": ALMT,
    "baseline": Baseline,
    "bbfn": BBFN,
    "cenet": CENet,
    "hscl": HSCL,
    "lnln": LNLN,
    "mag_bert": MAGBert,
    "mclea": MCLEA,
    "meaformer": MEAformer,
    "mult": MulT,
    "self_mm": SelfMM,
    "tate": TATE,
    "tetfn": TETFN,
    "tfr_net": TFRNet,
}
