"""How long a checkpoint keeps the training waiting, and what it asks of memory.

    python benchmarks/checkpoint.py [parameters=100] [repeats=3] [folder=DIR]

A model of so many million parameters with Adam's moments at stage 0, in one process; three numbers
of 4 bytes a parameter are written. Compared in one run, taking turns, each in a process of its own:

* in the foreground: every tensor copied, serialised to one string, written, flushed, hashed, read
  back and hashed again, while the training waits. That is how version 0.1 did it.
* beside the training: ``Checkpoints.begin`` waits for one copy in host memory; a thread writes,
  flushes, reads back, compares and hashes. ``whole`` is when the checkpoint can be gone on from.
  The memory was made ready beside the first steps, as in a run.

Memory is the growth of the process's peak during the save.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, paste, read_words, refuse_others, run_command  # noqa: E402
from core.files import sha256_of_file  # noqa: E402
from launch.checkpoints import zero  # noqa: E402
from launch.checkpoints.progress import Progress  # noqa: E402
from launch.checkpoints.store import Checkpoints  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402

RESULTS = ROOT / "benchmarks/results/checkpoint.json"
WAYS = {"foreground": "in the foreground", "beside": "beside the training"}
WIDTH = 1024  # a layer of WIDTH x WIDTH has about a million parameters
DEFAULTS = {"parameters": "100", "repeats": "3", "folder": "", "way": ""}


@dataclass
class Module:
    model: nn.Module


class Engine:
    """What a checkpoint asks of an engine at stage 0, without DeepSpeed."""

    torch_autocast_z0_gradscaler = None

    def __init__(self, millions: int, device: str = "cpu"):
        layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(millions)]
        model = nn.Sequential(*layers).to(device)
        self.module = Module(model)
        self.optimizer = torch.optim.AdamW(model.parameters())
        for piece in zero.pieces(self, model):  # type: ignore[arg-type]
            piece.moments["exp_avg"].fill_(0.1)

    def zero_optimization_stage(self) -> int:
        return 0


class Position:
    """A stream that stands still."""

    def state_dict(self) -> dict[str, Any]:
        return {}


Waits = tuple[float, float, float]


def in_foreground(engine: Engine, folder: Path) -> Waits:
    """Seconds that the training waits, those of them in which its thread computes, and seconds until
    the checkpoint is whole."""
    begin, computed = time.perf_counter(), time.thread_time()
    tensors = {}
    for piece in zero.pieces(engine, engine.module.model):  # type: ignore[arg-type]
        for kind, values in {"param": piece.values, **piece.moments}.items():
            tensors[f"{kind}/{piece.name}@0"] = values.detach().to("cpu", copy=True).contiguous()
    content = safetensors.torch.save(tensors)
    path = folder / "rank-00000.safetensors"
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if sha256_of_file(path) != hashlib.sha256(content).hexdigest():
        raise OSError(f"{path} does not read back as it was written")
    seconds = time.perf_counter() - begin
    return seconds, time.thread_time() - computed, seconds


def beside_training(engine: Engine, folder: Path) -> Waits:
    """The same of ``Checkpoints``, once the memory that a run reserves is there."""
    checkpoints = Checkpoints(folder, Progress(step=1, epoch_steps=1))
    checkpoints.reserve(engine)  # type: ignore[arg-type]
    checkpoints.memory.finish_reserving()
    begin, computed = time.perf_counter(), time.thread_time()
    checkpoints.begin(engine, Position(), "last", "best")  # type: ignore[arg-type]
    waited, computed = time.perf_counter() - begin, time.thread_time() - computed
    checkpoints.wait()
    return waited, computed, time.perf_counter() - begin


def measure(way: str, millions: int, folder: str) -> dict[str, float]:
    """One save in this process, whose peak of memory is measured."""
    engine = Engine(millions)
    gc.collect()
    before, cpu = peak_bytes(), time.process_time()
    save = {"foreground": in_foreground, "beside": beside_training}[way]
    with tempfile.TemporaryDirectory(dir=folder or None) as place:
        waited, computed, whole = save(engine, Path(place))
    return {
        "waited_seconds": waited,
        "waited_cpu_seconds": computed,
        "whole_seconds": whole,
        "cpu_seconds": time.process_time() - cpu,
        "added_bytes": peak_bytes() - before,
    }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(way: str, options: dict[str, str]) -> dict[str, float]:
    words = [f"{name}={value}" for name, value in options.items() if name != "way"]
    command = [sys.executable, __file__, f"way={way}", *words]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def table(results: dict[str, Any]) -> str:
    header = [
        "",
        "training waits, s",
        "of it computing",
        "whole after, s",
        "CPU in all, s",
        "memory added, MB",
    ]
    rows = []
    for way, name in WAYS.items():
        middle = {}
        for key in results[way][0]:
            middle[key] = statistics.median(one[key] for one in results[way])
        rows.append(
            [
                name,
                f"{middle['waited_seconds']:.2f}",
                f"{middle['waited_cpu_seconds']:.2f}",
                f"{middle['whole_seconds']:.2f}",
                f"{middle['cpu_seconds']:.2f}",
                f"{middle['added_bytes'] / 1e6:.0f}",
            ]
        )
    return markdown_table(header, rows)


def main() -> None:
    options, others = read_words(DEFAULTS)
    refuse_others(others, DEFAULTS)
    millions = int(options["parameters"])
    if options["way"]:
        print(json.dumps(measure(options["way"], millions, options["folder"])))
        return
    results: dict[str, Any] = {way: [] for way in WAYS}
    for _ in range(int(options["repeats"])):
        for way, found in results.items():
            found.append(in_own_process(way, options))
            print(f"{way}: {found[-1]}", file=sys.stderr, flush=True)
    size = 12 * millions * WIDTH**2 / 1e9
    record = {"million_parameters": millions, "gigabytes": size, **results, "from": made_by()}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    title = (
        f"A checkpoint of {size:.2f} GB (a model of {millions} million parameters with Adam's "
        f"moments), middle of {options['repeats']} (`benchmarks/checkpoint.py`):"
    )
    paste(f"{title}\n\n{table(results)}", "checkpoint", ROOT / "docs/scaling.md")


if __name__ == "__main__":
    sys.exit(run_command(main))
