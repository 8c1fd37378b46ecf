"""What a search is: read from the command line, checked, and kept in ``search.json``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from core.command import Refused
from core.environment.credentials import split
from core.file_access.json_files import read_json_object
from core.file_access.targets import check_folder
from core.files import write_atomically
from core.names import suggest
from launch.command_line import as_changes, expand
from launch.config import ConfigError, Run, leaves, load_recipe, override, to_dict
from tune.sampling.domain import Around, Choice, Domain, Range, read_domain
from tune.sampling.spaces import SYMBOLS, default_space

AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
AtLeast2 = Annotated[int, Field(ge=2)]


@dataclass(frozen=True)
class Search:
    """Settings of a search. ``changes`` hold for every trial, ``spaces`` differ between them."""

    recipe: str
    changes: dict[str, Any]
    spaces: dict[str, str]  # field of the recipe -> its domain, as it is written
    run_dir: str
    trials: AtLeast1 = 32
    search: Literal["optuna", "random", "grid", "pbt"] = "optuna"
    scheduler: Literal["asha", "none"] = "asha"
    grace: AtLeast1 = 1  # epochs that asha gives to every trial
    # asha lets one in so many go on, at grace, grace * reduction, ... epochs
    reduction: AtLeast2 = 3
    interval: AtLeast0 = 0  # pbt: epochs between changes; 0: a fifth of all
    processes: AtLeast1 = 1  # of one trial
    cpus: Annotated[float, Field(gt=0)] = 1.0  # of one process
    gpus: Annotated[float, Field(ge=-1)] = -1.0  # of one process; -1: one where there are any
    concurrent: AtLeast0 = 0  # trials at the same time; 0: as many as fit
    retries: AtLeast0 = 2  # of a trial whose processes were killed
    # seeds over which the best configuration is trained again; 0: not at all
    confirm: AtLeast0 = 5
    storage: str = ""  # URI for the trials' checkpoints, where machines share no folder
    # of a Ray cluster ("auto": the one of this machine); empty: this machine alone
    address: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.run_dir)

    @property
    def sign(self) -> float:
        """What makes a score of an objective, of which less is always better."""
        return 1.0 if self.run().goal == "min" else -1.0

    def domains(self) -> dict[str, Domain]:
        found = {}
        for key, text in self.spaces.items():
            domain = read_domain(key, text)
            if domain is not None:
                found[key] = domain
        return found

    def run(self, changes: dict[str, Any] | None = None) -> Run:
        """The run of one trial, without its directory."""
        return override(load_recipe(self.recipe), as_changes({**self.changes, **(changes or {})}))


SEARCH_KEYS = {field.name for field in fields(Search)} - {"recipe", "changes", "spaces"}


@dataclass
class Request:
    """The words of a command line, by what they are about."""

    options: dict[str, str] = field(default_factory=dict)  # of the search
    spaces: dict[str, str] = field(default_factory=dict)  # field of the recipe -> domain
    changes: list[str] = field(default_factory=list)  # key=value for the recipe
    default_space: bool = True  # whether to search what the command line does not name


def read_search(words: Sequence[str]) -> Search:
    """The search that a command line asks for.

    Raises:
        ConfigError: a key that neither a search nor the recipe has, a value of the wrong kind, or a
            combination that makes no sense; the message says what to write instead.
    """
    recipe, *rest = words
    run = load_recipe(recipe)
    request = _sorted_words(expand(rest), run)
    changes = _changed_fields(run, request.changes)
    for key in sorted(set(changes) & set(request.spaces)):
        raise ConfigError(
            f"{key} is both set and searched; leave out one of {key}=... and space.{key}=..."
        )
    spaces = _default_spaces(run, changes) if request.default_space else {}
    spaces |= request.spaces
    options = request.options
    if "run_dir" not in options:
        now = time.strftime("%Y%m%d-%H%M%S")
        options["run_dir"] = f"searches/{recipe.replace('/', '-')}-{now}"
    options["run_dir"] = str(Path(options["run_dir"]).absolute())
    if options.get("search") in ("pbt", "grid"):
        # pbt compares trials itself, and a grid is usually wanted whole
        options.setdefault("scheduler", "none")
    search = _build(
        {
            "recipe": recipe,
            "changes": changes,
            "spaces": {key: text for key, text in spaces.items() if read_domain(key, text)},
            **options,
        }
    )
    _refuse_contradictions(search)
    if search.search == "grid" and "trials" not in options:
        points = math.prod(len(grid_values(domain)) for domain in search.domains().values())
        return replace(search, trials=points)
    return search


def _sorted_words(words: Sequence[str], run: Run) -> Request:
    request = Request()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"cannot read {word!r}; write key=value, for example trials=16")
        if key == "space":
            if value not in ("default", "none"):
                raise ConfigError(
                    f"space={value}: write default or none; "
                    "one setting is searched with space.KEY=..."
                )
            request.default_space = value == "default"
        elif key.startswith("space."):
            request.spaces[_field(key.removeprefix("space."), run)] = value
        elif key in SEARCH_KEYS:
            request.options[key] = value
        else:
            request.changes.append(word)
    return request


def _changed_fields(run: Run, changes: list[str]) -> dict[str, Any]:
    """The changes by dotted field, with the values that the run gets from them."""
    keys = [change.partition("=")[0] for change in changes]
    if "run_dir" in keys:
        raise ConfigError("run_dir is the search's; each trial gets a folder in it")
    changed = {}
    for field_name, value in leaves(to_dict(override(run, changes))).items():
        if any(field_name == key or field_name.startswith(f"{key}.") for key in keys):
            changed[field_name] = value
    if "data" in changed and "://" not in changed["data"]:
        # a search may go on from another folder
        changed["data"] = str(Path(changed["data"]).absolute())
    return json.loads(json.dumps(changed))


def _default_spaces(run: Run, changes: dict[str, Any]) -> dict[str, str]:
    """What the model is searched for by default, as far as the recipe has it and it is not set."""
    values = leaves(to_dict(run))
    spaces = {}
    for key, domain in default_space(run.model).items():
        if key in values and key not in changes:
            spaces[key] = str(domain.of(values[key]) if isinstance(domain, Around) else domain)
    return spaces


def _field(key: str, run: Run) -> str:
    """The dotted field that ``key`` means: itself, the paper's symbol, or its unique last part."""
    known = leaves(to_dict(run))
    symbols = SYMBOLS.get(run.model, {})
    if key in known or key in symbols:
        return symbols.get(key, key)
    ending = [name for name in known if name.endswith(f".{key}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"space.{key} could be {', '.join(ending)}; write one of them in full")
    last_parts = [name.rpartition(".")[2] for name in known]
    hint = suggest(key, [*known, *symbols, *last_parts])
    raise ConfigError(f"recipe {run.recipe!r} has no setting {key!r} to search{hint}")


def _build(tree: dict[str, Any]) -> Search:
    """The settings, checked and converted."""
    try:
        return TypeAdapter(Search).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
    name, reason = ".".join(map(str, first["loc"])) or "settings", first["msg"]
    if first["type"] == "greater_than_equal":
        reason = f"at least {first['ctx']['ge']:g}"
    elif name == "cpus" and first["type"] == "greater_than":
        reason = "a process needs some part of a CPU"
    raise ConfigError(f"{name}={str(first['input'])[:80]}: {reason}")


def _refuse_contradictions(search: Search) -> None:
    """Combinations that cannot work, before anything starts."""
    run, domains = search.run(), search.domains()
    if not run.data:
        raise ConfigError(
            "no data: give the shard folder as data=DIR; "
            "make one with python -m data_shards.convert"
        )
    if not domains:
        raise ConfigError(
            f"nothing to search for {search.recipe}; "
            "add space.KEY=..., with one of the forms in --help"
        )
    if split(search.storage).is_secret:
        raise ConfigError(
            "storage= holds credentials, which would be stored with the search; leave them out and "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your storage reads"
        )
    reserved = {"data", "run_dir", "recipe", "model"} & set(domains)
    if reserved:
        raise ConfigError(f"{', '.join(sorted(reserved))} cannot be searched")
    if search.search == "pbt" and search.scheduler == "asha":
        raise ConfigError("search=pbt decides itself which trials go on; leave out scheduler=asha")
    if search.search == "pbt" and search.trials < 2:
        raise ConfigError("search=pbt needs a population: trials=4 or more")
    if search.search == "grid":
        for key, domain in domains.items():
            if isinstance(domain, Range) and not domain.countable:
                raise ConfigError(
                    f"search=grid needs lists: {key} is {domain}; "
                    f"write space.{key}=choice(...) or space.{key}=none"
                )
    if search.scheduler == "asha" and search.grace > run.epochs:
        raise ConfigError(f"grace={search.grace} is more than the recipe's epochs={run.epochs}")
    if "seed" in domains and search.confirm:
        raise ConfigError("seed is searched, so confirm= has nothing to vary; write confirm=0")


def grid_values(domain: Domain) -> list[Any]:
    """Every value of a domain that has finitely many."""
    if isinstance(domain, Choice):
        return list(domain.values)
    step = domain.step or 1
    count = round((domain.high - domain.low) / step)
    return [domain.low + index * step for index in range(count + 1)]


def write_search(search: Search) -> None:
    """Make the search's folder, with its settings in it.

    Raises:
        ConfigError: the folder holds a search.
    """
    folder = search.folder
    path = folder / "search.json"
    if path.is_file():
        raise ConfigError(
            f"{folder} holds a search already; go on with it: python -m tune.search --resume {folder}"
        )
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(search), indent=1) + "\n")


def load_search(folder: Path) -> Search:
    """The search of a folder, wherever the folder is now."""
    path = folder / "search.json"
    try:
        tree = read_json_object(path)
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no search: it has no search.json") from None
    except Refused as error:
        raise ConfigError(f"{error}; copy the file from a backup, or start again") from None
    try:
        search = _build({**tree, "run_dir": str(folder.absolute())})
        search.run()  # refuses changes that the recipe does not take
        return search
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def same_search(search: Search, words: Sequence[str]) -> None:
    """Refuse a command line that asks for another search than the one that is to go on."""
    again = asdict(read_search([*words, f"run_dir={search.run_dir}"]))
    differ = [name for name, value in asdict(search).items() if again[name] != value]
    if differ:
        raise ConfigError(
            f"{search.run_dir} holds a search with other {', '.join(differ)}; "
            "resume=DIR needs no others"
        )
