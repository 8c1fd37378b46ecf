"""Entity alignment on the real data: results by view, time and memory of an epoch, and of the ranking alone.

    python benchmarks/alignment.py results raw=FOLDER [only="mclea/zh_en/graph;..."] [work=FOLDER] [key=value ...]
    python benchmarks/alignment.py structure raw=FOLDER [work=FOLDER]
    python benchmarks/alignment.py speed raw=FOLDER [work=FOLDER]
    python benchmarks/alignment.py ranking [entities=100000] [width=600] [queries=N]

``raw`` holds dbp15k/, srprs/ and fb15k_db15k/. Every cell is an ordinary ``launch.train`` whose command stands in the
file of results, ``benchmarks/results/alignment.json``; the file is written after each cell, and a cell that is in it is
not run again. A run that was stopped goes on where it stood. Splits are those of seed 42, a tenth of the training links
is kept for validation, and the test links are scored once, by the epoch that validates best. The tables of
``docs/alignment.md`` are written anew after every command. ``queries`` ranks only so many of the entities, among all.
``structure`` is for comparison with what is published of structure alone: MCLEA on nearly all links, for a fixed number
of epochs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.common import made_by, paste, read_words  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.metrics import ranking as metrics  # noqa: E402
from data_shards.graph import load_graphs  # noqa: E402
from launch.config import load_recipe, override  # noqa: E402
from launch.engine.optimizer import optimizer_for  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402
from launch.tasks.build import build_model  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "alignment.json"
PAGE = ROOT / "docs" / "alignment.md"
FOLDERS = {  # name -> (folder below raw, options of the conversion, recipe)
    "zh_en": ("dbp15k/zh_en", [], "dbp15k_zh_en"),
    "fr_en": ("dbp15k/fr_en", [], "dbp15k_fr_en"),
    "en_fr": ("srprs/en_fr_15k_V1", ["--links", "seeded"], "srprs_en_fr"),
    "fb_db": ("fb15k_db15k", ["--train-ratio", "0.2"], "fb15k_db15k"),
}
# the published trainings have no validation at all; here 45 links are left to choose the epoch by, instead of 450
ALL_LINKS = ("dbp15k/zh_en", ["--valid-ratio", "0.01"], "dbp15k_zh_en")
VIEWS = {  # structure first, one view more in each row; names last, where they are given
    "zh_en": ["graph", "graph,relation", "graph,relation,chars"],
    "fr_en": ["graph", "graph,relation", "graph,relation,chars"],
    "en_fr": [
        "graph",
        "graph,relation",
        "graph,relation,attribute",
        "graph,relation,attribute,chars",
    ],
    "fb_db": [
        "graph",
        "graph,relation",
        "graph,relation,attribute",
        "graph,relation,attribute,numeric",
    ],
}
# MEAformer's batches of 3,500 links want a GPU; here it gets MCLEA's, and as many steps as 250 epochs of its own
CHANGES: dict[str, list[str]] = {
    "mclea": [],
    "meaformer": ["batch_size=512", "epochs=60"],
    "eva": [],
    "gcn_align": [],
    "kecg": [],
}
READ = {
    "gcn_align": {"graph", "attribute"},
    "kecg": {"graph"},
}  # a model that does not read every view
NAMES = "names"  # no model: how alike the letters of two names are, without any training
HUGE_PAGES = {
    "THP_MEM_ALLOC_ENABLE": "1"
}  # a sixth less time on CPUs, where tables of entities are allocated anew
SHOWN = ("Hits@1", "Hits@10", "MRR", "csls/Hits@1", "csls/MRR")


def converted(raw: Path, work: Path, name: str) -> Path:
    """The shards of a data set, made when they are not there."""
    folder, options, _ = (FOLDERS | {"zh_en_all": ALL_LINKS})[name]
    out = work / "shards" / name
    if (out / "manifest.json").is_file():
        return out
    command = [
        sys.executable,
        "-m",
        "data_shards.convert",
        str(raw / folder),
        "--out",
        str(out),
        *options,
    ]
    subprocess.run([*command, "--shard-size", "4096"], cwd=ROOT, check=True)
    return out


def cells(only: list[str]) -> list[tuple[str, str, str]]:
    """(model, data set, views) of the table."""
    found = []
    for name in FOLDERS:
        for views in VIEWS[name]:
            for model in CHANGES:
                if set(views.split(",")) <= READ.get(model, set(views.split(","))):
                    found.append((model, name, views))
        if any("chars" in views for views in VIEWS[name]):
            found.append((NAMES, name, "chars"))
    return [cell for cell in found if not only or "/".join(cell) in only]


def results(raw: Path, work: Path, only: list[str], changes: list[str]) -> None:
    """Run the cells that are missing, and print the table."""
    for model, name, views in cells(only):
        key = f"{model}/{name}/{views}"
        if key in read()["cells"]:
            continue
        if model == NAMES:
            done = read()
            done["cells"][key] = names_alone(converted(raw, work, name))
            write(done)
            continue
        arguments = [
            f"{model}/{FOLDERS[name][2]}",
            f"options.views={views}",
            *CHANGES[model],
            *changes,
        ]
        cell = run_cell(
            arguments,
            converted(raw, work, name),
            work / "runs" / key.replace("/", "-").replace(",", "+"),
        )
        done = read()  # another piece may have been written meanwhile
        done["cells"][key] = cell
        write(done)


def names_alone(shards: Path) -> dict[str, Any]:
    """What the names give without training: the scores of their pairs of neighbouring letters."""
    graphs = load_graphs(shards, ("chars",))
    links = graphs.links["test"]
    rows = graphs.views["chars"]
    scores = metrics.alignment_scores(rows[links[:, 0]], rows[links[:, 1]])
    return {"test": scores, "epochs": 0, "best_epoch": 0, "provenance": made_by()}


def run_cell(arguments: list[str], shards: Path, run_dir: Path) -> dict[str, Any]:
    """Train and test once; scores, epochs, seconds and memory."""
    started = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "launch.train",
        *arguments,
        f"data={shards}",
        f"run_dir={run_dir}",
    ]
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | HUGE_PAGES)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}; its output is above")
    scores = json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))
    epochs = [event for event in _events(run_dir) if event["kind"] == "epoch"]
    return {
        "command": f"deepspeed launch/train.py {' '.join(arguments)} data=DIR",
        "test": scores["test"],
        "valid": scores["valid"],
        "epochs": len(epochs),
        "best_epoch": 1 + max(range(len(epochs)), key=lambda epoch: epochs[epoch]["all/MRR"]),
        "train_seconds": sum(event["seconds"] for event in epochs),
        "all_seconds": time.perf_counter() - started,
        "peak_gb": usage.ru_maxrss / 2**20,
        "load": os.getloadavg()[1] / (os.cpu_count() or 1),
        "provenance": made_by(),
    }


def structure(raw: Path, work: Path) -> None:
    """MCLEA by structure alone on nearly all links of zh_en, for a fixed number of epochs."""
    arguments = ["mclea/dbp15k_zh_en", "options.views=graph", "epochs=40", "patience=0"]
    cell = run_cell(arguments, converted(raw, work, "zh_en_all"), work / "runs" / "structure")
    done = read()
    done["structure"] = cell
    write(done)


def _events(run_dir: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def read() -> dict[str, Any]:
    if RESULTS.is_file():
        return json.loads(RESULTS.read_text(encoding="utf-8"))
    return {"cells": {}, "speed": {}, "ranking": {}}


def write(done: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically(RESULTS, json.dumps(done, indent=1) + "\n")


def page(done: dict[str, Any]) -> str:
    """All results as Markdown."""
    header = [*SHOWN, "epochs", "best"]
    rows = []
    for model, name, views in cells([]):
        cell = done["cells"].get(f"{model}/{name}/{views}")
        if cell:
            rows.append([name, views.replace(",", " + "), model, *_numbers(cell)])
    lines = [markdown_table(["data", "views", "model", *header], rows)]
    if done.get("structure"):
        lines += [
            "",
            "Structure alone on nearly all links of zh_en (4,455 of 4,500), 40 epochs of MCLEA:",
            "",
        ]
        lines.append(markdown_table(header, [_numbers(done["structure"])]))
    return "\n".join(
        [*lines, *_speed_lines(done["speed"]), *map(_ranking_line, done["ranking"].values())]
    )


def _numbers(cell: dict[str, Any]) -> list[str]:
    scores = [f"{cell['test'][score]:.3f}" for score in SHOWN]
    return [*scores, str(cell["epochs"]), str(cell["best_epoch"])]


def _speed_lines(speeds: dict[str, Any]) -> list[str]:
    parts = ("step", "forward", "losses", "backward", "optimiser")
    header = [
        *("data", "views", "model"),
        *parts,
        "graph network, share of step",
        "graph network, all entities, forward",
        "step, all entities",
        "epoch",
        "GB",
    ]
    rows = []
    for key, cell in speeds.items():
        model, name = key.split("/")
        seconds = cell["seconds"]
        rows.append(
            [
                name,
                " + ".join(cell["views"]),
                model,
                *[f"{seconds[part]:.3f}" for part in parts],
                f"{cell['graph_share_of_step']:.0%}",
                f"{seconds['graph forward, all entities']:.3f}",
                f"{seconds['step, all entities']:.3f}",
                f"{cell['seconds_per_epoch']:.1f}",
                f"{cell['peak_gb']:.2f}",
            ]
        )
    title = "Seconds on one thread, without names, steps of 512 links, and peak memory:"
    return ["", title, "", markdown_table(header, rows)]


def _ranking_line(cell: dict[str, Any]) -> str:
    asked, entities = cell["queries"], cell["entities"]
    what = f"{entities:,} pairs" if asked == entities else f"{asked:,} of {entities:,} pairs"
    line = f"\nRanking {what} of width {cell['width']} among all, in both directions, with and without CSLS: "
    line += (
        f"{cell['seconds']:.0f} s on {cell['threads']} thread(s), {cell['peak_gb']:.2f} GB at most"
    )
    if asked == entities:
        return line + "."
    return (
        line
        + f"; at that rate all would take {cell['seconds'] * entities / asked / 60:.0f} minutes."
    )


def speed(raw: Path, work: Path, steps: int = 5) -> None:
    """Seconds of the parts of a training step, and peak memory, each in a process of its own."""
    for name in FOLDERS:
        shards = converted(raw, work, name)
        for model in CHANGES:
            command = [
                sys.executable,
                __file__,
                "step",
                f"model={model}",
                f"name={name}",
                f"shards={shards}",
            ]
            said = subprocess.run(
                [*command, f"steps={steps}"], check=True, capture_output=True, text=True
            ).stdout
            done = read()
            done["speed"][f"{model}/{name}"] = json.loads(said.splitlines()[-1]) | {
                "provenance": made_by()
            }
            write(done)


def step(model_name: str, name: str, shards: str, steps: int) -> dict[str, Any]:
    """Measure the best of ``steps`` training steps of the recipe, without names, on one thread."""
    torch.set_num_threads(1)
    views = [view for view in VIEWS[name] if "chars" not in view][-1].split(",")
    run = override(
        load_recipe(f"{model_name}/{FOLDERS[name][2]}"),
        [f"options.views={','.join(views)}", "batch_size=512"],
    )
    graphs = load_graphs(shards, views)
    torch.manual_seed(0)
    model = build_model(run, graphs.spec())
    optimizer = optimizer_for(model, run)
    links = graphs.links["train"][: run.batch_size]
    batch = graphs.batch(torch.arange(len(links)), links, torch.ones(len(links)), 1 / len(links))
    graph = model.encoder.graph
    best: dict[str, float] = {}

    def clock(part: str, started: float) -> float:
        now = time.perf_counter()
        best[part] = min(best.get(part, float("inf")), now - started)
        return now

    for _ in range(steps):
        began = now = time.perf_counter()
        output = model(batch)
        now = clock("forward", now)
        losses = model.global_batch_losses(
            model.global_batch_rows(output), batch.target, batch.weight
        )
        total = torch.stack(list(losses.values())).sum()
        now = clock("losses", now)
        optimizer.zero_grad()
        total.backward()
        now = clock("backward", now)
        optimizer.step()
        now = clock("optimiser", now)
        now = clock("step", began)
        rows = graph(model.encoder.entity, batch.edges, batch.links)
        now = clock("graph forward, entities of the batch", now)
        rows.sum().backward()
        now = clock("graph backward, entities of the batch", now)
        with torch.no_grad():
            graph(model.encoder.entity, batch.edges)
        now = clock("graph forward, all entities", now)
        graph(model.encoder.entity, batch.edges)[batch.links].sum().backward()
        clock("graph forward and backward, all entities", now)
    graph_part = (
        best["graph forward, entities of the batch"] + best["graph backward, entities of the batch"]
    )
    # what a step would take if the graph network encoded every entity, as the released codes do
    best["step, all entities"] = (
        best["step"] - graph_part + best["graph forward and backward, all entities"]
    )
    steps_per_epoch = -(-len(graphs.links["train"]) // run.batch_size)
    return {
        "views": views,
        "seconds": {part: round(value, 4) for part, value in best.items()},
        "graph_share_of_step": round(graph_part / best["step"], 3),
        "steps_per_epoch": steps_per_epoch,
        "seconds_per_epoch": round(steps_per_epoch * best["step"], 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def ranking(entities: int, width: int, queries: int) -> None:
    """Both directions, with and without CSLS, of ``queries`` among all ``entities`` pairs; seconds and peak memory."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(entities, width, generator=generator)
    right = left + 4 * torch.randn(entities, width, generator=generator)
    started = time.perf_counter()
    # as metrics.all_ranks does it, with the first queries in the place of all; CSLS means of other candidates are
    # repeated ones, so a part has no scores
    sides = (
        metrics.unit(left),
        metrics.unit(right),
    )  # beside the given rows, as when a model's rows are scored
    for rows, others in (sides, sides[::-1]):
        candidates = metrics.Candidates(others)
        means = metrics.mean_of_nearest(rows[:queries], candidates, 3)
        hubs = means.repeat(-(-entities // queries))[:entities]
        metrics._ranks(rows[:queries], candidates, hubs)
    cell = {
        "entities": entities,
        "width": width,
        "queries": queries,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "provenance": made_by(),
    }
    done = read()
    done["ranking"][f"{entities}x{width}"] = cell
    write(done)


def main(words: list[str]) -> None:
    if not words or words[0] not in ("results", "structure", "speed", "step", "ranking"):
        raise SystemExit(__doc__)
    defaults = {"raw": "raw", "work": "work", "steps": "5", "entities": "100000", "width": "600"}
    defaults |= dict.fromkeys(("only", "model", "name", "shards", "queries"), "")
    own, changes = read_words(defaults, words[1:])
    raw, work = Path(own["raw"]).resolve(), Path(own["work"]).resolve()
    if words[0] == "results":
        results(raw, work, [cell for cell in own["only"].split(";") if cell], changes)
    elif words[0] == "structure":
        structure(raw, work)
    elif words[0] == "speed":
        speed(raw, work, int(own["steps"]))
    elif words[0] == "step":
        print(json.dumps(step(own["model"], own["name"], own["shards"], int(own["steps"]))))
    else:
        entities = int(own["entities"])
        queries = min(entities, int(own["queries"] or entities))
        ranking(entities, int(own["width"]), queries)
    if words[0] != "step":
        text = page(read())
        paste(text, "alignment", PAGE)
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
