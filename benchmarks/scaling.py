"""Where a step's time goes on 1 and 2 ranks, the bytes it sends against the least possible, and 8
to 512 GPUs on paper.

    python benchmarks/scaling.py data=SHARDS [recipe=hscl/demo] [steps=10]

Measured: the recipe, the parts of its step in seconds (median over steps), and for
each ZeRO stage the bytes that every collective of a step moves, by the volume of the ring
algorithm. Least: what any algorithm must send per rank for P float32 parameters on W ranks. That is
2 P (W - 1) / W elements, the gradients' reduce-scatter and the parameters' all-gather, wherever a
rank has room to keep the parameters from the forward to the backward pass: in stages 0 to 2, and in
stage 3 as it is configured (``stage3_max_reuse_distance``), which keeps those of a model this
small. The stage "3, let go" drops them after each layer's forward, as it does with models that do
not fit, and must gather them twice: 3 P (W - 1) / W. DeepSpeed's stages 1 and 2 all-reduce whole
buckets of gradients rather than scatter them (``use_multi_rank_bucket_allreduce``), which costs
them half of the least again.

On paper: see ``ASSUMPTIONS``; efficiency is the time of the arithmetic over the time of the step.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from launch.reports.tables import markdown_table  # noqa: E402

RESULTS = ROOT / "benchmarks/results/scaling.json"
ASSUMPTIONS = {
    "parameters": 110e6,  # BERT-base; HSCL's own are below 1 %
    "active_parameters": 86e6,  # without the embedding tables, which cost no arithmetic
    "tokens": 50,  # of a sentence
    "peak_flops": 989e12,  # H100 or H200, bf16, dense
    "reached": 0.35,  # share of the peak within a step's arithmetic
    "node": 8,  # GPUs that share NVLink
    "inside": 300e9,  # bytes per second and GPU, reached, within a node
    "between": 40e9,  # and between nodes: 400 Gbit/s per GPU, reached
    "latency": 15e-6,  # seconds per hop of a collective
    "views": 5,
    "projection": 130,  # width of the rows that are gathered
    # share of the gradients' transfer hidden behind the backward pass (overlap_comm is off)
    "overlap": 0.0,
}
ON_PAPER = "1"  # the stage whose collectives are counted, on two ranks, for the paper
VOTES = 1  # collectives of a step that the loop adds: whether to stop
LET_GO = "3, let go"  # stage 3 that gathers the parameters again for the backward pass
VOLUME: dict[
    str, Callable[[int, int], float]
] = {  # bytes that a rank sends, by size of the whole and ranks
    "all_reduce": lambda size, ranks: 2 * size * (ranks - 1) / ranks,
    "reduce": lambda size, ranks: size * (ranks - 1) / ranks,
    "broadcast": lambda size, ranks: size * (ranks - 1) / ranks,
    "all_gather": lambda size, ranks: size * (ranks - 1) / ranks,
    "all_gather_into_tensor": lambda size, ranks: size * (ranks - 1) / ranks,
    "reduce_scatter_tensor": lambda size, ranks: size * (ranks - 1) / ranks,
}


def count_bytes(sent: dict[str, float], calls: dict[str, int]) -> None:
    """Add what each collective of this process sends to ``sent``, and one to ``calls``."""

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            tensors = [
                value
                for value in (*arguments, *options.values())
                if isinstance(value, torch.Tensor)
            ]
            lists = [value for value in (*arguments, *options.values()) if isinstance(value, list)]
            sizes = [t.numel() * t.element_size() for t in tensors]
            sizes += [sum(t.numel() * t.element_size() for t in found) for found in lists]
            sent[name] += VOLUME[name](max(sizes), dist.get_world_size())
            calls[name] += 1
            return real(*arguments, **options)

        return call

    for name in VOLUME:
        call = watched(name, getattr(dist, name))
        setattr(dist, name, call)
        setattr(dist.distributed_c10d, name, call)  # DeepSpeed calls some of them there


def measure(recipe: str, data: str, case: str, steps: int, out: Path) -> None:
    """On a rank: seconds by part and bytes sent of a step."""
    stage, let_go = int(case[0]), case == LET_GO
    sent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    count_bytes(sent, calls)
    from launch.config import load_recipe, override
    from launch.engine.deepspeed_engine import start
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import train_step
    from launch.monitor.health import Clock
    from launch.session import unrecorded
    from launch.tasks.build import build_model, build_task

    section = {"stage3_param_persistence_threshold": 0}  # cuts up small parameters too
    if let_go:
        section |= {
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 0,
            "stage3_prefetch_bucket_size": 0,
        }
    config = out.with_suffix(".ds.json")
    config.write_text(json.dumps({"zero_optimization": section}))
    torch.set_num_threads(1)
    init_processes()
    run = override(
        load_recipe(recipe), [f"data={data}", f"zero_stage={stage}", f"deepspeed={config}"]
    )
    torch.manual_seed(run.seed)
    task = build_task(run)
    model = build_model(run, task.data)
    elements = sum(parameter.numel() for parameter in model.parameters())
    engine, clock, laps, volumes, counts = start(model, run), Clock(), [], [], []
    session = unrecorded(run, task, engine, out.parent)
    progress = session.progress
    while len(laps) < steps + 2:
        engine.train()
        for parts in task.batches(progress.epoch):
            sent.clear()
            calls.clear()
            clock.start()
            train_step(session, parts, clock)
            progress.step += 1
            laps.append(dict(clock.seconds))
            volumes.append(dict(sent))
            counts.append(sum(calls.values()))
        progress.epoch += 1
    laps, volumes = laps[2 : steps + 2], volumes[2 : steps + 2]  # the first steps allocate
    ranks = dist.get_world_size()
    result = {
        "ranks": ranks,
        "stage": case,
        "parameters": elements,
        "seconds": {part: statistics.median(lap[part] for lap in laps) for part in laps[0]},
        "bytes_sent": {
            name: statistics.median(v.get(name, 0.0) for v in volumes) for name in volumes[-1]
        },
        "collectives": VOTES + statistics.median_low(counts[2 : steps + 2]) if ranks > 1 else 0,
        "least_bytes": (3 if let_go else 2) * 4 * elements * (ranks - 1) / ranks,
    }
    if dist.get_rank() == 0:
        out.write_text(json.dumps(result))
    shutdown_processes()


def launch(ranks: int, case: str, recipe: str, data: str, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            __file__,
        ]
        subprocess.run(
            [*command, "rank", recipe, data, case, str(steps), str(out)], cwd=ROOT, check=True
        )
        return json.loads(out.read_text())


def on_paper(gpus: int, batch: int, facts: dict[str, float]) -> dict[str, float]:
    """Seconds of the parts of one step of HSCL with BERT-base, and the efficiency."""
    share = batch / gpus
    encoder = 6 * facts["active_parameters"] * facts["tokens"] * share
    pairs = 3 * (
        3 * 2 * (2 * share) * (2 * batch) * facts["projection"]
    )  # three contrasts of 2B rows, both directions
    arithmetic = (encoder + pairs) / (facts["peak_flops"] * facts["reached"])
    speed = facts["inside"] if gpus <= facts["node"] else facts["between"]
    gradients = 2 * 4 * facts["parameters"] * (gpus - 1) / gpus / speed * (1 - facts["overlap"])
    rows = (
        2 * 4 * batch * facts["views"] * facts["projection"] * (gpus - 1) / gpus / speed
    )  # there, and gradients back
    hops = facts["collectives"] * facts["latency"] * 2 * math.ceil(math.log2(gpus))
    total = arithmetic + gradients + rows + hops
    return {
        "gpus": gpus,
        "global_batch": batch,
        "samples_per_gpu": share,
        "arithmetic": arithmetic,
        "gradients": gradients,
        "rows": rows,
        "latency": hops,
        "samples_per_second": batch / total,
        "efficiency": arithmetic / total,
    }


def table(measured: list[dict[str, Any]], paper: list[dict[str, float]]) -> str:
    return f"{measured_table(measured)}\n\n{paper_table(paper)}"


def measured_table(measured: list[dict[str, Any]]) -> str:
    sections = list(measured[0]["seconds"])
    times = [f"{section}, ms" for section in sections]
    rows = []
    for row in measured:
        cells = [f"{1000 * row['seconds'][section]:.1f}" for section in sections]
        sent, least = sum(row["bytes_sent"].values()), row["least_bytes"]
        ratio = f"{sent / least:.2f}" if least else "-"
        volumes = [row["collectives"], f"{sent / 1e6:.2f}", f"{least / 1e6:.2f}", ratio]
        rows.append([row["ranks"], row["stage"], *cells, *volumes])
    return markdown_table(
        ["ranks", "ZeRO", *times, "collectives", "MB sent", "least", "ratio"], rows
    )


def paper_table(paper: list[dict[str, float]]) -> str:
    parts = ("arithmetic", "gradients", "rows", "latency")
    rows = []
    for row in paper:
        step = 1000 * row["global_batch"] / row["samples_per_second"]
        cells = [f"{1000 * row[part]:.2f}" for part in parts]
        sizes = [row["gpus"], row["global_batch"], f"{row['samples_per_gpu']:.0f}"]
        rows.append([*sizes, f"{step:.2f}", *cells, f"{row['efficiency']:.0%}"])
    header = ["GPUs", "global batch", "per GPU", "step, ms", *parts, "efficiency"]
    return markdown_table(header, rows)


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        recipe, data, case, steps, out = sys.argv[2:]
        measure(recipe, data, case, int(steps), Path(out))
        return
    from benchmarks.common import made_by, read_words, refuse_others

    defaults = {"data": "", "recipe": "hscl/demo", "steps": "10"}
    options, others = read_words(defaults)
    refuse_others(others, defaults)
    recipe, steps = options["recipe"], int(options["steps"])
    cases = [(1, "0"), (2, "0"), (2, "1"), (2, "2"), (2, "3"), (2, LET_GO)]
    measured = [launch(ranks, case, recipe, options["data"], steps) for ranks, case in cases]
    (counted,) = [
        row["collectives"] for row in measured if (row["ranks"], row["stage"]) == (2, ON_PAPER)
    ]
    facts = ASSUMPTIONS | {"collectives": counted}
    paper = [on_paper(gpus, batch, facts) for batch in (4096, 65536) for gpus in (8, 64, 512)]
    text = table(measured, paper)
    print(text)
    saved = {
        "recipe": recipe,
        "measured": measured,
        "paper": paper,
        "assumptions": facts,
        "table": text.splitlines(),
        **made_by(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from core.command import run as run_command

    sys.exit(run_command(main))
