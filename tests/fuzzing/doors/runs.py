"""Run directories, checkpoints, bundles and folders of searches, through what evaluates, resumes
and loads them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import numpy as np
import safetensors.torch
import torch
from fuzzing import Case, Files, Special, names_of, put, take
from mutations import as_json, spoil_array, spoil_bytes, spoil_tree
from small_models import small_run

import concord
from core import bundle
from doors.shards import sentiment
from launch import export as exporting
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import FORMAT, VERSION, Checkpoints, State, read_state
from launch.checkpoints.tensors import load_generators, load_weights
from launch.config import Run, to_dict
from launch.evaluate import evaluate
from launch.reports.event_log import read_events
from launch.run_directory import find_run
from launch.session import naming_state
from launch.tasks.build import build_model, build_task
from tune.settings import load_search, read_search, write_search

STEP = "run/checkpoints/step-00000003-epoch-1"
POINTERS = (
    "..",
    "../..",
    "/",
    "",
    "\0",
    "step-00000009",
    ".",
    "step-00000003-epoch-1/..",
    "x" * 5000,
    "\ud800",
    "a\nb",
    "~",
)
WAYS = {
    "run/": ("evaluate", "evaluate", "resume", "load", "export"),
    "bundle": ("load",),
    "search": ("search",),
    "text": ("load",),
}


def _make_run(folder: Path, data: Path) -> None:
    """A run directory with one checkpoint, as training leaves it, without an engine."""
    run = replace(small_run("baseline", data), run_dir=str(folder))
    task = build_task(run)
    model = build_model(run, task.data)
    folder.mkdir(parents=True)
    body = {"run": to_dict(run), "provenance": {}}
    (folder / "config.json").write_text(json.dumps(body))
    step = {"kind": "train", "step": 1, "loss": 0.5, "epoch": 0}
    (folder / "log.jsonl").write_text(
        "\n".join(map(json.dumps, [step, step | {"kind": "epoch", "step": 3}]))
    )
    (folder / "scores.json").write_text(json.dumps({"valid": {"MAE": 1.0}, "test": {"MAE": 1.25}}))
    tensors = {"rng/cpu-0@0": torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten().clone()
        tensors |= {
            f"param/{name}@0": flat,
            f"exp_avg/{name}@0": flat * 0,
            f"exp_avg_sq/{name}@0": flat * 0,
        }
    tensors |= {f"buffer/{name}@0": value for name, value in model.named_buffers()}
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    progress = Progress(epoch=1, step=3, best=0.5, best_epoch=0)
    state = State(FORMAT, VERSION, 1, progress, task.state_dict(), 3.0, shapes)
    checkpoint = folder / "checkpoints" / Path(STEP).name
    checkpoint.mkdir(parents=True)
    (checkpoint / "rank-00000.safetensors").write_bytes(safetensors.torch.save(tensors))
    (checkpoint / "state.json").write_text(json.dumps(asdict(state)))
    for pointer in ("last", "best"):
        (folder / "checkpoints" / pointer).write_text(checkpoint.name)
    bundle.save(
        folder.parent / "bundle", run.model, run.options, model, task.data, "card", {"scores": {}}
    )


def _text_bundle(folder: Path, data: Path) -> None:
    """An exported model with a text encoder of transformers, whose architecture is in a file of its
    own."""
    from transformers import BertConfig, BertModel

    source = folder.parent / "bert"
    BertModel(
        BertConfig(
            vocab_size=120,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    ).save_pretrained(source)
    run = small_run("baseline", data)
    text = replace(run.options.text, source=str(source))
    run = replace(run, options=replace(run.options, text=text))
    task = build_task(run)
    bundle.save(folder, run.model, run.options, build_model(run, task.data), task.data, "card", {})


def signed(files: Files) -> Files:
    """With a manifest of the checkpoint that knows its files."""
    entries = {}
    for name, body in files.items():
        if name.startswith(STEP) and not name.endswith("manifest.json") and isinstance(body, bytes):
            entries[Path(name).name] = {
                "bytes": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
            }
    return files | {
        f"{STEP}/manifest.json": json.dumps({"format": FORMAT, "files": entries}).encode()
    }


def _spoil_tensors(rng: Random, body: bytes) -> bytes:
    """Tensors renamed, reshaped, of another type, or missing."""
    tensors = dict(safetensors.torch.load(body))
    name = rng.choice(list(tensors))
    change = rng.randrange(5)
    if change == 0:
        del tensors[name]
    elif change == 1:
        kind, _, rest = name.partition("/")
        plain = rest.rpartition("@")[0]
        odd = (
            f"{name}x",
            f"{kind}/{plain}@1",
            f"{kind}/{plain}@-1",
            f"{kind}/{plain}@one",
            plain,
            "",
            f"x/{rest}",
            "param/@",
            "é@0",
        )
        tensors[rng.choice(odd)] = tensors.pop(name)
    elif change == 2:
        kinds = (torch.float64, torch.int32, torch.bool, torch.float16, torch.complex64)
        tensors[name] = tensors[name].to(rng.choice(kinds))
    elif change == 3:
        tensors[name] = rng.choice(
            (tensors[name][None], tensors[name].flatten()[:-1], torch.zeros(0), torch.tensor(3.0))
        )
    else:
        array = spoil_array(rng, tensors[name].numpy())
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and array.dtype.isnative:
            tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    try:
        return safetensors.torch.save(
            {key: value.contiguous().clone() for key, value in tensors.items()}
        )
    except Exception:  # of a type that safetensors has not
        return spoil_bytes(rng, body)


class Runs:
    def __init__(self, scratch: Path):
        data = scratch / "data" / "shards"
        put(
            Case(
                {f"data/shards/{name}": body for name, body in sentiment(scratch / "made").items()}
            ),
            scratch,
        )
        self.run = small_run("baseline", data)
        _make_run(scratch / "made" / "run", data)
        _text_bundle(scratch / "made" / "text", data)
        words = [
            "baseline/demo",
            f"data={data}",
            f"run_dir={scratch / 'made' / 'search'}",
            "space.batch_size=choice(8,16)",
        ]
        write_search(read_search(words))
        files: Files = {}
        for name in ("run", "bundle", "text", "search"):
            files |= {
                f"{name}/{path}": body for path, body in take(scratch / "made" / name).items()
            }
        self.files = signed(files)
        exporting.provenance = lambda: {
            "packages": {}
        }  # it asks git, and no case may start a program

    def valid(self) -> list[Case]:
        ways = [("run/", way) for way in WAYS["run/"][1:]] + [
            ("bundle", "load"),
            ("text", "load"),
            ("search", "search"),
        ]
        return [
            _case(_part(self.files, part), part, way) for part, way in [*ways, ("run/", "events")]
        ]

    def spoilt(self, rng: Random) -> Case:
        part = rng.choice(("run/", "run/", "run/", "bundle", "bundle", "text", "search"))
        before = _part(self.files, part)
        files = dict(before)
        name = rng.choice([name for name in files if not name.endswith("README.md")])
        body = files[name]
        assert isinstance(body, bytes)
        way = rng.choice(WAYS[part])
        kind = rng.random()
        if kind < 0.03:
            files[name] = rng.choice(list(Special))
        elif kind < 0.07:
            del files[name]
        elif name.endswith("log.jsonl"):
            way = "events"
            files[name] = (
                spoil_bytes(rng, body)
                if kind < 0.5
                else as_json(rng, spoil_tree(rng, json.loads(body.split(b"\n")[0])))
            )
        elif name.endswith(("last", "best")) and kind < 0.8:
            files[name] = rng.choice(POINTERS).encode("utf-8", "surrogatepass")
        elif name.endswith(".json") and kind < 0.8:
            files[name] = as_json(rng, spoil_tree(rng, json.loads(body)))
        elif name.endswith(".safetensors") and kind < 0.7:
            files[name] = _spoil_tensors(rng, body)
        elif name.endswith("text/config.json") or (part == "text" and kind < 0.9):
            files = files | _hostile_text(rng, files)
        else:
            files[name] = spoil_bytes(rng, body)
        if part == "run/" and STEP in name and "manifest" not in name and rng.random() < 0.7:
            files = signed(files)
        return _case(files, part, way, before)

    def enter(self, folder: Path, case: Case) -> None:
        part, way = case.words
        target = folder / part
        if way == "evaluate":
            evaluate(target, [], "valid")
        elif way == "export":
            exporting.export(target, folder / "exported", [])
        elif way == "load":
            concord.load(target)
        elif way == "events":
            read_events(target)
        elif way == "search":
            load_search(target).run()
        else:
            _resume(target, self.run)


def _resume(folder: Path, run: Run) -> None:
    """What ``launch.session`` does before and after it starts the engine, for a command line that
    asks for ``run``."""
    run, run_dir = find_run(replace(run, run_dir=str(folder)))
    task = build_task(run)
    model = build_model(run, task.data)
    checkpoint, complaints = Checkpoints(run_dir, Progress()).find("last")
    if checkpoint is None:
        from launch.config import ConfigError

        raise ConfigError("; ".join(complaints) or f"{folder}/checkpoints/last")
    state = read_state(checkpoint)
    load_weights(checkpoint, state.shapes, model)
    with naming_state(checkpoint):
        task.load_state_dict(state.task)
    load_generators(checkpoint, state.ranks, (run.seed, state.progress.step))


def _hostile_text(rng: Random, files: Files) -> Files:
    """Files that make transformers run code, or look for weights elsewhere."""
    config = json.loads(files["text/text/config.json"])  # type: ignore[arg-type]
    hostile: Files = {}
    change = rng.randrange(4)
    if change == 0:
        config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
        config.pop("model_type", None)
        hostile["text/text/code.py"] = b"open('../outside/touched', 'w')\n"
    elif change == 1:
        config.pop("weights_are_elsewhere", None)
        hostile["text/text/pytorch_model.bin"] = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."
    elif change == 2:
        config["model_type"] = rng.choice(("gpt2", "t5", "nothing", 3, None, "bert\0", ["bert"]))
    else:
        config[rng.choice(("hidden_size", "num_hidden_layers", "vocab_size"))] = rng.choice(
            (0, -1, 10**6, 10**12, 2.5, "8", None)
        )
    return hostile | {"text/text/config.json": json.dumps(config).encode()}


def _part(files: Files, part: str) -> Files:
    return {name: body for name, body in files.items() if name.startswith(part)}


def _case(files: Files, part: str, way: str, before: Files | None = None) -> Case:
    names = names_of(files) | names_of(before or {}) | {"checkpoints"}
    return Case(files, [part, way], names)


def open_door(scratch: Path) -> Runs:
    return Runs(scratch)
