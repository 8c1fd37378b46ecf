"""What tells whether a run is well: where its time goes, padding, memory, utilisation, and equal parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from core import distributed
from core.batch import Batch
from core.files import sha256_of_bytes
from launch.config import Run
from launch.monitor import control_plane

# Dense peak of one device in TFLOPS, from the makers' data sheets; matrix units, without sparsity. float32 is that of
# the plain units, because torch leaves TF32 off unless told.
PEAKS = {
    "H200": {"bf16": 989.0, "fp16": 989.0, "fp32": 67.0},
    "H100": {"bf16": 989.0, "fp16": 989.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5},
    "L40S": {"bf16": 362.0, "fp16": 362.0, "fp32": 91.6},
    "V100": {"fp16": 125.0, "fp32": 15.7},
}
MFU_FORMULA = (
    "FLOPs counted in one step / its samples * samples per second / (ranks * peak FLOPs per second)"
)


class Clock:
    """Seconds of the host by section of a step. On a GPU, one that waits for it also pays for those before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin a new step."""
        self.seconds, self._last = {}, time.perf_counter()

    def lap(self, section: str) -> None:
        """What was done since the last lap was ``section``."""
        now = time.perf_counter()
        self.seconds[section] = self.seconds.get(section, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def padding_share(micro_batches: list[Batch]) -> float:
    """Share of the frames in these micro-batches that only fill shorter samples up, over all modalities."""
    frames = 0
    real = torch.zeros((), dtype=torch.int64)
    for batch in micro_batches:
        for mask in getattr(batch, "mask", {}).values():  # graphs have none
            frames += mask.numel()
            real = real + mask.sum().cpu()
    return 1 - float(real) / frames if frames else 0.0


def memory() -> dict[str, float]:
    """Gigabytes: of this process, and the most that its GPU held."""
    used = {"memory_gb": psutil.Process().memory_info().rss / 1e9}
    if torch.cuda.is_available():
        used["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return used


class Utilisation:
    """Model FLOPs utilisation, on a GPU whose peak is known; nothing on a CPU, where the number would mean nothing.

    The FLOPs of matrix products and convolutions in forward and backward are counted in the first step of each epoch.
    Recomputed activations count as work, as do both passes of a cached contrast.
    """

    def __init__(self, run: Run):
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        peaks = next((peaks for device, peaks in PEAKS.items() if device in name), {})
        self.peak = peaks.get(run.precision, 0.0) * 1e12
        self.flops_per_sample = 0.0

    @contextmanager
    def counting(self, samples: int, *, first: bool) -> Iterator[None]:
        if not self.peak or not first:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        # each rank counts its own samples; all have as many as can be
        self.flops_per_sample = counter.get_total_flops() * distributed.world_size() / samples

    def report(self, samples_per_second: float) -> dict[str, Any]:
        if not self.flops_per_sample:
            return {}
        used = self.flops_per_sample * samples_per_second / (distributed.world_size() * self.peak)
        return {"mfu": used, "flops_per_sample": self.flops_per_sample, "mfu_formula": MFU_FORMULA}


def diverged(model: nn.Module) -> list[str]:
    """Sentences about ranks whose parameters or buffers differ from rank 0's; none when all are equal. Collective.

    Parameters that ZeRO 3 has cut up are nobody's copy and cannot differ.
    """
    sums = {name: _checksum(buffer) for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        if not hasattr(parameter, "ds_tensor"):
            sums[name] = _checksum(parameter)
    digests = control_plane.gather_text(sha256_of_bytes("".join(sums.values()).encode()))
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if not different:
        return []
    lines = "\n".join(f"{name}\t{value}" for name, value in sums.items())
    first = dict(line.rsplit("\t", 1) for line in control_plane.broadcast_text(lines).split("\n"))
    names = [name for name, value in sums.items() if first.get(name) != value]
    shown = names[:5] + ["..."] * (len(names) > 5)
    lists = control_plane.gather_text(", ".join(shown))
    return [f"rank {rank} has other values than rank 0 in {lists[rank]}" for rank in different]


def _checksum(tensor: Tensor) -> str:
    """Of the bits of a tensor; any change of one element changes it."""
    flat = tensor.detach().contiguous().view(-1).cpu()
    return sha256_of_bytes(flat.view(torch.uint8).numpy().tobytes())
