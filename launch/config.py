"""What a run is: frozen dataclasses, recipes that return them, ``key=value`` changes, JSON in and
out."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from core.command import Refused
from core.environment.credentials import remember
from core.models import MODELS
from core.names import suggest
from data_shards.missing import Missing, UnitInterval

# The comment at a field is its help: ``concord train RECIPE --help`` prints it, with type, bounds
# and value.

LARGEST = 2**63 - 1  # of whole numbers
Beta = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(Refused):
    """A recipe, key or value that cannot be used; the message says what to write instead."""


@dataclass(frozen=True)
class Group:
    """How the parameters of one of the model's groups (``Model.param_groups``) are optimised."""

    lr: PositiveFloat = 1e-3  # learning rate, at its highest
    weight_decay: NonNegativeFloat = 0.0
    # of a pretrained encoder: factor of the rate from each layer to the one below it
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True)
class Optim:
    """The optimiser and how its rates change."""

    # adam couples the weight decay to the gradient, adamw does not
    algorithm: Literal["adam", "adamw"] = "adamw"
    groups: dict[str, Group] = field(default_factory=lambda: {"main": Group()})
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # decay of the two moments
    eps: PositiveFloat = 1e-8  # added to the root of the second moment
    clip: NonNegativeFloat = 0.0  # largest gradient norm; 0: no clipping
    schedule: Literal["constant", "step", "linear", "cosine"] = "constant"  # of the rates
    warmup: UnitInterval = 0.0  # part of all steps in which the rate rises from 0
    # one kernel for all parameters of a group; auto: on a GPU
    fused: Literal["auto", True, False] = "auto"
    step_epochs: PositiveInt = 10  # for "step": epochs between two drops
    gamma: PositiveFloat = 0.1  # for "step": factor of a drop


@dataclass(frozen=True)
class Loading:
    """How samples are streamed. Which samples a step sees is changed by ``window``, ``groups``,
    ``bucket``, ``drop_last``, ``empty`` only."""

    window: PositiveInt = 16  # shards among which samples are shuffled
    # most groups of at least four shards that training samples are dealt into; a rank needs the
    # shards of its share of the groups only. 1: one order over all shards
    groups: PositiveInt = 128
    bucket: bool = False  # group samples of like length, planned globally
    drop_last: bool = False  # leave out the samples that fill no whole batch
    prefetch: NonNegativeInt = 2  # batches prepared ahead
    # samples that have none of the data's modalities; leave_out: from training and from scores
    empty: Literal["keep", "leave_out"] = "keep"
    # of sound and pictures that are stored as files: how many are decoded at the same time; 0: one
    # for each core
    decode_threads: NonNegativeInt = 0
    longest_clip: PositiveFloat = 600.0  # seconds; a longer one counts as broken


@dataclass(frozen=True)
class Roles:
    """Which field of the data a model reads as what; by default each by its own name."""

    text: str = "text"
    audio: str = "audio"
    vision: str = "vision"  # for example the field "face"


@dataclass(frozen=True)
class ClassLoss:
    """How classes, and several labels at once, count in the loss; nothing for scores."""

    # how much each class counts: alike; by one over its share of the train split, or by the root of
    # that. Of several labels: how much having one counts against lacking it
    balance: Literal["none", "inverse", "root"] = "none"
    # the same by numbers, one for each class or label in their order; empty: by balance
    weights: tuple[PositiveFloat, ...] = ()
    # exponent of the focal loss, which counts what is right already for little; 0: cross-entropy
    focal: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Run:
    """A whole run: what is trained on which data, and how. ``options`` are the model's own."""

    model: str  # key of the registry in core/models
    options: Any
    optim: Optim = Optim()
    data: str = ""  # shard folder or URL; a folder is kept as an absolute path
    cache: str = ""  # folder for remote shards; by default one of the user's cache folder
    cache_gb: PositiveFloat = 50.0  # most that remote shards may take there, in 10^9 bytes
    # requests for remote shards at a time, over all ranks of a machine; 0: by the server's latency
    connections: NonNegativeInt = 0
    # fetch single samples of remote shards of which a rank needs less than a quarter
    ranges: bool = False
    # what happens to a damaged shard; skip: it is left out, and counted
    on_corrupt: Literal["fail", "skip"] = "fail"
    # with skip: the share of a split's samples that may be left out
    max_skipped_fraction: UnitInterval = 0.01
    run_dir: str = ""  # folder of the run; by default runs/<recipe>-<time>
    recipe: str = ""  # name of the recipe this came from
    batch_size: PositiveInt = 32  # of one optimiser step, over all ranks and micro-batches
    max_micro_batch: NonNegativeInt = 0  # most samples a rank takes at once; 0: all of its share
    eval_batch_size: PositiveInt = 128  # of evaluations
    epochs: PositiveInt = 20
    # epochs without a better validation score before stopping; 0: never
    patience: NonNegativeInt = 8
    seed: NonNegativeInt = 1111  # of the order, the first weights, dropout and masks
    # which scores are computed: those of MOSI and MOSEI, CH-SIMS, depression, MMMO; of classes; of
    # several labels at once; of alignment
    metrics: Literal["mosi", "sims", "phq", "mmmo", "classes", "labels", "alignment"] = "mosi"
    # sign: scores become the classes negative, neutral and positive; a number: that many classes
    # of them; present: each of several targets becomes a label that a sample has, above 0, or lacks
    classes: Literal["given", "sign", "present", 2, 3, 5, 7] = "given"
    class_loss: ClassLoss = ClassLoss()
    select: str = "MAE"  # validation score that picks the best epoch
    goal: Literal["min", "max"] = "min"  # whether the best is the lowest or the highest
    missing: Missing = Missing()
    roles: Roles = Roles()
    loading: Loading = Loading()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    # what ranks share: 0 nothing, 1 optimiser state, 2 gradients too, 3 parameters too; auto: the
    # least that fits the GPU's memory, and 1 on a CPU
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    offload: bool = False  # keep optimiser state in CPU memory
    # CPU threads of a process; 0: OMP_NUM_THREADS, or else the cores divided by the ranks here
    threads: NonNegativeInt = 0
    # keep only the layers' inputs for the backward pass and compute the rest again
    recompute: bool = False
    compile: bool = False  # torch.compile of the model
    cuda_graphs: bool = False  # with compile, on a GPU: shapes that come again are played back
    # with micro-batches: contrastive losses still see the whole global batch (two passes)
    cache_contrast: bool = True
    deepspeed: str = ""  # a DeepSpeed JSON file; what it leaves out comes from here
    # steps between checkpoints within an epoch; 0: only after each epoch
    save_every: NonNegativeInt = 0
    keep: PositiveInt = 2  # newest checkpoints that stay, besides the best
    # steps between two looks at losses and norms, which wait for the GPU; 0: 10 there, 1 on a CPU
    log_every: NonNegativeInt = 0
    # steps between two comparisons of all ranks' parameters; 0: never
    check_every: NonNegativeInt = 0
    # seconds that ranks wait for one of them before they name it and leave
    timeout: PositiveFloat = 1800.0
    # of the task (alignment: iterative learning)
    task_options: dict[str, Any] = field(default_factory=dict)


def recipe_functions() -> dict[str, Callable[[], Run]]:
    """Every recipe by its name, ``model/data_set``."""
    import launch.recipes

    functions: dict[str, Callable[[], Run]] = {}
    for module in pkgutil.walk_packages(launch.recipes.__path__, "launch.recipes."):
        if module.ispkg:
            continue
        model = module.name.rpartition(".")[2]
        recipes = importlib.import_module(module.name).RECIPES
        functions |= {f"{model}/{name}": function for name, function in recipes.items()}
    return dict(sorted(functions.items()))


def recipe_names() -> list[str]:
    return list(recipe_functions())


def load_recipe(name: str) -> Run:
    """The run that recipe ``model/data_set`` stands for."""
    functions = recipe_functions()
    if name not in functions:
        raise ConfigError(
            f"no recipe {name!r}{suggest(name, functions)}; there are: {', '.join(functions)}"
        )
    return dataclasses.replace(functions[name](), recipe=name)


class FileChange(str):
    """A ``key=value`` that a file holds, so that what refuses it can name the file."""

    file: str

    @staticmethod
    def of(change: str, file: str) -> FileChange:
        """The change, with the word that named its file: ``@settings.json``."""
        from_file = FileChange(change)
        from_file.file = file
        return from_file


def override(run: Run, changes: Sequence[str]) -> Run:
    """``run`` with ``key=value`` changes; keys are dotted (``optim.groups.text.lr=2e-5``), values
    JSON or words."""
    try:
        return _override(run, changes)
    except ConfigError as error:
        raise ConfigError(f"{error}{_file_of(str(error), changes)}") from None


def _file_of(problem: str, changes: Sequence[str]) -> str:
    """The end of a sentence that names the file which a refused change is from; empty for the
    command line's own."""
    for change in reversed(changes):
        key = change.partition("=")[0]
        if problem.startswith((f"{key}=", f"{key}.", f"no option {key!r}")):
            return f" (in {change.file})" if isinstance(change, FileChange) else ""
    files = dict.fromkeys(change.file for change in changes if isinstance(change, FileChange))
    return f" (settings were read from {', '.join(files)})" if files else ""


def _override(run: Run, changes: Sequence[str]) -> Run:
    tree = to_dict(run)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(
                f"cannot read {change!r}; changes are written key=value, for example batch_size=64"
            )
        _set(tree, _full_key(tree, key), _literal(value))
    return from_dict(tree)


def _full_key(tree: dict[str, Any], key: str) -> str:
    """The place of a setting that may be written shorter; a new group of parameters is made."""
    for role in ("audio", "vision"):
        own = tree["options"] if isinstance(tree["options"], dict) else {}
        if key.startswith(f"options.{role}.") and role not in own and "inputs" in own:
            return key.replace("options.", "options.inputs.", 1)
    parts = key.split(".")
    if parts[:2] == ["optim", "groups"] and len(parts) == 4 and parts[2] in GROUPS_OF_ENCODERS:
        tree["optim"]["groups"].setdefault(parts[2], asdict(Group()))
    return RENAMED.get(key, key)


# of pretrained encoders, which a recipe need not have: a setting makes them
GROUPS_OF_ENCODERS = {"text", "text_no_decay", "audio_encoder", "vision_encoder"}


def to_dict(run: Run) -> dict[str, Any]:
    return asdict(run)


# old name -> name; old names are still read
RENAMED = {"on_damage": "on_corrupt", "damage_budget": "max_skipped_fraction"}


def from_dict(tree: dict[str, Any]) -> Run:
    """The inverse of ``to_dict``, checked against the declared types; old names of settings are
    read too.

    No run knows credentials: those in the URL of the data stay with the process.
    """
    tree = {RENAMED.get(key, key): value for key, value in tree.items()}
    if isinstance(tree.get("data"), str):
        tree["data"] = remember(tree["data"])
    if isinstance(tree.get("loading"), dict):
        # saved before there were groups
        tree["loading"] = {"groups": 1, **tree["loading"]}
    name = tree.get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise ConfigError(f"no model {name!r}{suggest(str(name), MODELS)}")
    _refuse_huge_numbers(tree)
    options = _validate(MODELS[name].Config, tree.get("options"), "options.")
    run: Run = _validate(Run, {**tree, "options": None}, "")
    task_options_of(run)
    return dataclasses.replace(run, options=options)


def _refuse_huge_numbers(tree: dict[str, Any]) -> None:
    """No setting needs more than 64 bits, and neither NumPy nor PyTorch takes more."""
    for key, value in leaves(tree).items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int) and not -LARGEST <= number <= LARGEST:
                raise ConfigError(f"{key}={number!s:.40}...: a whole number of more than 64 bits")


def task_options_of(run: Run) -> Any:
    """``run.task_options`` as the task's own dataclass; None for a task that has none.

    Raises:
        ConfigError: options that the task does not have.
    """
    task = MODELS[run.model].task
    if task == "alignment":
        from launch.tasks.alignment_options import alignment_options  # which imports this file

        return alignment_options(run)
    if run.task_options:
        raise ConfigError(f"task_options={run.task_options}: a {task} run has none")
    return None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Made once: for a run this takes 20 ms, and a search asks thousands of times."""
    return TypeAdapter(kind)


def _validate(kind: type, tree: Any, prefix: str) -> Any:
    try:
        return _adapter(kind).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = (prefix + ".".join(str(part) for part in first["loc"])).rstrip(".")
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "literal_error":
            allowed = re.findall(r"'([^']+)'", said)
            said += suggest(str(first["input"]), allowed)
        raise ConfigError(f"{key}={first['input']!r:.80}: {said}") from None


def _literal(value: str) -> Any:
    """JSON, or a word, or a list of such between commas."""
    try:
        return json.loads(value)
    except ValueError:  # no JSON, or a number of thousands of digits
        is_list = "," in value and "://" not in value
        return [_literal(part) for part in value.split(",")] if is_list else value


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put ``value`` where the dotted ``key`` leads; the key must be there already."""
    node: Any = tree
    *folders, last = key.split(".")
    for depth, part in enumerate([*folders, last]):
        if not isinstance(node, dict) or part not in node:
            raise ConfigError(_no_such_key(tree, key, depth, node))
        if depth < len(folders):
            node = node[part]
    if isinstance(node[last], list | tuple) and not isinstance(value, list):
        value = [value]
    node[last] = value


def _no_such_key(tree: dict[str, Any], key: str, depth: int, node: Any) -> str:
    """What is wrong with ``key``, whose part at ``depth`` is not in ``node``, and which key may be
    meant."""
    parts = key.split(".")
    siblings = list(node) if isinstance(node, dict) else []
    inside = f" in {'.'.join(parts[:depth])!r}" if depth else ""
    hint = suggest(parts[depth], siblings)
    ending = nearest_ending(parts[-1], leaves(tree))
    last_is_wrong = depth == len(parts) - 1
    if ending and (last_is_wrong or not hint):
        hint = f"; did you mean {ending!r}?"
    return f"no option {key!r}: there is no {parts[depth]!r}{inside}{hint}"


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nearest_ending(word: str, keys: Iterable[str]) -> str:
    """The dotted key that ends in ``word``; of several the main group's, then the shortest. "" if
    none does."""
    ending = [key for key in keys if key.rpartition(".")[2] == word]
    return min(ending, key=lambda key: (".main." not in key, len(key)), default="")
