"""All extractors by modality and name: how one is chosen, opened, and opened again from a recipe.

A new one is a module with a function ``build(modality, options)`` that returns one of the kinds of
``protocol.py``, and a line in ``EXTRACTORS``. Its module is imported when it is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

from core.command import Refused
from core.names import suggest
from data_shards.extract.extractors.protocol import Kind
from data_shards.extract.recipe import Align, ExtractionRecipe, ExtractorRecord, Option

HERE = "data_shards.extract.extractors"
PATH = "path"  # the option that holds the folder of a model
NONE = "none"
RAW = "raw"  # sound and pictures as they are
_NEXT_OPTION = re.compile(r",(?=[a-z_]+=)")


@dataclass(frozen=True)
class Plugin:
    """Where an extractor is and what may be said about it."""

    kind: Kind
    module: str
    options: dict[str, Option] = field(default_factory=dict)  # with their defaults
    needs_path: bool = False


EXTRACTORS: dict[tuple[str, str], Plugin] = {
    ("text", "given"): Plugin("transcript", f"{HERE}.given"),
    ("text", "whisper"): Plugin("speech", f"{HERE}.whisper", needs_path=True),
    ("audio", "egemaps"): Plugin("sound", f"{HERE}.egemaps"),
    ("audio", "hf"): Plugin("sound", f"{HERE}.sound_encoder", needs_path=True),
    ("audio", "raw"): Plugin("sound", f"{HERE}.raw_media", {"format": "flac"}),
    ("vision", "raw"): Plugin(
        "pictures",
        f"{HERE}.raw_media",
        {"fps": 2.0, "side": 224, "crop": "frame", "format": "jpeg", "quality": 90},
    ),
    ("vision", "face68"): Plugin(
        "pictures", f"{HERE}.face68", {"fps": 10.0, "detect_every": 10, "longest_side": 640}
    ),
    ("vision", "hf"): Plugin(
        "pictures", f"{HERE}.image_encoder", {"fps": 5.0, "crop": "face"}, needs_path=True
    ),
}


@dataclass(frozen=True)
class Extractors:
    """Opened extractors of all modalities, and the recipe that they follow."""

    recipe: ExtractionRecipe
    opened: dict[str, tuple[Kind, Any]]  # modality -> kind, and the extractor of that kind


def choose(choices: Mapping[str, str], align: Align = "none") -> Extractors:
    """Open the extractors that the user names.

    Args:
        choices: modality -> "egemaps", "hf:FOLDER" or "face68,fps=5"; "none" leaves it out.

    Raises:
        Refused: there is no such extractor or option, or its package or model is not there.
    """
    opened: dict[str, tuple[Kind, Any]] = {}
    for modality, words in choices.items():
        if words == NONE:
            continue
        name, options = parse_choice(modality, words)
        opened[modality] = _open(modality, name, options)
    if not opened:
        raise Refused("all modalities are 'none', so there is nothing to extract; choose one")
    records = tuple(extractor.record for _, extractor in opened.values())
    raw = [record.modality for record in records if record.name == RAW]
    if align != "none" and raw:
        raise Refused(
            f"--align {align} averages frames of features, and --{raw[0]} {RAW} stores none; leave "
            "one of them out"
        )
    return Extractors(ExtractionRecipe(records, align), opened)


def parse_choice(modality: str, words: str) -> tuple[str, dict[str, Option]]:
    """Name and all options of "NAME", "NAME:FOLDER" or "NAME,key=value"."""
    head, *pairs = _NEXT_OPTION.split(words)
    name, colon, path = head.partition(":")
    plugin = _plugin(modality, name)
    if plugin.needs_path != bool(path) or (colon and not path):
        expected = f"{name}:FOLDER" if plugin.needs_path else name
        raise Refused(f"--{modality} {words}: write it as {expected}")
    options = dict(plugin.options)
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in options:
            known = ", ".join(options) or "none"
            raise Refused(
                f"--{modality} {words}: {name} has no option {key!r}; it has {known}"
                f"{suggest(key, options)}"
            )
        options[key] = _parse_option(value, options[key], f"--{modality} {words}: {key}")
    if plugin.needs_path:
        options[PATH] = path
    return name, options


def open_extractors(
    recipe: ExtractionRecipe, folders: Mapping[str, str] | None = None
) -> Extractors:
    """The extractors of a recipe, opened again for new clips.

    Args:
        folders: modality -> where the folder of its model lies now, if it has moved.

    Raises:
        Refused: one cannot be opened, or is not the one that the recipe describes; a table shows
            the differences.
    """
    opened: dict[str, tuple[Kind, Any]] = {}
    for record in recipe.extractors:
        modality = record.modality
        options = dict(record.options)
        if folders and modality in folders and PATH in options:
            options[PATH] = folders[modality]
        opened[modality] = _open(_listed_modality(record), record.name, options, field=modality)
        check_same(record, opened[modality][1].record)
    return Extractors(recipe, opened)


def check_same(recorded: ExtractorRecord, here: ExtractorRecord) -> None:
    """Refused, with both sides in a table, where an extractor would give other numbers."""
    rows: list[tuple[str, str, str]] = []
    for item in fields(ExtractorRecord):
        if item.name in ("options", "licence"):
            continue
        before, now = getattr(recorded, item.name), getattr(here, item.name)
        if before != now:
            rows.append((item.name, str(before), str(now)))
    for key in sorted(recorded.options.keys() | here.options.keys()):
        before, now = recorded.options.get(key), here.options.get(key)
        if key != PATH and before != now:
            rows.append((f"option {key}", str(before), str(now)))
    if rows:
        raise Refused(
            f"{recorded.modality}: {recorded.name} is not the extractor that the model was trained "
            "with, so its features would mean something else; install the version, or give the "
            "model's folder, that was recorded",
            table=_two_columns([("", "recorded", "here"), *rows]),
        )


def _two_columns(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    rows = list(rows)
    first = max(len(row[0]) for row in rows)
    second = max(len(row[1]) for row in rows)
    return [f"  {name:<{first}}  {old:<{second}}  {new}".rstrip() for name, old, new in rows]


def _listed_modality(record: ExtractorRecord) -> str:
    """The modality that the registry has an extractor under; ``--rename`` may have changed it."""
    if (record.modality, record.name) in EXTRACTORS:
        return record.modality
    listed = [modality for modality, name in EXTRACTORS if name == record.name]
    if record.width == 0:
        listed = [modality for modality in listed if modality == "text"]
    if len(listed) == 1:
        return listed[0]
    is_picture = "fps" in record.options
    return "vision" if is_picture else "audio"


def _plugin(modality: str, name: str) -> Plugin:
    plugin = EXTRACTORS.get((modality, name))
    if plugin is None:
        names = [known for kind, known in EXTRACTORS if kind == modality]
        raise Refused(
            f"--{modality} {name}: there is no such extractor; there are {', '.join(names)} and "
            f"{NONE}{suggest(name, names)}"
        )
    return plugin


def _open(
    modality: str, name: str, options: Mapping[str, Option], field: str | None = None
) -> tuple[Kind, Any]:
    plugin = _plugin(modality, name)
    module = import_module(plugin.module)
    return plugin.kind, module.build(field or modality, options)


def _parse_option(text: str, default: Option, where: str) -> Option:
    """A value of the kind that the default is of, and above 0 where that is a number."""
    if isinstance(default, str):
        return text
    kind = type(default)
    try:
        number = kind(text)
    except ValueError:
        raise Refused(f"{where}: {text!r} is no {kind.__name__}, such as {default}") from None
    if not 0 < number < 10_000:
        raise Refused(f"{where}: {text} is not between 0 and 10000; the default is {default}")
    return number
