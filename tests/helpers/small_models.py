"""The one table of small sizes, and runs of any registered model that are made with it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from core.encoders.text import TextConfig
from core.models import MODELS
from launch.config import Group, Optim, Run

SENTIMENT = [name for name, kind in MODELS.items() if kind.task == "sentiment"]
# with recurrent layers of two directions, which stage 2 refuses on a CPU with several processes
BOTH_WAYS = {"bbfn", "misa", "mmim", "tfr_net"}
ALIGNMENT = [name for name, kind in MODELS.items() if kind.task == "alignment"]

SMALL_SUBNETS = {"text_hidden": 8, "audio_hidden": 6, "vision_hidden": 8}
SMALL_MEMORY = SMALL_SUBNETS | {
    "memory": 6,
    "proposal_hidden": 8,
    "retain_hidden": 8,
    "update_hidden": 8,
    "out_hidden": 8,
}
# Options that cost time and show nothing more when they are large; the others stay as they are.
# Under Adam rounding grows with TATE's width: at 300 the losses of two runs that begin 1e-7 apart
# differ by 6e-4 after 20 steps, at 24 by 3e-7.
SMALL_OPTIONS: dict[str, dict[str, Any]] = {
    "almt": {"width": 16, "heads": 2, "head_width": 8, "tokens": 4, "hyper_heads": 2},
    "bbfn": {"width": 8, "heads": 2, "levels": 2},
    "ef_lstm": {"hidden": 12},
    "eva": {"graph_hidden": 12, "hidden": 8},
    "gcn_align": {"graph_hidden": 12, "attribute_hidden": 8},
    "graph_mfn": SMALL_MEMORY | {"inner": 6, "graph_hidden": 10},
    "hscl": {"layers": 1, "projection_width": 8, "hidden": 8},
    "kecg": {"graph_hidden": 32},
    "lf_dnn": SMALL_SUBNETS | {"text_out": 8},
    "lmf": SMALL_SUBNETS,
    "lnln": {
        "width": 16,
        "heads": 2,
        "head_width": 8,
        "tokens": 4,
        "embed_layers": 1,
        "inner_layers": 1,
        "hyper_heads": 2,
    },
    "mclea": {"graph_hidden": 12, "hidden": 8},
    "meaformer": {"hidden": 12, "feedforward": 16},
    "mfm": SMALL_MEMORY | {"attention_hidden": 8, "factor": 16, "decoder_hidden": 6},
    "mfn": SMALL_MEMORY | {"attention_hidden": 8},
    "misa": {"width": 16, "feed": 16},
    "mlf_dnn": SMALL_SUBNETS | {"text_out": 8},
    "mlmf": SMALL_SUBNETS,
    "mmim": {"hidden": 6, "out": 8, "width": 12, "memory": 6},
    "mtfn": SMALL_SUBNETS | {"text_out": 6, "hidden": 8},
    "mult": {"width": 8, "heads": 2, "layers": 1},
    "tate": {"width": 24},
    "tfn": SMALL_SUBNETS | {"text_out": 6, "hidden": 8},
    "tetfn": {"width": 8, "heads": 2, "vision_hidden": 16, "post_fusion": 16},
    "tfr_net": {"width": 12, "heads": 2, "layers": 1, "cross_layers": 1, "gru_layers": 1},
}
# settings that must fit the labels of the data before a task is built
LABEL_SETTINGS = ("classes", "metrics", "select", "goal")
SMALL_TEXT = TextConfig(source="small", width=16, layers=2, heads=2)


def small_words(model: str) -> list[str]:
    """The small sizes of ``model`` as arguments of a command, for its recipe of the demo."""
    options = SMALL_OPTIONS.get(model, {})
    words = [f"options.{name}={value}" for name, value in options.items()]
    if MODELS[model].task == "sentiment":
        words += ["options.text.width=16", "options.text.layers=1"]
    return words


def small_options(model: str, **changes: Any) -> Any:
    """A model's options at their small sizes, with a tiny text encoder where it has one."""
    options = MODELS[model].Config(**SMALL_OPTIONS.get(model, {}) | changes)
    if any(field.name == "text" for field in fields(options)):
        options = replace(options, text=SMALL_TEXT)
    return options


def small_run(model: str, data: Path | str, **changes: Any) -> Run:
    """A run of ``model`` at its small size, with a learning rate of its own for every group."""
    from launch.tasks.build import build_model, build_task

    graphs = MODELS[model].task == "alignment"
    run = Run(
        model=model,
        recipe=f"{model}/small",
        options=small_options(model),
        data=str(data),
        batch_size=10 if graphs else 13,  # no number of ranks but 1 divides it
        eval_batch_size=16,
        epochs=3,
        select="MRR" if graphs else "MAE",
        goal="max" if graphs else "min",
        metrics="alignment" if graphs else "mosi",
    )
    of_labels = {key: changes[key] for key in LABEL_SETTINGS if key in changes}
    run = replace(run, **of_labels)
    names = build_model(run, build_task(run).data).param_groups()
    groups = {
        name: Group(lr=2e-4 * number, weight_decay=0.01) for number, name in enumerate(names, 1)
    }
    optim = Optim(groups=groups, clip=1.0, schedule="cosine", warmup=0.1)
    return replace(run, **{"optim": optim, **changes})
