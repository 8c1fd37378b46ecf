"""What is searched for each model when the command line does not say otherwise.

A key is a field of the recipe; a recipe that lacks it (a group of another text encoder, say) is
searched without it. A model without a space of its own here gets ``DEFAULT_SPACE``. Add
``space.KEY=...`` on the command line for more, ``space.KEY=none`` for less, ``space=none`` to start
from nothing.
"""

from __future__ import annotations

from tune.sampling.domain import Around, Choice, Domain, Range


def choice(*values: object) -> Choice:
    return Choice(values)


def uniform(low: float, high: float) -> Range:
    return Range(low, high)


def loguniform(low: float, high: float) -> Range:
    return Range(low, high, log=True)


RATES = choice(5e-4, 1e-3, 2e-3, 5e-3)  # of MMSA's older models
DECAYS = choice(0.0, 1e-4, 1e-3, 5e-3)
BATCHES = choice(32, 64, 128)
UNITS = choice(32, 64, 128, 256)
STEPPED_DROPOUT = choice(0.0, 0.2, 0.5, 0.7)

RATE = Around(10)  # a learning rate: from a tenth of the recipe's to ten times as much

Space = dict[str, Domain | Around]

DEFAULT_SPACE: Space = {
    "optim.groups.main.lr": RATE,
    "optim.groups.text.lr": RATE,
    "options.dropout": uniform(0.0, 0.5),
}

# the lists of MMSA's config_tune for the models of core/models/fusion, each size by itself
_SUBNETS: Space = {
    "batch_size": BATCHES,
    "optim.groups.audio.lr": RATES,
    "optim.groups.vision.lr": RATES,
    "optim.groups.main.lr": RATES,
    "options.text_hidden": choice(64, 128, 256),
    "options.audio_hidden": choice(16, 32),
    "options.vision_hidden": choice(64, 128, 256),
    "options.drop_audio": choice(0.2, 0.3, 0.4),
    "options.drop_vision": choice(0.2, 0.3, 0.4),
}
_HEAD: Space = {
    "options.text_out": UNITS,
    "options.hidden": choice(16, 32, 64, 128),
    "options.drop_fusion": choice(0.2, 0.3, 0.4, 0.5),
}
_LOW_RANK: Space = {
    "options.rank": choice(3, 4, 5, 6),
    "optim.groups.factors.lr": choice(1e-4, 5e-4, 1e-3),
}
_WEIGHTS = choice(0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MULTI_TASK: Space = {
    "optim.groups.text_net.lr": RATES,
    "options.post_text": choice(8, 16, 32, 64),
    "options.post_audio": choice(4, 5),
    "options.post_vision": choice(8, 16, 32, 64),
    "options.drop_heads": choice(0.2, 0.3, 0.4, 0.5),
    "options.fusion_weight": choice(0.2, 0.4, 0.6, 0.8, 1.0),
    "options.text_weight": _WEIGHTS,
    "options.audio_weight": _WEIGHTS,
    "options.vision_weight": _WEIGHTS,
}
_MEMORY: Space = {
    "batch_size": BATCHES,
    "optim.groups.main.lr": RATES,
    "options.text_hidden": choice(64, 128, 256),
    "options.audio_hidden": choice(16, 32),
    "options.vision_hidden": choice(64, 128, 256),
    "options.memory": choice(64, 128, 256, 300, 400),
    "options.proposal_hidden": UNITS,
    "options.proposal_dropout": STEPPED_DROPOUT,
    "options.retain_hidden": UNITS,
    "options.retain_dropout": STEPPED_DROPOUT,
    "options.update_hidden": UNITS,
    "options.update_dropout": STEPPED_DROPOUT,
    "options.out_hidden": UNITS,
    "options.out_dropout": STEPPED_DROPOUT,
}
_FUSION: dict[str, Space] = {
    "ef_lstm": {
        "batch_size": BATCHES,
        "optim.groups.main.lr": RATES,
        "optim.groups.main.weight_decay": DECAYS,
        "options.hidden": choice(16, 32, 64, 128, 256),
        "options.layers": choice(2, 3, 4),
        "options.dropout": choice(0.2, 0.3, 0.4, 0.5),
    },
    "lf_dnn": _SUBNETS | _HEAD | {"optim.groups.main.weight_decay": choice(0.0, 1e-3, 5e-3, 1e-2)},
    "tfn": _SUBNETS | _HEAD,
    "lmf": _SUBNETS | _LOW_RANK | {"optim.groups.main.weight_decay": DECAYS},
    "mlf_dnn": _SUBNETS | _HEAD | _MULTI_TASK,
    "mtfn": _SUBNETS | _HEAD | _MULTI_TASK,
    "mlmf": _SUBNETS | _LOW_RANK | _MULTI_TASK,
    "mfn": _MEMORY
    | {"options.attention_hidden": UNITS, "options.attention_dropout": STEPPED_DROPOUT},
    "mfm": _MEMORY
    | {
        "options.factor": choice(16, 32, 64),
        "options.rebuild": loguniform(0.01, 1.0),
        "options.prior": loguniform(0.01, 1.0),
    },
    "graph_mfn": _MEMORY
    | {
        "options.inner": choice(20, 32, 64, 128),
        "optim.groups.main.weight_decay": choice(0.0, 1e-3, 5e-3, 1e-2),
    },
}

SPACES: dict[str, Space] = {
    **_FUSION,
    "hscl": {
        "options.alpha": loguniform(0.001, 1.0),
        "options.omega1": loguniform(0.001, 1.0),
        "options.omega2": loguniform(0.001, 1.0),
        "options.temperature": loguniform(0.05, 2.0),
        "optim.groups.main.lr": RATE,
        "optim.groups.text.lr": RATE,
        "optim.groups.audio.lr": RATE,
        "optim.groups.vision.lr": RATE,
    },
    "cenet": {
        "options.slots": choice(16, 32, 64, 128, 256),  # S of the external memory
        "options.scale": choice(0.0, 8.0),  # 0: one over the root of the width
        "optim.groups.main.lr": RATE,
        "optim.groups.text.lr": RATE,
    },
    # the list of MMSA's config_tune
    "self_mm": {
        "batch_size": choice(16, 32),
        "optim.groups.audio.lr": choice(1e-4, 1e-3, 5e-3),
        "optim.groups.vision.lr": choice(1e-4, 1e-3, 5e-3),
        "optim.groups.main.lr": choice(1e-4, 1e-3),
        "optim.groups.text.weight_decay": choice(1e-3, 1e-2),
        "optim.groups.main.weight_decay": choice(1e-3, 1e-2),
        "optim.groups.audio.weight_decay": choice(0.0, 1e-3, 1e-2),
        "optim.groups.vision.weight_decay": choice(0.0, 1e-3, 1e-2),
        "options.audio_hidden": choice(16, 32),
        "options.vision_hidden": choice(32, 64),
        "options.post_fusion": choice(64, 128),
        "options.post_text": choice(32, 64),
        "options.post_audio": choice(16, 32),
        "options.post_vision": choice(16, 32),
        "options.drop_fusion": choice(0.0, 0.1),
        "options.drop_text": choice(0.0, 0.1),
        "options.drop_audio": choice(0.0, 0.1),
        "options.drop_vision": choice(0.0, 0.1),
    },
    # MISA's and MMIM's weights are the lists of MMSA's config_tune
    "misa": {
        "batch_size": choice(32, 64, 128),
        "optim.groups.main.lr": RATE,
        "optim.groups.text.lr": RATE,
        "options.width": choice(64, 128, 256),
        "options.dropout": choice(0.0, 0.2, 0.5),
        "options.difference": choice(0.1, 0.3, 0.5),
        "options.similarity": choice(0.5, 0.8, 1.0),
        "options.reconstruction": choice(0.5, 0.8, 1.0),
    },
    "mmim": {
        "optim.groups.main.lr": RATE,
        "optim.groups.text.lr": RATE,
        "optim.groups.mmilb.lr": RATE,
        "options.alpha": choice(0.0, 0.1, 0.2, 0.3, 0.4),
        "options.beta": choice(0.0, 0.1, 0.2, 0.3, 0.4),
    },
    # every value that a published table of settings has (TFR-Net, MMSA, EMT-DLFR)
    "tfr_net": {
        "batch_size": choice(16, 24),
        "optim.groups.text.lr": choice(2e-6, 1e-5),
        "optim.groups.main.lr": choice(1e-3, 2e-3),
        "options.lambdas": choice([5.0, 2.0, 20.0], [1.0, 0.01, 0.0001]),  # text, audio, vision
        "options.relu_dropout": choice(0.0, 0.2),
        "options.embed_dropout": choice(0.1, 0.2),
        "options.class_dropout": choice(0.0, 0.1),
    },
    # of MMSA's config_tune; every number of heads divides every width
    "mult": {
        "optim.groups.main.lr": choice(5e-4, 1e-3, 2e-3, 5e-3),
        "options.width": choice(30, 40, 50),
        "options.heads": choice(5, 10),
        "options.layers": choice(2, 4, 6),
        "options.kernels": choice([1, 1, 1], [1, 5, 1], [5, 1, 1], [5, 1, 3], [5, 3, 1], [5, 5, 5]),
        "options.embed_dropout": choice(0.0, 0.1, 0.2),
        "options.relu_dropout": choice(0.0, 0.1, 0.2),
        "options.residual_dropout": choice(0.0, 0.1, 0.2),
        "options.text_dropout": choice(0.1, 0.2, 0.3, 0.5),
        "options.out_dropout": choice(0.0, 0.1, 0.3, 0.5),
    },
    "mag_bert": {
        "optim.groups.main.lr": RATE,
        "optim.groups.text.lr": RATE,
        "options.beta": choice(0.5, 1.0, 1.5),  # how far a word may be moved
        "options.dropout": uniform(0.0, 0.5),
    },
    # values that MMSA's settings have
    "tetfn": {
        "optim.groups.audio.lr": choice(5e-4, 1e-3, 3e-3),
        "optim.groups.vision.lr": choice(3e-4, 5e-4, 5e-3),
        "optim.groups.main.lr": choice(1e-4, 3e-4, 3e-3),
        "optim.groups.text.lr": choice(5e-6, 3e-5),
        "options.audio_hidden": choice(16, 32),
        "options.vision_hidden": choice(32, 64),
        "options.post_fusion": choice(64, 128),
        "options.post_text": choice(32, 64),
        "options.post_audio": choice(16, 32),
        "options.post_vision": choice(16, 32),
        "options.relu_dropout": choice(0.0, 0.1),
        "options.embed_dropout": choice(0.0, 0.1),
        "options.residual_dropout": choice(0.0, 0.1),
    },
    "almt": {
        "optim.groups.main.lr": RATE,
        "optim.groups.text.lr": RATE,
        "options.fusion_layers": choice(2, 4),
        "options.tokens": choice(4, 8, 16),
    },
    "lnln": {
        "optim.groups.main.lr": RATE,
        "optim.groups.text.lr": RATE,
        "options.fusion_layers": choice(2, 4),
        "options.beta": choice(0.4, 0.6, 0.8),  # of the adversary
        "options.gamma": loguniform(0.01, 1.0),  # of the rebuilding
    },
    "bbfn": {
        "optim.groups.main.lr": RATE,
        "optim.groups.text.lr": RATE,
        "options.levels": choice(2, 3, 4, 5),
        "options.separator": loguniform(0.01, 1.0),
        "options.relu_dropout": uniform(0.0, 0.3),
        "options.residual_dropout": uniform(0.0, 0.3),
    },
    "mclea": {
        "options.temperature": loguniform(0.02, 0.5),
        "options.inter_temperature": loguniform(0.5, 10.0),
        "options.inter_weight": loguniform(0.01, 10.0),
    },
    "meaformer": {
        "options.temperature": loguniform(0.02, 0.5),
        "optim.groups.main.lr": RATE,
    },
    "eva": {
        "optim.groups.main.lr": RATE,
        "options.graph_alpha": loguniform(1.0, 30.0),
        "options.alpha": loguniform(1.0, 30.0),
        "options.beta": loguniform(1.0, 30.0),
    },
    "kecg": {
        "optim.groups.main.lr": RATE,
        "options.margin": loguniform(0.5, 10.0),
        "options.translation": loguniform(0.1, 10.0),
        "options.translation_margin": loguniform(0.2, 5.0),
    },
    "gcn_align": {
        "optim.groups.main.lr": RATE,
        "options.margin": loguniform(0.5, 10.0),
        "options.share": uniform(0.5, 0.95),
    },
    "tate": {
        "optim.groups.main.lr": RATE,
    },
}

# how the papers call these fields
SYMBOLS: dict[str, dict[str, str]] = {
    "hscl": {"tau": "options.temperature"},
    "lnln": {
        "alpha": "options.alpha",
        "beta": "options.beta",
        "gamma": "options.gamma",
        "delta": "options.delta",
    },
    "mag_bert": {"beta": "options.beta"},
    "bbfn": {"lambda": "options.separator"},
    "cenet": {"S": "options.slots"},
    "mclea": {
        "tau1": "options.temperature",
        "tau2": "options.inter_temperature",
        "lambda": "options.inter_weight",
    },
    "meaformer": {"tau": "options.temperature"},
}


def default_space(model: str) -> Space:
    """What is searched for a model, if the command line does not say otherwise."""
    return SPACES.get(model, DEFAULT_SPACE)
