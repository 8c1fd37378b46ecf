"""``--vision hf:FOLDER``: what any ``transformers`` encoder of images says of each picture: ViT,
DINOv2, CLIP's, ResNet.

By default of the face in it (``crop=face``), cut out as a square; a picture without one is all
zeros, and a clip without any face is missing the modality. ``crop=frame`` shows the whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from core.command import Refused
from core.encoders.pretrained import Source, load_image_preparation, load_model
from data_shards.extract.extractors.face68 import NO_FACE, FaceTracker, open_tracker
from data_shards.extract.extractors.model_folder import (
    checksum_of_model,
    library_version,
    model_source,
)
from data_shards.extract.extractors.protocol import Missing, Picture
from data_shards.extract.recipe import ExtractorRecord, Option
from data_shards.media.packed_frames import square_around

VERSION = "1"
CROPS = ("face", "frame")
SIZE = 224  # side of the first picture, which finds out the width


class ImageEncoder:
    """A pretrained encoder, its preparation, and who finds the face."""

    longest_side = 640

    def __init__(self, source: Source, tracker: FaceTracker | None):
        self._prepare = load_image_preparation(source)
        model = load_model(source).eval()
        self._encoder = getattr(model, "vision_model", model)  # of CLIP, the half that sees
        self._tracker = tracker
        self.width = len(self._encode(np.zeros((SIZE, SIZE, 3), np.uint8)))
        self.record: ExtractorRecord

    def frames(self, pictures: Iterator[Picture]) -> np.ndarray:
        """Features (T, D) float32; see ``PictureExtractor``."""
        if self._tracker is not None:
            self._tracker.begin()
        rows: list[np.ndarray] = []
        number = -1
        found_any = False
        for picture in pictures:
            if picture.number == number:  # the same picture, shown for longer
                rows.append(rows[-1])
                continue
            number = picture.number
            shown = self._shown(picture)
            found_any = found_any or shown is not None
            rows.append(np.zeros(self.width) if shown is None else self._encode(shown))
        if not found_any:
            raise Missing(NO_FACE)
        return np.asarray(rows, np.float32)

    def _shown(self, picture: Picture) -> np.ndarray | None:
        """What of the picture the encoder is to see; None where there is no face."""
        if self._tracker is None:
            return picture.pixels
        landmarks = self._tracker.find(picture)
        return None if landmarks is None else square_around(picture.pixels, landmarks)

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        """Features (D,): the encoder's pooled answer, or the mean over its patches."""
        prepared = self._prepare(
            images=[pixels], return_tensors="pt", input_data_format="channels_last"
        )
        with torch.inference_mode():
            answer: Any = self._encoder(prepared["pixel_values"])
        pooled = getattr(answer, "pooler_output", None)
        if pooled is None:
            pooled = answer.last_hidden_state.mean(dim=1)
        return pooled.float().numpy().reshape(-1)


def build(modality: str, options: Mapping[str, Option]) -> ImageEncoder:
    """The extractor; Refused or ValueError where the folder holds no such model."""
    crop = options["crop"]
    if crop not in CROPS:
        raise Refused(f"--{modality} hf: crop={crop}: it is one of {', '.join(CROPS)}")
    source = model_source(modality, "hf", options)
    assert source.folder is not None  # model_source has seen it
    version = library_version(VERSION)
    tracker = None
    if crop == "face":
        dlib_version, _, tracker = open_tracker(f"--{modality} hf with crop=face", 5)
        version = f"{version} dlib {dlib_version}"
    encoder = ImageEncoder(source, tracker)
    encoder.record = ExtractorRecord(
        modality=modality,
        name="hf",
        version=version,
        options=dict(options),
        width=encoder.width,
        frame_rate=float(options["fps"]),
        licence="see the model's card",
        checksum=checksum_of_model(source.folder),
    )
    return encoder
