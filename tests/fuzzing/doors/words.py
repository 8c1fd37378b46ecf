"""Words of command lines: settings, ``@FILE``, a DeepSpeed file, label ranges, search spaces."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import Case, Files, Special, pass_command
from mutations import as_json, spoil_bytes, spoil_lines, spoil_tree, value

from data_shards import convert
from launch import train
from launch.config import leaves, load_recipe, override, to_dict
from launch.engine.deepspeed_config import deepspeed_config, with_stage
from tune.settings import read_search

RECIPES = (
    "hscl/demo",
    "tate/demo",
    "tfr_net/demo",
    "cenet/demo",
    "self_mm/demo",
    "baseline/demo",
    "mclea/srprs_en_fr",
)
LABELS = ("-3:3", "-3:3:1/3", "0:5:0.5", "1:5:1/2")
DOMAINS = (
    "choice(16,32,64)", "uniform(0,0.5)", "loguniform(1e-5,1e-2)", "randint(1,8)", "quniform(0,1,0.25)", "none",
    "choice([1,2],[3,4])", "lograndint(1,64)",
)  # fmt: skip
SEARCH = (
    "trials=4",
    "search=random",
    "scheduler=none",
    "confirm=0",
    "grace=1",
    "cpus=0.5",
    "retries=1",
)
DEEPSPEED = {
    "zero_optimization": {
        "stage": 1,
        "reduce_bucket_size": 1000,
        "offload_optimizer": {"device": "none"},
    },
    "fp16": {"enabled": False},
    "bf16": {"enabled": False},
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "steps_per_print": 10,
}


def _spoil_word(rng: Random, word: str) -> str:
    """Another value, or the same with some characters changed."""
    if rng.random() < 0.5:
        other = value(rng)
        return str(other) if rng.random() < 0.7 else json.dumps(other, default=str)
    characters = list(word)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(characters) + 1)
        mark = rng.choice("0123456789.,:/-=[]{}()\"'eE x\0é\ud800\n")
        change = rng.randrange(3)
        if change == 0:
            characters.insert(place, mark)
        elif characters:
            characters[place % len(characters)] = mark if change == 1 else ""
    return "".join(characters)


class Words:
    def __init__(self) -> None:
        self.runs = {name: load_recipe(name) for name in RECIPES}
        self.settings = {name: to_dict(run) for name, run in self.runs.items()}
        self.leaves = {name: leaves(settings) for name, settings in self.settings.items()}

    def valid(self) -> list[Case]:
        recipe = RECIPES[0]
        return [
            _case("setting", [recipe, "batch_size=8", "optim.groups.main.lr=1e-3"]),
            _case(
                "setting",
                [recipe, "@settings.json"],
                {"settings.json": json.dumps(self.settings[recipe]).encode()},
            ),
            _case("setting", [recipe, "@lines"], {"lines": b"# these\nseed=3\n\nepochs=2\n"}),
            _case("deepspeed", [recipe], {"deepspeed.json": json.dumps(DEEPSPEED).encode()}),
            _case("labels", ["-3:3:1/3"]),
            _case("search", [recipe, "data=shards", f"space.batch_size={DOMAINS[0]}", *SEARCH]),
        ]

    def spoilt(self, rng: Random) -> Case:
        recipe = rng.choice(RECIPES)
        way = rng.choice(
            ("setting", "setting", "file", "lines", "deepspeed", "labels", "search", "search")
        )
        if way == "setting":
            return _case(way, [recipe, *self._changes(rng, recipe)])
        if way == "file":
            body: Any = as_json(rng, spoil_tree(rng, self.settings[recipe]))
            body = _spoilt_file(rng, body, 0.3)
            return _case("setting", [recipe, "@settings.json"], {"settings.json": body})
        if way == "lines":
            text = "\n".join(self._changes(rng, recipe)).encode("utf-8", "surrogatepass")
            body = spoil_lines(rng, text) if rng.random() < 0.5 else _spoilt_file(rng, text, 0.5)
            names = [
                word.partition("=")[0] for word in text.decode("utf-8", "replace").splitlines()
            ]
            return _case("setting", [recipe, "@lines"], {"lines": body}, names)
        if way == "deepspeed":
            body = _spoilt_file(rng, as_json(rng, spoil_tree(rng, DEEPSPEED)), 0.2)
            return _case(way, [recipe], {"deepspeed.json": body})
        if way == "labels":
            return _case(way, [_spoil_word(rng, rng.choice(LABELS))])
        key = rng.choice(list(self.leaves[recipe]))
        words = [f"space.{key}={rng.choice(DOMAINS)}", *SEARCH]
        place = rng.randrange(len(words))
        name, _, text = words[place].partition("=")
        words[place] = f"{name}={_spoil_word(rng, text)}"
        if rng.random() < 0.2:
            words.append(
                rng.choice(("search=grid", "search=pbt", "space=none", "epochs=0", f"{key}=1"))
            )
        return _case(
            way,
            [recipe, "data=shards", *words],
            {},
            [key, *(word.partition("=")[0] for word in words)],
        )

    def _changes(self, rng: Random, recipe: str) -> list[str]:
        """One setting, or a few, with values of other kinds; sometimes under another name."""
        changes = []
        for _ in range(rng.choice((1, 1, 2))):
            key = rng.choice(list(self.leaves[recipe]))
            if rng.random() < 0.2:
                key = rng.choice(
                    (
                        "optim",
                        "options",
                        "optim.groups",
                        "optim.groups.main",
                        "loading",
                        "missing",
                        "task_options",
                    )
                )
            if rng.random() < 0.15:
                key = rng.choice(
                    (key + "x", key[:-1], key + ".a", "." + key, key.upper(), "", "model", "recipe")
                )
            word = json.dumps(self.leaves[recipe].get(key), default=str)
            changes.append(f"{key}={_spoil_word(rng, word)}")
        return changes

    def enter(self, folder: Path, case: Case) -> None:
        way, *words = case.words
        words = [f"@{folder / word[1:]}" if word.startswith("@") else word for word in words]
        if way == "setting":
            pass_command(train.main, [*words, "--show"])
        elif way == "labels":
            convert.parse_labels(words[0])
        elif way == "search":
            read_search(words)
        else:
            changes = [f"deepspeed={folder / 'deepspeed.json'}"]
            deepspeed_config(with_stage(override(self.runs[words[0]], changes), 1000), 1000)


def _spoilt_file(rng: Random, body: bytes, share: float) -> bytes | Special:
    if rng.random() < 0.02:
        return rng.choice(list(Special))
    return spoil_bytes(rng, body) if rng.random() < share else body


def _case(
    way: str, words: list[str], files: Files | None = None, names: list[str] | None = None
) -> Case:
    """A refusal names the key, its last part, the word itself, or the file."""
    said = {*(files or {}), *(names or ())}
    for word in words[0 if way == "labels" else 1 :]:
        key, equals, _ = word.partition("=")
        said |= (
            {key.rpartition(".")[2], key}
            if equals and key
            else {word, word[:40], ascii(word)[1:40]}
        )
        said |= {part for part in key.split(".") if part}
    said |= {"--labels"} if way == "labels" else set()
    return Case(files or {}, [way, *words], said)


def open_door(scratch: Path) -> Words:
    return Words()
