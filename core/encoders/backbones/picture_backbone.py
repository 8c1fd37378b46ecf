"""Encoders of pictures that others trained (ViT, DINOv2, CLIP's, ResNet): each picture of a clip
becomes one frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.dropout import masks_of_parts
from core.encoders.backbones.pooling import Pool

PLAIN = (0.5, 0.5, 0.5)  # mean and deviation of the three colours, where nothing is said


class PictureReader(nn.Module):
    """What comes before an encoder of pictures, as its image processor has it: the size, and mean and
    deviation of each colour. Pictures are square, so nothing is cut off.

    Args:
        preparation: its image processor.
    """

    mean: Tensor  # (3, 1, 1)
    deviation: Tensor

    def __init__(self, backbone: Any, preparation: Any, side: int):
        super().__init__()
        self.stored_side = side
        self.side = _side_of(preparation, getattr(backbone.config, "image_size", side))
        does_rescale = bool(getattr(preparation, "do_rescale", True))
        self.factor = float(preparation.rescale_factor) if does_rescale else 1.0
        does_normalise = bool(getattr(preparation, "do_normalize", True))
        mean = getattr(preparation, "image_mean", None) or PLAIN
        deviation = getattr(preparation, "image_std", None) or PLAIN
        if not does_normalise:
            mean, deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        for name, colours in (("mean", mean), ("deviation", deviation)):
            values = torch.tensor(colours, dtype=torch.float32, device="cpu")[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, side, side) float32 from (N, 3 * stored side * stored side) uint8."""
        pixels = pictures.view(len(pictures), 3, self.stored_side, self.stored_side).float()
        if self.side != self.stored_side:
            size = (self.side, self.side)
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return (pixels * self.factor - self.mean) / self.deviation


def encode_pictures(
    backbone: Any,
    reader: PictureReader,
    pool: Pool,
    frames: Tensor,
    mask: Tensor,
    *,
    frozen: bool,
) -> Tensor:
    """(B, T, width), zero where there is no picture, of pictures (B, T, D) and their mask (B, T).

    Pictures that exist are encoded, and no padding; of a batch without any the first place is, and
    counts for nothing, so that all ranks do the same.
    """
    chosen = mask.clone()
    chosen[0, 0] |= ~mask.any()
    sample, place = chosen.nonzero(as_tuple=True)  # (N,)
    with masks_of_parts(sample, place):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            hidden = backbone(reader(frames[sample, place])).last_hidden_state
        if hidden.ndim == 4:  # of convolutions: (N, width, height, width of the map)
            hidden = hidden.flatten(2).transpose(1, 2)
        everything = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        pooled = pool(hidden, everything)  # (N, width)
    encoded = pooled.new_zeros((*mask.shape, pooled.shape[1]))
    return encoded.index_put((sample, place), pooled) * mask[..., None]


def _side_of(preparation: Any, of_model: Any) -> int:
    """Pixels of a side that the encoder is shown."""
    for name in ("crop_size", "size"):
        stated: Any = getattr(preparation, name, None)
        is_used = name == "size" or bool(getattr(preparation, "do_center_crop", False))
        if stated is None or not is_used:
            continue
        for key in ("height", "shortest_edge"):
            found = stated.get(key) if isinstance(stated, dict) else getattr(stated, key, None)
            if found:
                return int(found)
    return int(of_model[0] if isinstance(of_model, list | tuple) else of_model)
