"""A sentiment model as a graph of ``torch.export``, for serving on a CPU without this project.

    program = torch.export.load("BUNDLE/program.pt2").module()
    score = program(frames, mask)  # (B,), or (B, classes) logits

``frames`` and ``mask`` are dicts by modality: (B, T, D) float32 or token ids (B, T) int64, and (B,
T) bool, True where a frame exists. B is at least 2 and each T at least 2: pad a lone sample. The
graph is checked before it is handed out, against the model, on lengths that it was not made with.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from core.batch import Utterances
from core.command import Refused
from core.model import DataSpec
from launch.predicting.scorer import longest_text, unlabelled

TOLERANCE = 1e-5  # largest difference from the model's own scores
LONGEST = 4096  # frames of a modality whose encoder has no limit of its own
# (samples, frames) of the batches that the graph is checked with
CHECKS = ((2, 2), (3, 17), (5, 64), (2, 131))

Tensors = dict[str, Tensor]


class Scoring(nn.Module):
    """A model as a function of tensors alone."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensors, mask: Tensors) -> Tensor:
        size = next(iter(mask.values())).shape[0]
        some = next(iter(mask.values()))
        batch = Utterances(
            index=torch.zeros_like(some[:, 0], dtype=torch.int64),
            weight=torch.ones_like(some[:, 0], dtype=torch.float32),
            loss_scale=1.0,
            label=torch.zeros_like(some[:, 0], dtype=torch.float32),
            frames=frames,
            mask=mask,
            present=mask,
        )
        score: Tensor = self.model(batch).score
        return score.reshape(size, *score.shape[1:])


def exported_program(name: str, model: Any, data: DataSpec) -> bytes:
    """The content of ``program.pt2``.

    Args:
        name: of the model, for messages.

    Raises:
        Refused: the model cannot become such a graph, or its graph gives other scores.
    """
    if data.task != "sentiment":
        raise Refused(f"--program: {name} is no sentiment model; leave it out")
    if data.media:
        raise Refused(
            f"--program: {name} encodes {' and '.join(data.media)} itself, of which no graph is made; "
            "leave it out"
        )
    scoring = Scoring(model.cpu().eval())
    frames, mask = _batch(model, data, 3, 9)
    shapes = _dynamic_shapes(model, frames)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                scoring, (frames, mask), dynamic_shapes=shapes, strict=False
            )
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
    except Exception as error:  # whatever an operation that has no graph raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise Refused(
            f"--program: {name} cannot become a graph ({reason}); leave it out: the bundle itself "
            "serves on a CPU as well"
        ) from None
    _check(name, model, data, buffer)
    return buffer.getvalue()


def _dynamic_shapes(model: Any, frames: Tensors) -> dict[str, Any]:
    """Any number of samples, and of frames of each modality for itself."""
    batch = Dim("samples", min=2, max=4096)
    of_frames, of_mask = {}, {}
    for name in frames:
        longest = (longest_text(model) or LONGEST) if name == "text" else LONGEST
        time = Dim(f"{name}_frames", min=2, max=longest)
        of_frames[name] = {0: batch, 1: time}
        of_mask[name] = {0: batch, 1: time}
    return {"frames": of_frames, "mask": of_mask}


def _check(name: str, model: Any, data: DataSpec, buffer: io.BytesIO) -> None:
    """Refused where the stored graph gives other scores than the model."""
    buffer.seek(0)
    program = torch.export.load(buffer).module()
    for size, length in CHECKS:
        frames, mask = _batch(model, data, size, length)
        with torch.no_grad():
            wanted = model(unlabelled(frames, mask, size)).score
            found = program(frames, mask)
        difference = float((found - wanted).abs().max())
        if not difference <= TOLERANCE:
            raise Refused(
                f"--program: the graph of {name} differs from the model by {difference:.2g} at "
                f"{length} frames; leave it out: the bundle itself serves on a CPU as well"
            )


def _batch(model: Any, data: DataSpec, size: int, length: int) -> tuple[Tensors, Tensors]:
    """Random samples; each but the first lacks some of its last frames, and one all of a
    modality."""
    generator = torch.Generator().manual_seed(size * 1000 + length)
    frames, mask = {}, {}
    limit = longest_text(model)
    for place, name in enumerate(model.inputs.modalities):
        longest = length + 3 * place
        if name == "text" and limit is not None:
            longest = min(longest, limit)
        shorter = torch.randint(1, longest + 1, (size,), generator=generator)
        shorter[0] = longest
        present = torch.arange(longest) < shorter[:, None]
        if place > 0:
            present[-1] = False
        width = data.features[name]
        if width:
            values = torch.randn(size, longest, width, generator=generator)
            frames[name] = values * present[..., None]
        else:
            ids = torch.randint(0, data.vocab_size, (size, longest), generator=generator)
            frames[name] = ids * present
        mask[name] = present
    return frames, mask
