"""What a run is: frozen dataclasses, recipes that return them, ``key=value`` changes, JSON in and out."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import pkgutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from core.command import Refused
from core.models import MODELS
from data_shards.missing import Missing


class ConfigError(Refused):
    """A recipe, key or value that cannot be used; the message says what to write instead."""


@dataclass(frozen=True)
class Group:
    """How the parameters of one of the model's groups (``Model.param_groups``) are optimised."""

    lr: float = 1e-3
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Optim:
    algorithm: Literal["adam", "adamw"] = (
        "adamw"  # adam couples the weight decay to the gradient, adamw does not
    )
    groups: dict[str, Group] = field(default_factory=lambda: {"main": Group()})
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 0.0  # largest gradient norm; 0: no clipping
    schedule: Literal["constant", "step", "linear", "cosine"] = "constant"
    warmup: float = 0.0  # part of all steps in which the rate rises from 0
    step_epochs: int = 10  # for "step": epochs between two drops
    gamma: float = 0.1  # for "step": factor of a drop


@dataclass(frozen=True)
class Loading:
    """How samples are streamed. Nothing here changes which samples a step sees, except ``window`` and ``bucket``."""

    window: int = 16  # shards among which samples are shuffled
    bucket: bool = False  # group samples of like length, planned globally
    drop_last: bool = False
    prefetch: int = 2  # batches prepared ahead


@dataclass(frozen=True)
class Run:
    """A whole run. ``options`` is the model's own Config."""

    model: str
    options: Any
    optim: Optim = Optim()
    data: str = ""  # shard folder or URL
    cache: str = ""  # folder for remote shards; by default one of the user's cache folder
    cache_gb: float = 50.0
    on_corrupt: Literal["fail", "skip"] = (
        "fail"  # what happens to a damaged shard; skip: it is left out, and counted
    )
    max_skipped_fraction: float = (
        0.01  # with skip: the share of a split's samples that may be left out
    )
    run_dir: str = ""  # default: runs/<recipe>-<time>
    recipe: str = ""  # name of the recipe this came from
    batch_size: int = 32  # of one optimiser step, over all ranks and micro-batches
    max_micro_batch: int = 0  # most samples a rank takes at once; 0: all of its share
    eval_batch_size: int = 128
    epochs: int = 20
    patience: int = 8  # epochs without a better validation score before stopping; 0: never
    seed: int = 1111
    metrics: Literal["mosi", "sims", "phq", "mmmo", "classes", "alignment"] = "mosi"
    classes: Literal["given", "sign"] = (
        "given"  # sign: scores become the classes negative, neutral and positive
    )
    select: str = "MAE"  # validation score that picks the best epoch
    goal: Literal["min", "max"] = "min"
    missing: Missing = Missing()
    loading: Loading = Loading()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: bool = False  # keep optimiser state in CPU memory
    recompute: bool = (
        False  # keep only the layers' inputs for the backward pass and compute the rest again
    )
    compile: bool = False  # torch.compile of the model
    cache_contrast: bool = (
        True  # with micro-batches: contrastive losses still see the whole global batch (two passes)
    )
    deepspeed: str = ""  # a DeepSpeed JSON file; what it leaves out comes from here
    save_every: int = 0  # steps between checkpoints within an epoch; 0: only after each epoch
    keep: int = 2  # newest checkpoints that stay, besides the best
    check_every: int = 0  # steps between two comparisons of all ranks' parameters; 0: never
    timeout: float = 1800.0  # seconds that ranks wait for one of them before they name it and leave
    task_options: dict[str, Any] = field(
        default_factory=dict
    )  # of the task (alignment: iterative learning)


def recipe_names() -> list[str]:
    """Every recipe as ``model/data_set``."""
    import launch.recipes

    names = []
    for module in pkgutil.iter_modules(launch.recipes.__path__):
        recipes = importlib.import_module(f"launch.recipes.{module.name}")
        names += [f"{module.name}/{name}" for name in recipes.RECIPES]
    return sorted(names)


def load_recipe(name: str) -> Run:
    """The run that recipe ``model/data_set`` stands for."""
    import launch.recipes

    module, _, function = name.partition("/")
    if module in (found.name for found in pkgutil.iter_modules(launch.recipes.__path__)):
        recipes = importlib.import_module(f"launch.recipes.{module}").RECIPES
        if function in recipes:
            run: Run = recipes[function]()
            return dataclasses.replace(run, recipe=name)
    names = recipe_names()
    raise ConfigError(f"no recipe {name!r}{suggest(name, names)}; there are: {', '.join(names)}")


def override(run: Run, changes: Sequence[str]) -> Run:
    """``run`` with ``key=value`` changes; keys are dotted (``optim.groups.text.lr=2e-5``), values JSON or words."""
    tree = to_dict(run)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(
                f"cannot read {change!r}; changes are written key=value, for example batch_size=64"
            )
        _set(tree, RENAMED.get(key, key), _literal(value))
    return from_dict(tree)


def to_dict(run: Run) -> dict[str, Any]:
    return asdict(run)


RENAMED = {
    "on_damage": "on_corrupt",
    "damage_budget": "max_skipped_fraction",
}  # old name -> name; still read


def from_dict(tree: dict[str, Any]) -> Run:
    """The inverse of ``to_dict``, checked against the declared types; old names of settings are read too."""
    tree = {RENAMED.get(key, key): value for key, value in tree.items()}
    if tree.get("model") not in MODELS:
        raise ConfigError(
            f"no model {tree.get('model')!r}{suggest(str(tree.get('model')), list(MODELS))}"
        )
    options = _validate(MODELS[tree["model"]].Config, tree["options"], "options.")
    return dataclasses.replace(_validate(Run, {**tree, "options": None}, ""), options=options)


def _validate(kind: type, tree: dict[str, Any], prefix: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = prefix + ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{key}={first['input']!r}: {first['msg']}") from None


def _literal(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return [_literal(part) for part in value.split(",")] if "," in value else value


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    place = tree
    *path, last = key.split(".")
    for depth, part in enumerate(path):
        _require(place, part, ".".join(path[:depth]), key)
        place = place[part]
    _require(place, last, ".".join(path), key)
    if isinstance(place[last], list | tuple) and not isinstance(value, list):
        value = [value]
    place[last] = value


def _require(place: Any, part: str, where: str, key: str) -> None:
    if not isinstance(place, dict) or part not in place:
        known = list(place) if isinstance(place, dict) else []
        inside = f" in {where!r}" if where else ""
        raise ConfigError(f"no option {key!r}: there is no {part!r}{inside}{suggest(part, known)}")


def suggest(word: str, words: Sequence[str]) -> str:
    """The end of a sentence that asks whether the nearest of ``words`` was meant; empty when none is near."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
