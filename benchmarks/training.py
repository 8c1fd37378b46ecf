"""Training speed of the sentiment models on the shapes of MOSI, against the matrix products of a
step alone.

    python benchmarks/training.py [models=hscl,self_mm] [steps=3] [micro=8]

Shapes: text as frozen features of BERT's width, up to 50 tokens; unaligned sound and video, up to
375 and 500 frames; each clip has a share of these lengths, drawn evenly from a fifth to all. Batch
and options are those of the model's ``mosi`` recipe; a batch is padded to its own longest clip.
TFR-Net and TATE are trained with 30 % missing. CENet works inside a text encoder, so it has a small
one, trained; the others read the features as they are.

A step is the real one: DeepSpeed's engine, dropout tied to samples, losses, clipping, optimiser.
``micro`` bounds how many samples TFR-Net and TATE take at once, whose attention over all frames
would fill a laptop's memory.

Floor: seconds of the matrix products alone of the same padded step, forward and backward, as
counted by torch (without fused kernels, which it does not see), at the rate of a square float32
product, measured in the same process. Times are CPU seconds of the process, which has one thread,
so others on the machine count little.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import paste, read_words, refuse_others, run_command  # noqa: E402
from core.batch import Utterances  # noqa: E402
from core.encoders.text import TextConfig  # noqa: E402
from core.model import DataSpec  # noqa: E402
from data_shards.missing import Missing, apply_missing_mask  # noqa: E402
from launch.config import Run, load_recipe, recipe_names  # noqa: E402
from launch.engine.deepspeed_config import num_micro_batches  # noqa: E402
from launch.engine.deepspeed_engine import start  # noqa: E402
from launch.engine.processes import init_processes, shutdown_processes  # noqa: E402
from launch.loop import train_step  # noqa: E402
from launch.monitor.health import Clock, padding_share  # noqa: E402
from launch.reports.provenance import provenance  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402
from launch.session import unrecorded  # noqa: E402
from launch.tasks.build import build_model  # noqa: E402

RESULTS = ROOT / "benchmarks/results/training.json"
LONGEST = {"text": 50, "audio": 375, "vision": 500}
WIDTHS = {"text": 768, "audio": 5, "vision": 20}
# every model with a recipe for MOSI
MODELS = [name.split("/")[0] for name in recipe_names() if name.endswith("/mosi")]
SHORTEST = 0.2  # of the longest
CENTRES = 16
MISSING = {
    "tfr_net": Missing(protocol="frames", rate=0.3),
    "tate": Missing(protocol="modality", rate=0.3),
}
IN_PARTS = ("tfr_net", "tate")
TITLE = """Whole training steps on the shapes of MOSI (text as features of BERT's width, up to 50 tokens; sound and
video unaligned, up to 375 and 500 frames), samples per CPU second of one thread in float32, batch of the `mosi`
recipe, TFR-Net and TATE with 30 % missing. *Products alone*: what the matrix products of the same padded step would
allow at the rate of a square product, measured in the same process (`benchmarks/training.py`):"""


def data_spec() -> DataSpec:
    rng = np.random.default_rng(0)
    centres = {
        m: rng.normal(size=(CENTRES, WIDTHS[m])).astype(np.float32) for m in ("audio", "vision")
    }
    return DataSpec(
        task="sentiment",
        features=WIDTHS,
        max_length=LONGEST,
        label_resolution=0.2,
        num_train=1284,
        codebooks=centres,
    )


def make_parts(size: int, parts: int, missing: Missing) -> list[Utterances]:
    """A global batch of clips of uneven length, in equal parts."""
    rng = np.random.default_rng(0)
    share = rng.uniform(SHORTEST, 1, size)
    batches = []
    for chosen in np.array_split(np.arange(size), parts):
        frames, mask = {}, {}
        for m, longest in LONGEST.items():
            lengths = np.maximum(1, (share[chosen] * longest).astype(int))
            mask[m] = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])  # (B, T)
            frames[m] = torch.randn(*mask[m].shape, WIDTHS[m]) * mask[m][..., None]  # (B, T, D)
        batch = Utterances(
            index=torch.from_numpy(chosen),
            weight=torch.ones(len(chosen)),
            loss_scale=parts / size,
            label=torch.from_numpy(rng.integers(-15, 16, len(chosen)) / 5).float(),
            frames=frames,
            mask=mask,
            present=mask,
        )
        batches.append(apply_missing_mask(batch, missing, split="train", epoch=1))
    return batches


def the_run(name: str, micro: int) -> Run:
    run = load_recipe(f"{name}/mosi")
    text = TextConfig(source="small" if name == "cenet" else "given")
    groups = {group: one for group, one in run.optim.groups.items() if not group.startswith("text")}
    return replace(
        run,
        options=replace(run.options, text=text),
        optim=replace(run.optim, groups=groups),
        classes="given",
        metrics="mosi",
        missing=MISSING.get(name, Missing()),
        max_micro_batch=micro if name in IN_PARTS else 0,
    )


def product_rate(size: int = 1024, repeats: int = 8) -> float:
    """FLOP per CPU second of a square product, the best of several."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        left @ right
        times.append(time.process_time() - begin)
    return 2 * size**3 / min(times)


def products(step: Callable[[], Any]) -> int:
    """FLOP of the matrix products of a step. The fused attention and LSTM of the CPU are taken
    apart to be counted."""
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        FlopCounterMode(display=False) as count,
    ):
        step()
    return count.get_total_flops()


def measure(name: str, steps: int, micro: int, rate: float, folder: Path) -> dict[str, Any]:
    run = the_run(name, micro)
    torch.manual_seed(run.seed)
    model = build_model(run, data_spec())
    engine = start(model, run)
    model.begin_epoch(1)
    engine.train()
    size = run.batch_size
    # nothing but a loss that is not finite asks for the task
    session = unrecorded(run, None, engine, folder)  # type: ignore[arg-type]
    parts = make_parts(size, num_micro_batches(run), run.missing)
    clocks, seconds = [], []

    def step() -> None:
        clocks.append(Clock())
        train_step(session, list(parts), clocks[-1])
        session.progress.step += 1

    flop = products(step)
    for _ in range(steps):
        begin = time.process_time()
        step()
        seconds.append(time.process_time() - begin)
    median = statistics.median(seconds)
    floor = flop / rate
    return {
        "batch_size": size,
        "parts": len(parts),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "wall_seconds_by_part": clocks[-1].seconds,
        "samples_per_second": size / median,
        "gflop": flop / 1e9,
        "product_gflop_per_second": rate / 1e9,
        "floor_seconds": floor,
        "times_floor": median / floor,
        "padding": padding_share(list(parts)),
        "from": {**provenance(), "command": sys.argv[1:]},
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    header = ["model", "batch", "samples/s", "products alone", "times floor", "padding"]
    rows = []
    for name, result in results.items():
        rows.append(
            [
                name,
                result["batch_size"],
                f"{result['samples_per_second']:.1f}",
                f"{result['batch_size'] / result['floor_seconds']:.1f}",
                f"{result['times_floor']:.1f}",
                f"{result['padding']:.0%}",
            ]
        )
    return markdown_table(header, rows)


def main() -> None:
    defaults = {"models": ",".join(MODELS), "steps": "3", "micro": "8"}
    options, others = read_words(defaults)
    refuse_others(others, defaults)
    steps, micro = int(options["steps"]), int(options["micro"])
    models = options["models"].split(",")
    init_processes()
    rate = product_rate()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            results[name] = measure(name, steps, micro, rate, Path(folder))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name}: {results[name]['samples_per_second']:.1f} samples/s", flush=True)
    shutdown_processes()
    said = f"{TITLE}\n\n{table({name: results[name] for name in MODELS if name in results})}"
    paste(said, "training", ROOT / "docs/sentiment.md")
    print(said)


if __name__ == "__main__":
    sys.exit(run_command(main))
