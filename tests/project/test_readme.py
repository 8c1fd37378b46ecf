"""What the documentation says exists: commands with their words, settings, files, pictures."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest
from paths import ROOT

import launch.train
from concord.__main__ import COMMANDS
from data_shards.stream import Stream
from launch.config import leaves, load_recipe, override, recipe_names, to_dict
from tune.settings import Search, read_search
from tune.studies.plan import Words

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_pictures_lead_somewhere(page: str):
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / target).exists(), f"{page} points to {target}"


@pytest.mark.parametrize("page", TEXTS)
def test_modules_that_are_run_exist(page: str):
    for module in re.findall(
        r"python3? -m ((?:core|data_shards|launch|tune|concord)[\w.]*)", TEXTS[page]
    ):
        assert importlib.util.find_spec(module), f"{page} runs {module}"


@pytest.mark.parametrize("page", TEXTS)
def test_files_named_in_backticks_exist(page: str):
    folders = "core|data_shards|launch|tune|concord|benchmarks|docs|examples|tests"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", TEXTS[page]):
        assert (ROOT / name).exists(), f"{page} names {name}"


class Parsed(BaseException):
    """A command has read its words; nothing of it is to run."""


def commands() -> list[tuple[str, str]]:
    """(page, command) for every command in an indented or fenced line, or between backticks."""
    found = []
    for page, text in TEXTS.items():
        joined = re.sub(r"\s*\\\n\s*", " ", text)
        candidates = [line.strip() for line in joined.splitlines() if line.startswith("    ")]
        candidates += re.findall(r"`([^`\n]+)`", joined)
        for candidate in candidates:
            line = re.sub(r"\s{2,}.*|\s#.*", "", candidate)  # an explanation beside it
            if re.match(
                r"(concord [a-z]+|python3? -m (data_shards|launch|tune)\.|deepspeed )", line
            ):
                found.append((page, line))
    return found


def words_of(line: str) -> tuple[str, list[str]]:
    """The module that a command runs, and its words, with the placeholders of the pages filled
    in."""
    line = line.replace("$MODEL", "small").replace("[FOLDER ...]", "").replace("[RUN ...]", "")
    line = line.replace("RECIPE", "hscl/demo").replace("[--deep]", "--deep").replace(" ...", "")
    line = re.sub(r"space\.KEY=\S+|key=value|KEY=\S+", "", line)
    first, *words = shlex.split(line)
    if first == "concord":
        return COMMANDS[words[0]][0], words[1:]
    if first.startswith("python"):
        return words[1], words[2:]
    program = next(n for n, word in enumerate(words) if word.startswith("launch"))
    return words[program].removesuffix(".py").replace("/", "."), words[program + 1 :]


def test_there_are_commands_to_check():
    assert len(commands()) > 30


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_read_by_their_parsers(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    module_name, words = words_of(line)
    if not words or module_name == "concord.__main__":
        return
    module = importlib.import_module(module_name)
    if module_name in ("launch.train", "launch.distill"):
        answered = ("--help", "--show", "--list")  # which end the command
        launch.train.parse([w for w in words if not w.startswith("@") and w not in answered])
    elif module_name == "tune.search":
        monkeypatch.chdir(tmp_path)
        if "--resume" not in words and not [word for word in words if word.startswith("resume=")]:
            assert read_search(words).recipe == words[0]
    elif module_name.startswith("launch."):
        real = module.read

        def read_and_stop(*arguments: object, **named: object) -> None:
            override(load_recipe("hscl/demo"), real(*arguments, **named).changes)
            raise Parsed

        monkeypatch.setattr(module, "read", read_and_stop)
        with pytest.raises(Parsed):
            module.main(words)
    else:
        monkeypatch.setattr(module, "run", lambda work, **named: 0)
        assert module.main(words) == 0


# words of benchmarks and of Python in the pages, besides settings, options and the stream's
# arguments
OTHER_WORDS = {
    "epoch",
    "workers",
    "batch_size",
    "num_workers",
    "peers",
    "work",
    "stage3_max_reuse_distance",
    "gpu_ids",  # these three: of MMSA, in docs/mmsa.md
    "config_file",
    "config",
}


def known_keys() -> set[str]:
    keys = {field.name for field in dataclasses.fields(Search)}
    keys |= {field.name for field in dataclasses.fields(Words)} | {"set"}
    keys |= set(inspect.signature(Stream.__init__).parameters)
    for name in recipe_names():
        tree = to_dict(load_recipe(name))
        keys |= set(leaves(tree)) | set(tree)
    return keys | OTHER_WORDS | {"space", "resume", "key", "optim.groups"}


@pytest.mark.parametrize("page", TEXTS)
def test_settings_named_between_backticks_exist(page: str):
    known = known_keys()
    for word in re.findall(r"`([^`\n]+)`", TEXTS[page]):
        setting = re.fullmatch(r"([a-z_][\w.]*)=[^=(]*", word)
        dotted = re.fullmatch(r"((?:options|optim|loading|missing|task_options)\.[a-z_.]+)", word)
        for found in (setting, dotted):
            if found:
                last = found[1].rpartition(".")[2]
                assert found[1] in known or any(key.endswith(f".{last}") for key in known), word
                if "." in found[1] and not found[1].startswith(
                    ("space.", "optim.groups.", "vary.")
                ):
                    assert any(key.startswith(found[1]) for key in known), f"{page}: {word}"
