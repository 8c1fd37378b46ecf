"""What tells whether a run is well: where its time goes, padding, memory, utilisation, and equal parameters."""

from __future__ import annotations

import hashlib
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
    """Seconds of the host by part of the step. On a GPU, a part that waits for it also pays for those before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin a new step."""
        self.seconds, self._last = {}, time.perf_counter()

    def lap(self, part: str) -> None:
        """What was done since the last lap was ``part``."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def padding_share(parts: list[Batch]) -> float:
    """Share of the frames in these parts that only fill shorter samples up, over all modalities."""
    masks = [mask for part in parts for mask in getattr(part, "mask", {}).values()]
    places = sum(mask.numel() for mask in masks)
    return 1 - float(sum(mask.sum() for mask in masks)) / places if places else 0.0


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
        # each rank counts its own part; the ranks' parts are as equal as can be
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
    tensors: dict[str, Tensor] = dict(model.named_buffers())
    tensors |= {
        name: tensor
        for name, tensor in model.named_parameters()
        if not hasattr(tensor, "ds_tensor")
    }
    sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    said = control_plane.gather_text(hashlib.sha256("".join(sums.values()).encode()).hexdigest())
    different = [rank for rank, digest in enumerate(said) if digest != said[0]]
    if not different:
        return []
    names = control_plane.broadcast_text(
        "\n".join(f"{name}\t{value}" for name, value in sums.items())
    )
    first = dict(line.rsplit("\t", 1) for line in names.split("\n"))
    own = [name for name, value in sums.items() if first.get(name) != value]
    lists = control_plane.gather_text(", ".join(own[:5]) + (", ..." if len(own) > 5 else ""))
    return [f"rank {rank} has other values than rank 0 in {lists[rank]}" for rank in different]


def _checksum(tensor: Tensor) -> str:
    """Of the bits of a tensor; any change of one element changes it."""
    return hashlib.sha256(
        tensor.detach().contiguous().view(-1).cpu().view(torch.uint8).numpy().tobytes()
    ).hexdigest()
