"""What a search is: read from the command line, checked before anything starts, and kept in ``search.json``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from launch.command_line import expand
from launch.config import ConfigError, Run, load_recipe, override, suggest, to_dict
from tune.domain import Around, Choice, Domain, Range, read_domain
from tune.overrides import arguments, leaves
from tune.spaces import SPACES, SYMBOLS


@dataclass(frozen=True)
class Search:
    """Settings of a search. ``changes`` hold for every trial, ``spaces`` are what differs between them."""

    recipe: str
    changes: dict[str, Any]
    spaces: dict[str, str]  # field of the recipe -> its domain, as it is written
    run_dir: str
    trials: int = 32
    search: Literal["optuna", "random", "grid", "pbt"] = "optuna"
    scheduler: Literal["asha", "none"] = "asha"
    grace: int = 1  # epochs that asha gives to every trial
    reduction: int = 3  # asha lets one in so many go on, at grace, grace * reduction, ... epochs
    interval: int = 0  # pbt: epochs between changes; 0: a fifth of all
    processes: int = 1  # of one trial
    cpus: float = 1.0  # of one process
    gpus: float = -1.0  # of one process; -1: one where there are any
    concurrent: int = 0  # trials at the same time; 0: as many as fit
    retries: int = 2  # of a trial whose processes were killed
    confirm: int = 5  # seeds over which the best configuration is trained again; 0: not at all
    storage: str = ""  # URI for the trials' checkpoints, where machines share no folder
    address: str = (
        ""  # of a Ray cluster ("auto": the one of this machine); empty: this machine alone
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("trials", 1),
            ("grace", 1),
            ("reduction", 2),
            ("processes", 1),
            ("confirm", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: at least {least}")
        if self.cpus <= 0:
            raise ConfigError(f"cpus={self.cpus}: a process needs some part of a CPU")

    @property
    def folder(self) -> Path:
        return Path(self.run_dir)

    def domains(self) -> dict[str, Domain]:
        return {
            key: domain for key, text in self.spaces.items() if (domain := read_domain(key, text))
        }

    def run(self, changes: dict[str, Any] | None = None) -> Run:
        """The run of one trial, without its directory."""
        return override(load_recipe(self.recipe), arguments({**self.changes, **(changes or {})}))


OWN = {field.name for field in fields(Search)} - {"recipe", "changes", "spaces"}


def read_search(given_words: Sequence[str]) -> Search:
    """The search that a command line asks for.

    Raises:
        ConfigError: a key that neither a search nor the recipe has, a value of the wrong kind, or a combination that
            makes no sense; the message says what to write instead.
    """
    recipe, *rest = given_words
    run = load_recipe(recipe)
    own: dict[str, Any] = {}
    spaces: dict[str, str] = {}
    changes: list[str] = []
    for word in expand(rest):
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"cannot read {word!r}; write key=value, for example trials=16")
        if key == "space":
            if value not in ("default", "none"):
                raise ConfigError(
                    f"space={value}: write default or none; one setting is searched with space.KEY=..."
                )
            own["space"] = value
        elif key.startswith("space."):
            spaces[_field(key.removeprefix("space."), run)] = value
        elif key in OWN:
            own[key] = value
        else:
            changes.append(word)
    given = _given(run, changes)
    start = SPACES.get(run.model, {}) if own.pop("space", "default") == "default" else {}
    known = leaves(to_dict(run))
    defaults = {
        key: str(domain.of(known[key]) if isinstance(domain, Around) else domain)
        for key, domain in start.items()
        if key in known and key not in given
    }
    both = sorted(set(given) & set(spaces))
    if both:
        raise ConfigError(
            f"{both[0]} is both set and searched; leave out one of {both[0]}=... and space.{both[0]}=..."
        )
    asked = {key: text for key, text in {**defaults, **spaces}.items() if read_domain(key, text)}
    own.setdefault(
        "run_dir", f"searches/{recipe.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    own["run_dir"] = str(Path(own["run_dir"]).absolute())
    if own.get("search") in (
        "pbt",
        "grid",
    ):  # pbt compares trials itself, and a grid is usually wanted whole
        own.setdefault("scheduler", "none")
    search = _build({"recipe": recipe, "changes": given, "spaces": asked, **own})
    _refuse_odd(search)
    if search.search == "grid" and "trials" not in own:
        return replace(
            search,
            trials=math.prod(len(grid_values(domain)) for domain in search.domains().values()),
        )
    return search


def _given(run: Run, changes: list[str]) -> dict[str, Any]:
    """The changes by dotted field, with the values that the run gets from them."""
    after = leaves(to_dict(override(run, changes)))
    keys = [change.partition("=")[0] for change in changes]
    if "run_dir" in keys:
        raise ConfigError("run_dir is the search's; each trial gets a folder in it")
    given = {
        key: after[key] for key in after if any(key == k or key.startswith(f"{k}.") for k in keys)
    }
    if "data" in given and "://" not in given["data"]:
        given["data"] = str(
            Path(given["data"]).absolute()
        )  # a search may go on from another folder
    return json.loads(json.dumps(given))


def _field(key: str, run: Run) -> str:
    """The dotted field that ``key`` means: itself, the paper's symbol, or its last part where only one ends so."""
    known = leaves(to_dict(run))
    symbols = SYMBOLS.get(run.model, {})
    if key in known or key in symbols:
        return symbols.get(key, key)
    ending = [field for field in known if field.endswith(f".{key}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"space.{key} could be {', '.join(ending)}; write one of them in full")
    names = [*known, *symbols, *(field.rpartition(".")[2] for field in known)]
    raise ConfigError(
        f"recipe {run.recipe!r} has no setting {key!r} to search{suggest(key, names)}"
    )


def _build(tree: dict[str, Any]) -> Search:
    try:
        return TypeAdapter(Search).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        if "error" in first.get("ctx", {}):  # what __post_init__ said
            raise ConfigError(str(first["ctx"]["error"])) from None
        raise ConfigError(f"{first['loc'][0]}={first['input']}: {first['msg']}") from None


def _refuse_odd(search: Search) -> None:
    """Combinations that cannot work, before anything starts."""
    run, domains = search.run(), search.domains()
    if not run.data:
        raise ConfigError(
            "no data: give the shard folder as data=DIR; make one with python -m data_shards.convert"
        )
    if not domains:
        raise ConfigError(
            f"nothing to search for {search.recipe}; add space.KEY=..., with one of the forms in --help"
        )
    reserved = {"data", "run_dir", "recipe", "model"} & set(domains)
    if reserved:
        raise ConfigError(f"{', '.join(sorted(reserved))} cannot be searched")
    if search.search == "pbt":
        if search.scheduler == "asha":
            raise ConfigError(
                "search=pbt decides itself which trials go on; leave out scheduler=asha"
            )
        if search.trials < 2:
            raise ConfigError("search=pbt needs a population: trials=4 or more")
    if search.search == "grid":
        open_ended = [
            key
            for key, domain in domains.items()
            if isinstance(domain, Range) and not _countable(domain)
        ]
        if open_ended:
            raise ConfigError(
                f"search=grid needs lists: {open_ended[0]} is {domains[open_ended[0]]}; "
                f"write space.{open_ended[0]}=choice(...) or space.{open_ended[0]}=none"
            )
    if search.scheduler == "asha" and search.grace > run.epochs:
        raise ConfigError(f"grace={search.grace} is more than the recipe's epochs={run.epochs}")
    if "seed" in domains and search.confirm:
        raise ConfigError("seed is searched, so confirm= has nothing to vary; write confirm=0")


def _countable(domain: Range) -> bool:
    return bool(domain.step) or domain.whole and not domain.log


def grid_values(domain: Domain) -> list[Any]:
    """Every value of a domain that has finitely many."""
    if isinstance(domain, Choice):
        return list(domain.values)
    step = domain.step or 1
    count = round((domain.high - domain.low) / step)
    return [domain.low + place * step for place in range(count + 1)]


def write_search(search: Search) -> None:
    folder = search.folder
    path = folder / "search.json"
    if path.is_file():
        raise ConfigError(
            f"{folder} holds a search already; go on with it: python -m tune.search resume={folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(search), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def load_search(folder: Path) -> Search:
    """The search of a folder, wherever the folder is now."""
    path = folder / "search.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no search: it has no search.json") from None
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return _build({**tree, "run_dir": str(folder.absolute())})


def same_search(search: Search, given_words: Sequence[str]) -> None:
    """Refuse a command line that asks for another search than the one that is to go on."""
    again = read_search([*given_words, f"run_dir={search.run_dir}"])
    differ = [
        name.name
        for name in fields(Search)
        if getattr(again, name.name) != getattr(search, name.name)
    ]
    if differ:
        raise ConfigError(
            f"{search.run_dir} holds a search with other {', '.join(differ)}; resume=DIR needs no others"
        )
