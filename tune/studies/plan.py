"""What a study is: rows by seeds by data sets, and perhaps by the values of one setting. Read from a
TOML file, from a ready-made one by its name, or from the names of models on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tomli
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from core.command import Refused
from core.environment.credentials import remember
from core.file_access.json_files import read_json_object
from core.file_access.regular_files import read_regular_text
from core.models import MODELS
from core.names import suggest
from launch.command_line import as_changes
from launch.config import ConfigError, Run, load_recipe, override, recipe_names
from launch.run_directory import absolute

READY = Path(__file__).parent / "ready"
SET = "{set}"  # in the name of a recipe: stands for the data set's, as in hscl/mosi
_STRICT = ConfigDict(extra="forbid")


@validated_dataclass(frozen=True, config=_STRICT)
class Row:
    """One line of the table."""

    name: str
    recipe: str = ""  # by default the study's
    changes: dict[str, Any] = field(default_factory=dict)
    command: Literal["train", "distill"] = "train"  # distill: its teacher first


@validated_dataclass(frozen=True, config=_STRICT)
class StudyFile:
    """A study as its file says it; the command line may say the rest."""

    title: str
    question: str = ""  # what the table is to answer, in a sentence or two
    recipe: str = ""  # of every row that names none
    rows: tuple[Row, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)  # of every run
    # setting -> values: every row is trained under each
    vary: dict[str, list[Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1111, 1112, 1113, 1114, 1115)
    baseline: str = ""  # the row that others are compared with; by default the first
    metrics: tuple[str, ...] = ()  # by default those of the runs
    test: Literal["permutation", "wilcoxon"] = "permutation"  # over seeds


@dataclass(frozen=True)
class Words:
    """What the command line says of a study."""

    data: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()  # the data set's name in recipes, of each of ``data``
    seeds: tuple[int, ...] = ()
    baseline: str = ""
    metrics: tuple[str, ...] = ()
    test: str = ""
    run_dir: str = ""
    rows: tuple[str, ...] = ()  # only these of the file
    vary: dict[str, list[Any]] = field(default_factory=dict)
    workers: int = 0  # processes side by side; 0: one for each GPU, or one
    processes: int = 1  # ranks of one run
    changes: tuple[str, ...] = ()  # key=value of every run


@dataclass(frozen=True)
class StudyRun:
    """One training of a study."""

    row: str
    data: str  # folder or URL
    value: str  # of what is varied; empty where nothing is
    seed: int
    recipe: str
    changes: tuple[str, ...]
    folder: Path
    command: str = "train"

    def words(self) -> list[str]:
        """Of ``concord train``."""
        return [self.recipe, *self.changes, f"run_dir={self.folder}"]

    def run(self) -> Run:
        """The run as its directory records it, its settings checked."""
        words = [*self.changes, f"run_dir={self.folder}"]
        run = override(load_recipe(self.recipe), words)
        if self.command != "distill":
            return run
        if not hasattr(run.options, "teacher"):
            raise ConfigError(f'{run.model} learns from no teacher; leave out command = "distill"')
        return replace(run, options=replace(run.options, teacher=str(self.folder / "teacher")))


@dataclass(frozen=True)
class Study:
    """A study that can be run: everything is filled in."""

    title: str
    question: str
    rows: tuple[Row, ...]
    data: tuple[str, ...]
    sets: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str
    metrics: tuple[str, ...]
    test: str
    vary: dict[str, list[Any]]
    settings: tuple[str, ...]  # key=value of every run
    folder: Path
    workers: int = 0
    processes: int = 1

    @property
    def varied(self) -> str:
        """The name of the setting that is varied; empty where none is."""
        return next(iter(self.vary), "")

    def values(self) -> list[str]:
        """Of what is varied, as they are written; one empty value where nothing is."""
        return [json.dumps(value) for value in self.vary.get(self.varied, [])] or [""]

    def runs(self) -> Iterator[StudyRun]:
        """All trainings: seeds outermost, so that a table is whole, if uncertain, early on."""
        for seed in self.seeds:
            for place, data in enumerate(self.data):
                for row in self.rows:
                    for value in self.values():
                        yield self._run(row, place, data, value, seed)

    def _run(self, row: Row, place: int, data: str, value: str, seed: int) -> StudyRun:
        changes = [*self.settings, *as_changes(row.changes)]
        folder = self.folder / "runs" / file_name(row.name)
        if len(self.data) > 1:
            folder /= f"{place + 1}-{file_name(Path(data).name)}"
        if value:
            changes.append(f"{self.varied}={value}")
            folder /= file_name(f"{self.varied}-{value}")
        changes += [f"data={data}", f"seed={seed}"]
        recipe = row.recipe.replace(SET, self.sets[place])
        return StudyRun(
            row.name, data, value, seed, recipe, tuple(changes), folder / str(seed), row.command
        )

    def as_json(self) -> dict[str, Any]:
        """For ``study.json``."""
        return json.loads(json.dumps({**asdict(self), "folder": str(self.folder)}))


def file_name(text: str) -> str:
    """A word that can be the name of a folder everywhere."""
    kept = [letter if letter.isalnum() or letter in "._-" else "-" for letter in text]
    joined = "-".join(part for part in "".join(kept).split("-") if part)
    return joined.lstrip(".") or "row"  # neither hidden nor the folder above


def ready_names() -> list[str]:
    return sorted(path.stem for path in READY.glob("*.toml"))


def read_file(path: Path) -> StudyFile:
    """A study's TOML file.

    Raises:
        ConfigError: it is none; the message names the file and the entry.
    """
    try:
        tree = tomli.loads(read_regular_text(path))
        return TypeAdapter(StudyFile).validate_python(tree)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}{_nearest(str(path))}") from None
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    except Refused as error:
        raise ConfigError(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        said = first["msg"]
        if first["type"] == "unexpected_keyword_argument":
            known = (
                StudyFile.__dataclass_fields__
                if len(first["loc"]) < 2
                else Row.__dataclass_fields__
            )
            said = f"a study has no such entry{suggest(str(first['loc'][-1]), known)}"
        raise ConfigError(f"{path}: {place}: {said}") from None


def _nearest(name: str) -> str:
    ready = ready_names()
    return f", and no ready-made study of that name{suggest(name, ready)}; there are {', '.join(ready)}"


def find_file(name: str) -> StudyFile | None:
    """The study that a word of the command line names; None where it names models."""
    if (READY / f"{name}.toml").is_file():
        return read_file(READY / f"{name}.toml")
    if name.endswith(".toml") or "/" in name and not _are_recipes(name):
        return read_file(Path(name))
    return None


def _are_recipes(name: str) -> bool:
    known = recipe_names()
    return all(part in known for part in name.split(","))


def of_models(name: str) -> StudyFile:
    """A study whose rows are models, ``hscl,self_mm`` or ``hscl/demo,self_mm/demo``."""
    rows = []
    for word in name.split(","):
        model = word.partition("/")[0]
        if model not in MODELS:
            known = [*MODELS, *ready_names()]
            raise ConfigError(f"{word!r} is no study, file or model{suggest(word, known)}")
        rows.append(Row(word, word if "/" in word else f"{word}/{SET}"))
    return StudyFile(title=f"{', '.join(row.name for row in rows)}", rows=tuple(rows))


def make_study(name: str, words: Words) -> Study:
    """The study that a file, or models, and a command line ask for.

    Raises:
        ConfigError: something is missing or cannot be; every run's settings are checked here.
    """
    file = find_file(name) or of_models(name)
    if not words.data:
        raise ConfigError(
            "no data: give the shard folder as data=DIR; make one with python -m data_shards.convert"
        )
    rows = [row if row.recipe else replace(row, recipe=file.recipe) for row in file.rows]
    data = tuple(remember(absolute(one)) for one in words.data)
    needs_set = any(SET in row.recipe for row in rows)
    short = Path(name).stem if name.endswith(".toml") else file_name(name)
    vary = words.vary or file.vary
    study = Study(
        title=file.title,
        question=file.question,
        rows=_chosen(rows, words.rows),
        data=data,
        sets=_sets(words.sets, data) if needs_set else ("",) * len(data),
        seeds=words.seeds or file.seeds,
        baseline=words.baseline or file.baseline,
        metrics=words.metrics or file.metrics,
        test=words.test or file.test,
        vary=vary,
        settings=(*as_changes(file.settings), *words.changes),
        folder=Path(words.run_dir or f"studies/{short}").absolute(),
        workers=words.workers,
        processes=words.processes,
    )
    return _checked(study)


def _chosen(rows: list[Row], names: tuple[str, ...]) -> tuple[Row, ...]:
    for name in names:
        if name not in [row.name for row in rows]:
            there = [row.name for row in rows]
            raise ConfigError(
                f"rows={name}: the study has no such row{suggest(name, there)}; there are {', '.join(there)}"
            )
    return tuple(row for row in rows if not names or row.name in names)


def _sets(given: tuple[str, ...], data: tuple[str, ...]) -> tuple[str, ...]:
    """The data set's name in recipes, for each folder of data."""
    if len(given) == 1:
        return given * len(data)
    if given and len(given) != len(data):
        raise ConfigError(f"set= has {len(given)} names for {len(data)} data; give one for each")
    return given or tuple(_set_of(folder) for folder in data)


def _set_of(folder: str) -> str:
    """What the manifest calls its data; the generated ones have recipes called demo."""
    try:
        manifest = read_json_object(Path(folder) / "manifest.json")
    except (OSError, Refused):
        manifest = {}  # the message below says what to give instead
    name = "demo" if manifest.get("synthetic") else str(manifest.get("name", ""))
    known = {recipe.partition("/")[2] for recipe in recipe_names()}
    if name not in known:
        raise ConfigError(
            f"which recipes are for {folder}? give the data set's name, such as set=mosi"
            f"{suggest(name, known)}"
        )
    return name


def _checked(study: Study) -> Study:
    """With its baseline filled in; refused where a run of it could not start."""
    names = [row.name for row in study.rows]
    if not names:
        raise ConfigError("the study has no rows; write [[rows]] with a name each")
    folders = [file_name(name) for name in names]
    for number, name in enumerate(names):
        if folders.index(folders[number]) != number:
            raise ConfigError(f"two rows are called {name!r}, or would have one folder; rename one")
    if len(set(study.seeds)) != len(study.seeds) or not study.seeds:
        raise ConfigError(f"seeds={','.join(map(str, study.seeds))}: give each seed once")
    if len(study.vary) > 1:
        raise ConfigError(
            f"one setting can be varied, not {', '.join(study.vary)}; use rows for others"
        )
    baseline = study.baseline or names[0]
    if baseline not in names:
        raise ConfigError(
            f"baseline={baseline}: the study has no such row{suggest(baseline, names)}; there are "
            f"{', '.join(names)}"
        )
    study = replace(study, baseline=baseline)
    for one in study.runs():
        if one.seed != study.seeds[0]:
            break  # the others differ by their seed alone
        try:
            one.run()
        except ConfigError as error:
            raise ConfigError(f"row {one.row!r}: {error}") from None
    return study


def read_seeds(text: str) -> tuple[int, ...]:
    """``1111..1115``, or numbers between commas.

    Raises:
        ConfigError: neither.
    """
    first, dots, last = text.partition("..")
    try:
        if dots:
            seeds = tuple(range(int(first), int(last) + 1))
        else:
            seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"seeds={text}: write them as 1111..1115 or 1111,1112")
    return seeds
