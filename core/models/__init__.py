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
from core.models.disentangled.misa import MISA
from core.models.disentangled.mmim import MMIM
from core.models.entities.eva import EVA
from core.models.entities.gcn_align import GCNAlign
from core.models.entities.kecg import KECG
from core.models.fusion.ef_lstm import EFLSTM
from core.models.fusion.graph_mfn import GraphMFN
from core.models.fusion.lf_dnn import LFDNN
from core.models.fusion.lmf import LMF
from core.models.fusion.mfm import MFM
from core.models.fusion.mfn import MFN
from core.models.fusion.mlf_dnn import MLFDNN
from core.models.fusion.mlmf import MLMF
from core.models.fusion.mtfn import MTFN
from core.models.fusion.tfn import TFN
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
    "ef_lstm": EFLSTM,
    "eva": EVA,
    "gcn_align": GCNAlign,
    "graph_mfn": GraphMFN,
    "hscl": HSCL,
    "kecg": KECG,
    "lf_dnn": LFDNN,
    "lmf": LMF,
    "lnln": LNLN,
    "mag_bert": MAGBert,
    "mclea": MCLEA,
    "meaformer": MEAformer,
    "mfm": MFM,
    "mfn": MFN,
    "misa": MISA,
    "mlf_dnn": MLFDNN,
    "mlmf": MLMF,
    "mmim": MMIM,
    "mtfn": MTFN,
    "mult": MulT,
    "self_mm": SelfMM,
    "tate": TATE,
    "tetfn": TETFN,
    "tfn": TFN,
    "tfr_net": TFRNet,
}
