"""What a checkpoint holds, by parameter name: out of an engine of any ZeRO stage and into one of
any other.

Tensors are called ``kind/name@start``: ``param``, ``exp_avg`` and ``exp_avg_sq`` are flat float32
ranges of a parameter that begin at ``start``, ``buffer`` is a whole buffer, and ``rng`` is a
generator's state of one rank.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from core import distributed
from core.dropout import hash64
from core.encoders.backbones.adaptation import bases_of, refuse_other_bases
from launch.checkpoints import zero
from launch.checkpoints.snapshot import HostMemory, Snapshot, finish_copies, take
from launch.config import ConfigError
from launch.engine.deepspeed_engine import Engine, gathered

RANGES = ("param", *zero.MOMENTS)  # kinds that are flat ranges of a parameter
_FLOAT_BYTES = 4  # of an element of weights that train, and of their moments
_KEY = re.compile(r"(?P<kind>param|exp_avg|exp_avg_sq|buffer|rng)/(?P<name>.+)@(?P<start>\d{1,18})")


def snapshots(engine: Engine, model: nn.Module, memory: HostMemory) -> dict[str, Snapshot]:
    """This rank's part of a checkpoint as it is now, by the files that it becomes: weights and
    buffers, and moments. Collective: stage 3 gathers parameters that do not train."""
    rank = distributed.rank()
    weights = {f"rng/{name}-{rank}@0": state for name, state in _generators().items()}
    moments: dict[str, Tensor] = {}
    weights_file, moments_file = _file_names(rank)
    frozen = _frozen_parameters(model)
    with gathered(list(frozen.values())):
        if rank == 0:
            for name, buffer in model.named_buffers():
                weights[f"buffer/{name}@0"] = buffer
            for name, parameter in frozen.items():
                weights[f"param/{name}@0"] = parameter.data.view(-1)
        if rank == 0 or engine.zero_optimization_stage() > 0:
            for piece in zero.pieces(engine, model):
                weights[f"param/{piece.name}@{piece.start}"] = piece.values
                for kind, moment in piece.moments.items():
                    moments[f"{kind}/{piece.name}@{piece.start}"] = moment
        files = {weights_file: weights}
        if moments:
            files[moments_file] = moments
        memory.finish_reserving()
        taken = {file: take(file, tensors, memory) for file, tensors in files.items()}
        finish_copies()
    return taken


def snapshot_sizes(engine: Engine, model: nn.Module) -> dict[str, int]:
    """Bytes of each snapshot that ``snapshots`` takes on this rank, by its file. Nothing is
    gathered and nothing made for it."""
    rank = distributed.rank()
    weights_file, moments_file = _file_names(rank)
    weights = sum(state.nbytes for state in _generators().values())
    if rank == 0:
        weights += sum(buffer.nbytes for buffer in model.buffers())
        for parameter in _frozen_parameters(model).values():
            weights += math.prod(zero.shape(parameter)) * parameter.element_size()
    trained = 0  # elements
    if rank == 0 or engine.zero_optimization_stage() > 0:
        trained = zero.owned_elements(engine, model)
    sizes = {weights_file: weights + _FLOAT_BYTES * trained}
    if trained:
        sizes[moments_file] = _FLOAT_BYTES * trained * len(zero.MOMENTS)
    return sizes


def _frozen_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that do not train, by name, but for those that a pretrained encoder's files
    hold."""
    of_bases = {name for base in bases_of(model).values() for name in base.names}
    frozen = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and name not in of_bases:
            frozen[name] = parameter
    return frozen


def _file_names(rank: int) -> tuple[str, str]:
    """Of a rank's weights and moments."""
    return f"rank-{rank:05d}.safetensors", f"moments-{rank:05d}.safetensors"


def _generators() -> dict[str, Tensor]:
    """State of the random generator of each kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def adam_step(engine: Engine, model: nn.Module) -> float:
    """Steps that Adam has taken. Parameters without a gradient are behind, so the most counts."""
    steps = [torch.as_tensor(piece.state["step"]) for piece in zero.pieces(engine, model)]
    if not steps:
        return 0.0
    return float(torch.stack([step.reshape(()).float() for step in steps]).max())


class StoredTensors:
    """The tensors of a checkpoint folder, read in the ranges that are asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[Path, Any] = {}
        # kind and name -> ranges of it: first element, key, file
        self._ranges: dict[tuple[str, str], list[tuple[int, str, Path]]] = defaultdict(list)
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self._files[path] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ConfigError(f"{path} is no safetensors file ({error})") from None
            for key in self._files[path].keys():  # noqa: SIM118
                found = _KEY.fullmatch(key)
                if found is None:
                    raise ConfigError(f"{path} has a tensor {key[:80]!r}, which no checkpoint has")
                is_range = found["kind"] in RANGES
                stored = self._files[path].get_slice(key)
                shape, dtype = stored.get_shape(), stored.get_dtype()
                if is_range and (len(shape) != 1 or dtype != "F32"):
                    raise ConfigError(
                        f"{path}: {key!r} is {dtype} of shape {shape}, and a flat range of F32 is "
                        "expected"
                    )
                ranges = self._ranges[found["kind"], found["name"]]
                ranges.append((int(found["start"]), key, path))
        for ranges in self._ranges.values():
            ranges.sort()

    def names(self, kind: str) -> list[str]:
        return [name for found, name in self._ranges if found == kind]

    def whole(self, kind: str, name: str) -> Tensor | None:
        """A tensor that was stored in one go, or None."""
        for _, key, path in self._ranges.get((kind, name), ()):
            return self._files[path].get_tensor(key)
        return None

    def fill(self, kind: str, name: str, start: int, out: Tensor) -> None:
        """Copy elements ``start`` to ``start + len(out)`` of a flat tensor into ``out``."""
        filled, end = 0, start + len(out)
        for first, key, path in self._ranges.get((kind, name), ()):
            stored = self._files[path].get_slice(key)
            low = max(first, start + filled)  # in order, so that none is counted twice
            high = min(first + stored.get_shape()[0], end)
            if low == start + filled and low < high:
                out[low - start : high - start].copy_(stored[low - first : high - first])
                filled += high - low
        if filled != len(out):
            raise ConfigError(
                f"checkpoint {self.folder} holds {filled} of the {len(out)} elements of {kind} "
                f"{name!r} from {start} on"
            )


def load_weights(
    folder: Path,
    shapes: dict[str, list[int]],
    model: nn.Module,
    bases: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Put a checkpoint's parameters and buffers into a model that DeepSpeed has not wrapped yet.

    Args:
        bases: the frozen encoders that are not in the checkpoint, which the model must have.
    """
    refuse_other_model(folder, shapes, model)
    refuse_other_bases(model, bases or {}, f"checkpoint {folder}")
    stored = StoredTensors(folder)
    elsewhere = _names_of(model, bases or {})
    for name, parameter in model.named_parameters():
        if name in elsewhere:
            continue
        stored.fill("param", name, 0, parameter.data.view(-1))
    for name, buffer in model.named_buffers():
        value = stored.whole("buffer", name)
        assert value is not None  # or it would have been refused
        buffer.copy_(value)


def _names_of(model: nn.Module, bases: Collection[str]) -> set[str]:
    """Parameters of these of the model's frozen encoders."""
    here = bases_of(model)
    return {parameter for name in bases for parameter in here[name].names}


def refuse_other_model(folder: Path, shapes: dict[str, list[int]], model: nn.Module) -> None:
    """ConfigError unless a checkpoint's parameters and buffers have the names and shapes of the
    model's, which may be a sketch (``core.sketch``)."""
    stored = StoredTensors(folder)
    buffers = dict(model.named_buffers())
    expected = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    different = []
    for name in dict.fromkeys([*shapes, *expected]):
        found, wanted = shapes.get(name, "none"), expected.get(name, "none")
        if found != wanted:
            different.append(f"{name} ({found} in the checkpoint, {wanted} in the model)")
    different += [f"buffer {name}" for name in set(stored.names("buffer")) ^ set(buffers)]
    if different:
        raise ConfigError(f"checkpoint {folder} is of another model: {', '.join(different[:5])}")
    for name, buffer in buffers.items():
        value = stored.whole("buffer", name)
        if value is None or (value.shape, value.dtype) != (buffer.shape, buffer.dtype):
            found = "nothing" if value is None else f"{value.dtype} of {list(value.shape)}"
            raise ConfigError(
                f"checkpoint {folder} is of another model: buffer {name} is {found} there, "
                f"{buffer.dtype} of {list(buffer.shape)} in the model"
            )


def load_moments(folder: Path, step: float, engine: Engine, model: nn.Module) -> None:
    """Put a checkpoint's Adam moments into an engine, whatever stage and number of ranks either
    has."""
    stored = StoredTensors(folder)
    for piece in zero.pieces(engine, model):
        for key, moments in piece.moments.items():
            stored.fill(key, piece.name, piece.start, moments)
        before = piece.state["step"]  # which lies where the optimiser counts
        piece.state["step"] = torch.full_like(torch.as_tensor(before), float(step))


def load_generators(folder: Path, ranks: int, seeds: Iterable[int]) -> None:
    """Random states, each rank its own; with another number of ranks than saved, fresh ones made of
    ``seeds``."""
    rank = distributed.rank()
    if ranks != distributed.world_size():
        torch.manual_seed(hash64(*seeds, rank) % 2**63)
        return
    stored = StoredTensors(folder)
    try:
        state = stored.whole("rng", f"cpu-{rank}")
        if state is not None:
            torch.set_rng_state(state)
        state = stored.whole("rng", f"cuda-{rank}")
        if state is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"checkpoint {folder} has no usable random state: {error}") from None
