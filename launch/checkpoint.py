"""Checkpoints that are whole or not there, hold no code, and serve any number of ranks and any ZeRO stage.

``run_dir/checkpoints/step-00000120/`` holds one safetensors file per rank (its pieces of parameters and Adam moments,
by parameter name and flat range; rank 0 adds the buffers), ``state.json`` (progress, stream position, shapes) and
``manifest.json`` (size and SHA-256 of each file). All of it is written into a folder of another name, flushed, and
renamed when every rank has finished; only then do ``last`` and ``best`` point to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core import distributed
from core.model import Model
from launch import zero
from launch.config import ConfigError

FORMAT = "concord-checkpoint"


class Checkpoints:
    """The checkpoints of one run directory. ``progress`` is shared with the loop and saved with each."""

    def __init__(self, run_dir: Path, progress: Any):
        self.folder = run_dir / "checkpoints"
        self.progress = progress

    def save(self, engine: Any, task: Any, *pointers: str) -> Path:
        """Write one checkpoint and let ``pointers`` ("last", "best") name it; nothing half-written ever does."""
        model: Model = engine.module.model
        name = f"step-{self.progress.step:08d}" + ("" if self.progress.epoch_steps else f"-epoch-{self.progress.epoch}")
        final, staging = self.folder / name, self.folder / f".{name}.partial"
        if distributed.rank() == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        _barrier()
        rank, ranks = distributed.rank(), distributed.world_size()
        _write_tensors(staging / f"rank-{rank:05d}.safetensors", _rank_tensors(engine, model, rank))
        if rank == 0:
            state = {
                "format": FORMAT,
                "version": 1,
                "ranks": ranks,
                "progress": asdict(self.progress),
                "task": task.state_dict(),
                "adam_step": _adam_step(engine, model),
                "shapes": {name: list(value.shape) for name, value in model.named_parameters()},
                "torch_rng": torch.get_rng_state().numpy().tobytes().hex(),
            }
            _write_text(staging / "state.json", json.dumps(state))
        _barrier()
        if rank == 0:
            files = {
                path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(staging.iterdir())
            }
            _write_text(staging / "manifest.json", json.dumps({"format": FORMAT, "files": files}, indent=1))
            _flush_folder(staging)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging, final)
            _flush_folder(self.folder)
            for pointer in pointers:
                _write_text(self.folder / f"{pointer}.partial", name)
                os.replace(self.folder / f"{pointer}.partial", self.folder / pointer)
            self._remove_unnamed()
        _barrier()
        return final

    def _remove_unnamed(self) -> None:
        kept = {pointer.read_text() for pointer in (self.folder / "last", self.folder / "best") if pointer.is_file()}
        for path in self.folder.glob("step-*"):
            if path.name not in kept:
                shutil.rmtree(path)

    def find(self, pointer: str) -> tuple[Path | None, list[str]]:
        """The checkpoint that ``pointer`` names, or for "last" the newest whole one, and what was wrong with others."""
        complaints: list[str] = []
        named = self.folder / pointer
        names = [named.read_text().strip()] if named.is_file() else []
        if pointer == "last":
            others = sorted((path.name for path in self.folder.glob("step-*")), reverse=True)
            names += [name for name in others if name not in names]
        for name in names:
            try:
                verify(self.folder / name)
            except ConfigError as error:
                complaints.append(str(error))
            else:
                return self.folder / name, complaints
        return None, complaints


def verify(folder: Path) -> None:
    """Check that every file of a checkpoint is there, whole and unchanged."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"checkpoint {folder} has no readable manifest.json ({error})") from None
    for name, said in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ConfigError(f"checkpoint {folder} lacks {name}")
        if path.stat().st_size != said["bytes"] or _sha256(path) != said["sha256"]:
            raise ConfigError(f"checkpoint file {path} is not what was written: size or SHA-256 differ")


def read_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put a checkpoint's parameters and buffers into a model that DeepSpeed has not wrapped yet."""
    shapes = read_state(folder)["shapes"]
    flat = {name: parameter.data.view(-1) for name, parameter in model.named_parameters()}
    if set(shapes) != set(flat) or any(list(p.shape) != shapes[n] for n, p in model.named_parameters()):
        differ = sorted(set(shapes) ^ set(flat)) or [
            f"{n} {shapes[n]} in the checkpoint, {list(p.shape)} in the model"
            for n, p in model.named_parameters()
            if list(p.shape) != shapes[n]
        ]
        raise ConfigError(f"checkpoint {folder} is of another model: {', '.join(differ[:5])}")
    buffers = dict(model.named_buffers())
    filled = dict.fromkeys(flat, 0)
    for kind, name, start, values in _stored(folder):
        if kind == "param":
            flat[name][start : start + len(values)] = values
            filled[name] += len(values)
        elif kind == "buffer":
            buffers[name].copy_(values)
    short = [name for name, count in filled.items() if count != flat[name].numel()]
    if short:
        raise ConfigError(f"checkpoint {folder} does not hold all of {', '.join(short[:5])}")


def load_moments(folder: Path, engine: Any, model: nn.Module) -> None:
    """Put a checkpoint's Adam moments into an engine, whatever stage and number of ranks either has."""
    state = read_state(folder)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    whole = {key: {} for key in zero.MOMENTS}  # type: dict[str, dict[str, Tensor]]
    for kind, name, start, values in _stored(folder):
        if kind in whole:
            target = whole[kind].setdefault(name, torch.zeros(sizes[name]))
            target[start : start + len(values)] = values
    for piece in zero.pieces(engine, model):
        for key, moments in piece.moments.items():
            moments.copy_(whole[key][piece.name][piece.start : piece.start + moments.numel()])
        piece.state["step"] = torch.as_tensor(float(state["adam_step"]))


def _stored(folder: Path):  # type: ignore[no-untyped-def]
    """(kind, parameter name, flat start, tensor) of everything in the rank files."""
    for path in sorted(folder.glob("rank-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    kind, rest = key.split("/", 1)
                    name, _, start = rest.rpartition("@")
                    yield kind, name, int(start), file.get_tensor(key)
        except SafetensorError as error:
            raise ConfigError(f"{path} is no safetensors file ({error})") from None


def _rank_tensors(engine: Any, model: nn.Module, rank: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if rank == 0:
        tensors |= {f"buffer/{name}@0": value for name, value in model.named_buffers()}
        frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
        tensors |= {f"param/{name}@0": value.data.view(-1) for name, value in frozen.items()}
    if rank == 0 or engine.zero_optimization_stage() > 0:
        for piece in zero.pieces(engine, model):
            tensors[f"param/{piece.name}@{piece.start}"] = piece.values
            tensors |= {f"{key}/{piece.name}@{piece.start}": value for key, value in piece.moments.items()}
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}


def _adam_step(engine: Any, model: nn.Module) -> float:
    return max((float(piece.state["step"]) for piece in zero.pieces(engine, model)), default=0.0)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
