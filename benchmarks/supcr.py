"""What exact SupCR costs, forward and backward: CPU time of one thread against three matrix
products, and memory.

    python benchmarks/supcr.py                 the cells that benchmarks/results/supcr.json lacks,
    the tables of docs/results.md python benchmarks/supcr.py time N WIDTH    one cell, as JSON
    python benchmarks/supcr.py memory FORM N WIDTH
    python benchmarks/supcr.py step            the loss's share of an HSCL training step, by
    definition and fused python benchmarks/supcr.py gpu             times and repeatability on a
    GPU, where there is one

"floor" is what the gradient cannot do without in a plain form: s = q r', G r and G' r, in blocks of
512 rows. It is measured in turn with the forms, in one process; each time is the least of several.
"sentiment" labels have 31 values, "views" one label per sample and two views of it, "distinct" one
label per row. Memory is what a process's peak grows by over its imports, compiled loops and inputs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.common import paste  # noqa: E402
from core.kernels.supcr.op import fused_supcr  # noqa: E402
from launch.reports.provenance import provenance  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "supcr.json"
TEMPERATURE = 0.1
TIMES = [(n, width) for n in (256, 1024, 4096, 16384) for width in (128, 256)]
MEMORY = [
    *((form, 1024, 128) for form in ("sentiment", "distinct", "sort", "official")),
    *((form, n, 128) for form in ("sentiment", "views", "distinct") for n in (4096, 16384, 65536)),
    *(
        ("kept", n, 128) for n in (4096, 16384)
    ),  # with more rows it holds too much: that is its price
]
REPEATS = {256: 150, 1024: 25, 4096: 5, 16384: 2, 65536: 1}
SHOWN = {
    "sentiment": "labels of a sentiment set",
    "kept": "same, exponentials kept",
    "views": "one label per sample, two views",
    "distinct": "all labels distinct",
    "sort": "sort and logcumsumexp in PyTorch",
    "official": "published algorithm",
}
LARGEST = {"sort": 4096, "official": 1024}  # rows, beyond which a form takes too long or too much


def labels_of(form: str, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if form == "distinct":
        return torch.randn(n, generator=generator)
    if form == "views":
        return torch.randn(n // 2, generator=generator).repeat(2)
    return torch.randint(-15, 16, (n // 2,), generator=generator).repeat(2)


def by_sort(features: Tensor, labels: Tensor) -> Tensor:
    """The best plain PyTorch: sort by distance, logcumsumexp, and the last place of each distance;
    O(n^2) memory."""
    n = len(features)
    similarity = features @ features.T / TEMPERATURE
    off = ~torch.eye(n, dtype=torch.bool)
    similarity = similarity[off].view(n, n - 1)
    distance, order = (
        (labels[:, None] - labels).abs()[off].view(n, n - 1).sort(dim=1, descending=True)
    )
    last = torch.searchsorted(-distance, -distance, right=True) - 1
    denominator = similarity.gather(1, order).logcumsumexp(1).gather(1, last)
    return (denominator.sum() - similarity.sum()) / (n * (n - 1))


def by_columns(features: Tensor, labels: Tensor) -> Tensor:
    """The published algorithm of Rank-N-Contrast, restated: one masked sum per column; O(n^3) time
    and memory."""
    n = len(features)
    off = ~torch.eye(n, dtype=torch.bool)
    distance = (labels[:, None] - labels).abs()[off].view(n, n - 1)
    similarity = features @ features.T / TEMPERATURE
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    exponential = similarity.exp()[off].view(n, n - 1)
    similarity = similarity[off].view(n, n - 1)
    loss = features.new_zeros(())
    for k in range(n - 1):
        candidate = (distance >= distance[:, k : k + 1]).float()
        loss = loss - (similarity[:, k] - (candidate * exponential).sum(1).log()).sum() / (
            n * (n - 1)
        )
    return loss


def forms(features: Tensor) -> dict[str, Callable[[], None]]:
    """Name -> one forward and backward."""
    n = len(features)

    def run(loss: Callable[[Tensor, Tensor], Tensor], kind: str) -> Callable[[], None]:
        labels = labels_of(kind, n)

        def once() -> None:
            features.grad = None
            loss(features, labels).backward()

        return once

    def fused(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, y: fused_supcr(x, y, TEMPERATURE, **options)

    return {
        "sentiment": run(fused(), "sentiment"),
        "kept": run(fused(keep_exponentials=True), "sentiment"),
        "views": run(fused(), "views"),
        "distinct": run(fused(), "distinct"),
        "sort": run(by_sort, "sentiment"),
        "official": run(by_columns, "sentiment"),
    }


def floor(features: Tensor, share: int = 1) -> Callable[[], None]:
    """The three products of every ``share``-th block of rows."""
    rows = features.detach()
    gradient, strip = torch.zeros_like(rows), torch.randn(min(512, len(rows)), len(rows))
    products, part = torch.empty_like(strip), torch.empty_like(rows[:512])

    def once() -> None:
        for begin in range(0, len(rows), 512 * share):
            block = rows[begin : begin + 512]
            torch.mm(block, rows.T, out=products)
            torch.mm(strip, rows, out=part)
            gradient.addmm_(strip.T, block)

    return once


def inputs(n: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(
        torch.randn(n, width, generator=generator), dim=1
    ).requires_grad_()


def seconds(work: Callable[[], None]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def time_cell(n: int, width: int) -> dict[str, float]:
    """Least CPU seconds of each form, and of the floor in turn with them."""
    warm_up(width)
    features = inputs(n, width)
    cells = {"floor": floor(features)} | {
        form: work for form, work in forms(features).items() if n <= LARGEST.get(form, n)
    }
    least = dict.fromkeys(cells, float("inf"))
    for repeat in range(REPEATS[n]):
        for form, work in cells.items():
            if repeat < (1 if form == "official" else 5 if form == "sort" else REPEATS[n]):
                least[form] = min(least[form], seconds(work))
    return least


def memory_cell(form: str, n: int, width: int) -> dict[str, float]:
    """Growth of the process's peak in MB, CPU seconds, and those of the floor, from an eighth of
    it."""
    warm_up(width)
    features = inputs(n, width)
    work = forms(features)[form]
    share = max(1, n // 8192)
    products = floor(features, share)
    of_floor = [seconds(products) * share]
    Path("/proc/self/clear_refs").write_text("5")  # peak := present
    before = status("VmRSS")
    spent = seconds(work)
    peak = status("VmHWM")
    of_floor.append(seconds(products) * share)
    return {"mb": (peak - before) / 1024, "seconds": spent, "floor": min(of_floor)}


def warm_up(width: int) -> None:
    """Compile the loops, or read them from numba's cache, with rows too few to leave memory for
    later."""
    torch.set_num_threads(1)
    for path in ("buckets", "scan"):
        fused_supcr(inputs(32, width), torch.arange(32), TEMPERATURE, path=path).backward()


def status(name: str) -> int:
    """A line of the process's status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def step_cell() -> dict[str, float]:
    """Milliseconds of an HSCL training step on synthetic MOSI-like batches of 128, and of its
    contrastive losses."""
    from core.batch import Utterances
    from core.losses.supcr import SupCR
    from core.model import DataSpec
    from core.models.hscl import HSCL

    torch.set_num_threads(1)
    widths = {"text": 64, "audio": 5, "vision": 20}
    generator = torch.Generator().manual_seed(0)
    frames = {m: torch.randn(128, 50, d, generator=generator) for m, d in widths.items()}
    mask = {m: torch.ones(128, 50, dtype=torch.bool) for m in widths}
    label = torch.randint(-15, 16, (128,), generator=generator) * 0.2
    batch = Utterances(
        torch.arange(128),
        torch.ones(128),
        1 / 128,
        label=label,
        frames=frames,
        mask=mask,
        present=mask,
    )
    found: dict[str, float] = {}
    for fused in (False, True):
        torch.manual_seed(0)
        model = HSCL(HSCL.Config(), DataSpec("sentiment", widths, label_resolution=0.2))
        assert isinstance(model.draw, SupCR)
        model.draw.fused = fused
        whole, part = [], []
        for _ in range(4):
            start = time.thread_time()
            output = model(batch)
            rows = {
                name: x.detach().requires_grad_()
                for name, x in model.global_batch_rows(output).items()
            }
            begin = time.thread_time()
            torch.stack(
                list(model.global_batch_losses(rows, batch.label, batch.weight).values())
            ).sum().backward()
            part.append(time.thread_time() - begin)
            gradients = [rows[name].grad for name in rows]
            task = torch.stack(list(model.losses(output, batch).values())).sum()
            torch.autograd.backward(
                [task, *model.global_batch_rows(output).values()], [None, *gradients]
            )
            whole.append(time.thread_time() - start)
        name = "fused" if fused else "definition"
        found |= {f"{name} step ms": 1e3 * min(whole), f"{name} loss ms": 1e3 * min(part)}
    return found


def gpu_cell() -> dict[str, Any]:
    """Milliseconds of forward and backward on the GPU, and whether two runs give the same bits."""
    if not torch.cuda.is_available():
        return {"gpu": None}
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    for n, width in ((n, width) for n in (1024, 4096, 16384, 65536) for width in (128, 256)):
        features = inputs(n, width).detach().cuda().requires_grad_()
        labels = labels_of("sentiment", n).cuda()
        for fast in (False, True):
            gradients: list[Any] = []
            for _ in range(3):
                features.grad = None
                fused_supcr(features, labels, TEMPERATURE, fast=fast).backward()
                gradients.append(features.grad)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(10):
                fused_supcr(features, labels, TEMPERATURE, fast=fast).backward()
            end.record()
            torch.cuda.synchronize()
            found[f"{n} {width} {'fast' if fast else 'exact'}"] = {
                "ms": start.elapsed_time(end) / 10,
                "same bits": bool((gradients[1] == gradients[2]).all()),
            }
    return found


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["time"]:
        print(json.dumps(time_cell(int(arguments[1]), int(arguments[2]))))
    elif arguments[:1] == ["memory"]:
        print(json.dumps(memory_cell(arguments[1], int(arguments[2]), int(arguments[3]))))
    elif arguments in (["step"], ["gpu"]):
        print(json.dumps(step_cell() if arguments == ["step"] else gpu_cell()))
    else:
        everything()


def everything() -> None:
    wanted = [f"time {n} {width}" for n, width in TIMES] + ["step", "gpu"]
    wanted += [f"memory {form} {n} {width}" for form, n, width in MEMORY]
    results = (
        json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"cells": {}}
    )
    for cell in wanted:
        if cell not in results["cells"]:
            command = [sys.executable, __file__, *cell.split()]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results["cells"][cell] = json.loads(output.splitlines()[-1])
            if cell == "gpu" and results["cells"][cell]["gpu"] is None:
                results["note"] = (
                    "No GPU was there: the Triton kernels were interpreted and compiled, never timed."
                )
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(
                json.dumps(results | provenance(), indent=1) + "\n", encoding="utf-8"
            )
            print(cell, results["cells"][cell], file=sys.stderr, flush=True)
    said = table(results["cells"])
    paste(said, "supcr", ROOT / "docs" / "results.md")
    print(said)


def table(cells: dict[str, dict[str, float]]) -> str:
    """What the page says of the cells."""
    lines = [
        "Contrastive loss (SupCR), forward and backward in float32: CPU seconds of one thread as a multiple of the",
        "three n×n×D matrix products that it cannot do without, measured in the same run (`benchmarks/supcr.py`,",
        "machine and versions in its results):",
        "",
        "| n | D | " + " | ".join(SHOWN.values()) + " |",
        "|---" * (2 + len(SHOWN)) + "|",
    ]
    for n, width in TIMES:
        cell = cells[f"time {n} {width}"]
        known = {form: cell[form] / cell["floor"] for form in SHOWN if form in cell}
        ratios = [
            f"{known[form]:{'.2f' if known[form] < 10 else '.3g'}}" if form in known else ""
            for form in SHOWN
        ]
        lines.append(f"| {n:,} | {width} | " + " | ".join(ratios) + " |")
    sizes = sorted({n for _, n, _ in MEMORY})
    header = [f"MB, n = {n:,}" for n in sizes] + [f"ns / n², n = {n:,}" for n in sizes if n >= 4096]
    lines += [
        "",
        "What the peak of memory grows by over the inputs, and how time grows with n, at D = 128:",
        "",
        "| | " + " | ".join([*header, "most / least"]) + " |",
        "|---" * (2 + len(header)) + "|",
    ]
    for form, title in SHOWN.items():
        measured = {
            n: cells[f"memory {form} {n} {width}"] for kind, n, width in MEMORY if kind == form
        }
        growth = {n: 1e9 * cell["seconds"] / n**2 for n, cell in measured.items() if n >= 4096}
        row = [
            f"{measured[n]['mb']:,.{1 if measured[n]['mb'] < 10 else 0}f}" if n in measured else ""
            for n in sizes
        ]
        row += [f"{growth[n]:.1f}" if n in growth else "" for n in sizes if n >= 4096]
        row += [f"{max(growth.values()) / min(growth.values()):.2f}" if len(growth) > 1 else ""]
        lines.append(f"| {title} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", _of_step(cells["step"]), *_of_gpu(cells["gpu"])])


def _of_step(step: dict[str, float]) -> str:
    whole, part = (
        {kind: step[f"{kind} {what} ms"] for kind in ("definition", "fused")}
        for what in ("step", "loss")
    )
    return (
        f"In a training step of HSCL with 128 samples the contrastive losses take {part['definition']:,.0f} of "
        f"{whole['definition']:,.0f} ms by\ntheir definition ({part['definition'] / whole['definition']:.0%}), and "
        f"{part['fused']:.1f} of {whole['fused']:,.0f} ms fused ({part['fused'] / whole['fused']:.1%})."
    )


def _of_gpu(gpu: dict[str, Any]) -> list[str]:
    if gpu["gpu"] is None:
        return ["The Triton kernels were interpreted and compiled; no GPU was there to time them."]
    lines = [
        "",
        f"On one {gpu['gpu']}:",
        "",
        "| n, D, mode | ms | same bits again |",
        "|---|---|---|",
    ]
    cells = {name: cell for name, cell in gpu.items() if name != "gpu"}
    return [
        *lines,
        *(f"| {name} | {cell['ms']:.3g} | {cell['same bits']} |" for name, cell in cells.items()),
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
