"""What a GPU does with the system, in parts of their own, in less than eight minutes.

    python benchmarks/gpu.py out=gpu.jsonl [parts=steps,supcr,softmax,checkpoint,...] [seconds=90]
    python benchmarks/gpu.py out=rehearsal.jsonl rehearse=1     tiny sizes, on a CPU too

Each part runs in a process of its own with a limit of ``seconds``, and each of its results is a
line of ``out`` as soon as it is there: a machine that is taken away leaves what was measured. Needs
torch, DeepSpeed and this folder, and nothing of the network.

* steps: HSCL and Self-MM on MOSI's unaligned shapes with an encoder of BERT's size: milliseconds of
  a step (median), samples per second, kernels, the share of the time in which the GPU is busy (union
  of the kernels' intervals), FLOP per second as a share of the device's peak, peak memory.
* supcr: forward and backward, exact and fast, for few labels, two views and distinct labels, against
  three square products of the same rows in float32, TF32 and bfloat16, in one process; kernels of a
  call, peak memory over the rows, and the first call's seconds.
* softmax: ICL, IAL and SupCon in linear memory against their definitions.
* checkpoint: seconds that the training waits for one of 100 million parameters, and until it is
  whole.
* start: seconds from the command to the imports' end.
* precision: validation scores of the demo in fp32, bf16 and fp16.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, read_words, refuse_others, run_command  # noqa: E402
from launch.config import ConfigError  # noqa: E402
from launch.monitor.health import PEAKS  # noqa: E402

PARTS = ("steps", "supcr", "softmax", "checkpoint", "start", "precision")
DEFAULTS = {
    "out": "gpu.jsonl",
    "parts": ",".join(PARTS),
    "seconds": "90",
    "rehearse": "0",
    "part": "",  # the one that this process is for
}
REPEATS, WARM_UP = 12, 4
SUPCR_SIZES = [(n, 128) for n in (512, 2048, 8192, 32768, 65536, 131072)]
SUPCR_SIZES += [(n, 256) for n in (8192, 65536)]
Result = dict[str, Any]


def steps(rehearse: bool) -> Iterator[Result]:
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    for name in ("hscl", "self_mm"):
        for precision in ("bf16", "fp32"):
            for size in (8,) if rehearse else (64, 512):
                yield _measure_step(name, precision, size, rehearse)
    shutdown_processes()


def _measure_step(name: str, precision: str, size: int, rehearse: bool) -> Result:
    from benchmarks.training import data_spec, make_parts
    from core.encoders.text import TextConfig
    from launch.config import load_recipe
    from launch.engine.deepspeed_engine import start
    from launch.loop import train_step
    from launch.monitor.health import Clock
    from launch.session import unrecorded
    from launch.tasks.build import build_model

    run = load_recipe(f"{name}/mosi")
    width, layers, heads = (24, 1, 2) if rehearse else (768, 12, 12)
    text = TextConfig(source="small", width=width, layers=layers, heads=heads)
    options = replace(run.options, text=text)
    run = replace(run, options=options, precision=precision, batch_size=size, max_micro_batch=0)  # type: ignore[arg-type]
    torch.manual_seed(run.seed)
    model = build_model(run, data_spec())
    engine = start(model, run)
    model.begin_epoch(1)
    engine.train()
    session = unrecorded(run, None, engine, Path("."))  # type: ignore[arg-type]
    parts = make_parts(size, 1, run.missing)
    if torch.cuda.is_available():
        parts = [part.pin_memory() for part in parts]

    def step() -> None:
        train_step(session, list(parts), Clock())
        session.progress.step += 1

    _forget_peak()
    seconds = _median_seconds(step, 2, warm_up=1) if rehearse else _median_seconds(step, REPEATS)
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    result = {
        "model": name,
        "precision": precision,
        "batch_size": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "zero_stage": engine.zero_optimization_stage(),
        "step_ms": 1000 * seconds,
        "samples_per_second": size / seconds,
        "flops_per_sample": flops / size,
        **_kernels_of(step, seconds),
        **_peak_memory(),
    }
    peak = _peak_of_device(precision)
    if peak:
        result["mfu"] = flops / seconds / peak
    return result


def _median_seconds(act: Callable[[], object], repeats: int, warm_up: int = WARM_UP) -> float:
    """Of one call, the device's work included."""
    for _ in range(warm_up):
        act()
    _synchronize()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        act()
        _synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _kernels_of(step: Callable[[], None], seconds: float) -> Result:
    """How many kernels a step starts, and which share of it the GPU works; nothing on a CPU."""
    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        _synchronize()
    intervals = []
    for event in trace.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and "Mem" not in event.name:
            intervals.append((event.time_range.start, event.time_range.end))
    busy, end = 0.0, 0.0
    for first, last in sorted(intervals):
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    busy_ms = busy / 1000
    return {"kernels": len(intervals), "busy_ms": busy_ms, "busy": busy_ms / (1000 * seconds)}


def supcr(rehearse: bool) -> Iterator[Result]:
    sizes = ((64, 16),) if rehearse else SUPCR_SIZES
    for n, width in sizes:
        rows = _unit_rows(n, width)
        floors = _floors(rows)
        for kind in ("sentiment", "views", "distinct"):
            for fast in (False, True):
                measured = _measure_supcr(rows, kind, fast)
                best = floors["bf16_products_ms" if fast else "fp32_products_ms"]
                times = measured["ms"] / best
                yield {"rows": n, "width": width, **measured, **floors, "times": times}


def _measure_supcr(rows: torch.Tensor, kind: str, fast: bool) -> Result:
    from benchmarks.supcr import TEMPERATURE, labels_of
    from core.kernels.supcr.op import fused_supcr

    labels = labels_of(kind, len(rows)).to(rows.device)

    def once() -> None:
        fused_supcr(rows, labels, TEMPERATURE, fast=fast).backward()

    begin = time.perf_counter()
    once()
    _synchronize()
    first = time.perf_counter() - begin
    rows.grad = None
    before = _allocated()
    _forget_peak()
    once()
    over_rows = _peak_memory().get("peak_gb", 0.0) - before
    seconds = _median_seconds(once, 10)
    kernels = _kernels_of(once, seconds)
    rows.grad = None
    return {
        "labels": kind,
        "fast": fast,
        "ms": 1000 * seconds,
        "first_call_seconds": first,
        "gb_over_rows": over_rows,
        **kernels,
    }


def _floors(rows: torch.Tensor) -> Result:
    """Milliseconds of the three products in each precision."""
    found = {}
    plain = rows.detach()
    for name, precision, operands in (
        ("fp32", "highest", plain),
        ("tf32", "high", plain),
        ("bf16", "highest", plain.bfloat16()),
    ):
        torch.set_float32_matmul_precision(precision)
        seconds = _median_seconds(lambda r=operands: _three_products(r), 10)  # type: ignore[misc]
        found[f"{name}_products_ms"] = 1000 * seconds
    torch.set_float32_matmul_precision("highest")
    return found


def softmax(rehearse: bool) -> Iterator[Result]:
    """Losses of n pairs, so of 2 n rows; the definition only where its matrices fit."""
    for pairs, width in ((32, 16),) if rehearse else ((1024, 128), (4096, 128), (65536, 128)):
        rows, joint = _unit_rows(2 * pairs, width), _unit_rows(2 * pairs, width).detach()
        for name in ("icl", "ial", "supcon"):
            for fused in (True, False) if pairs <= 4096 else (True,):
                loss = _softmax_loss(name, fused, rows, joint)
                _forget_peak()
                before = _allocated()
                seconds = _median_seconds(lambda f=loss: _backward(f()), 10)  # type: ignore[misc]
                over_rows = _peak_memory().get("peak_gb", 0.0) - before
                yield {
                    "loss": name,
                    "pairs": pairs,
                    "fused": fused,
                    "ms": 1000 * seconds,
                    "gb_over_rows": over_rows,
                }


def _softmax_loss(
    name: str, fused: bool, rows: torch.Tensor, joint: torch.Tensor
) -> Callable[[], torch.Tensor]:
    from core.losses.info_nce import ICL
    from core.losses.inter_modal import IAL
    from core.losses.supcon import SupCon

    left, right = rows.tensor_split(2)
    classes = torch.arange(len(rows), device=rows.device) % 16
    if name == "icl":
        icl = ICL(0.1, fused=fused)
        return lambda: icl(left, right)
    if name == "ial":
        ial = IAL(4.0, fused=fused)
        joint_left, joint_right = joint.tensor_split(2)
        return lambda: ial((left, right), (joint_left, joint_right))
    supcon = SupCon(0.1, fused=fused)
    return lambda: supcon(rows, classes)


def _unit_rows(n: int, width: int) -> torch.Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.nn.functional.normalize(torch.randn(n, width, device=device)).requires_grad_()


def _backward(loss: torch.Tensor) -> None:
    loss.backward()


def _three_products(rows: torch.Tensor, strip: int = 8192) -> None:
    """The products that similarities and both their gradients cost, in strips that fit."""
    with torch.no_grad():
        for part in rows.split(strip):
            similarity = part @ rows.T
            similarity @ rows
            similarity.T @ part


def checkpoint(rehearse: bool) -> Iterator[Result]:
    from benchmarks.checkpoint import Engine, Position
    from launch.checkpoints.progress import Progress
    from launch.checkpoints.store import Checkpoints

    millions = 1 if rehearse else 100
    engine = Engine(millions, "cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        progress = Progress(step=1, epoch_steps=1)
        checkpoints = Checkpoints(Path(folder), progress)
        begin = time.perf_counter()
        checkpoints.reserve(engine)  # type: ignore[arg-type]
        checkpoints.memory.finish_reserving()
        yield {"million_parameters": millions, "reserved_seconds": time.perf_counter() - begin}
        for number in range(3):
            progress.step += 1
            begin = time.perf_counter()
            checkpoints.begin(engine, Position(), "last", "best")  # type: ignore[arg-type]
            waited = time.perf_counter() - begin
            checkpoints.wait()
            whole = time.perf_counter() - begin
            yield {
                "million_parameters": millions,
                "number": number,
                "waited_seconds": waited,
                "whole_seconds": whole,
            }


def start(rehearse: bool) -> Iterator[Result]:
    for module in ("launch.train", "launch.loop", "deepspeed"):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
        yield {"import": module, "seconds": time.perf_counter() - begin}


def precision(rehearse: bool) -> Iterator[Result]:
    kinds = ("fp32", "bf16", "fp16") if torch.cuda.is_available() else ("fp32", "bf16")
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        raw = Path(folder) / "demo.pkl"
        _run(["data_shards.synthetic", str(raw)])
        _run(["data_shards.convert", str(raw), "--out", str(shards)])
        for kind in kinds:
            run_dir = Path(folder) / kind
            words = ["launch.train", "hscl/demo", f"data={shards}", f"run_dir={run_dir}"]
            words += [f"precision={kind}", f"epochs={1 if rehearse else 4}"]
            begin = time.perf_counter()
            _run(words)
            scores = json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))
            seconds = time.perf_counter() - begin
            yield {"precision": kind, "command_seconds": seconds, "valid": scores["valid"]}


def _run(words: list[str]) -> None:
    """A module of the project, as a command; what it says goes to standard error."""
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, stdout=sys.stderr)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> Result:
    if not torch.cuda.is_available():
        return {}
    return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def _allocated() -> float:
    return torch.cuda.memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def _peak_of_device(kind: str) -> float:
    """FLOP per second; 0 where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    found = next((peaks for device, peaks in PEAKS.items() if device in name), {})
    return found.get(kind, 0.0) * 1e12


MEASURE = {
    "steps": steps,
    "supcr": supcr,
    "softmax": softmax,
    "checkpoint": checkpoint,
    "start": start,
    "precision": precision,
}


def _append(out: Path, line: Result) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), file=sys.stderr, flush=True)


def main() -> None:
    options, others = read_words(DEFAULTS)
    refuse_others(others, DEFAULTS)
    out, rehearse = Path(options["out"]).absolute(), options["rehearse"] == "1"
    if options["part"]:
        for result in MEASURE[options["part"]](rehearse):
            _append(out, {"part": options["part"], **result})
        return
    if not (rehearse or torch.cuda.is_available()):
        raise ConfigError("no GPU here; rehearse=1 runs every part at a tiny size")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    _append(out, {"part": "machine", "device": device, "rehearsal": rehearse, "from": made_by()})
    for part in options["parts"].split(","):
        if part not in MEASURE:
            raise ConfigError(f"no part {part!r}; there are {', '.join(PARTS)}")
        words = [f"out={out}", f"rehearse={options['rehearse']}", f"part={part}"]
        begin = time.perf_counter()
        try:
            subprocess.run(
                [sys.executable, __file__, *words], check=True, timeout=float(options["seconds"])
            )
            ended = "done"
        except subprocess.TimeoutExpired:
            ended = "out of time"
        except subprocess.CalledProcessError as error:
            ended = f"exit code {error.returncode}"
        seconds = time.perf_counter() - begin
        _append(out, {"part": part, "ended": ended, "seconds": seconds})


if __name__ == "__main__":
    sys.exit(run_command(main))
