"""``--vision mediapipe:FILE``: what MediaPipe's face landmarker says of a face, by a ``.task`` file that
holds its models.

A frame is: whether there is a face; how the head is turned and where it is; 52 blendshapes, which say
how far brows, eyes, cheeks, jaw and mouth are from rest; how fast all of these change, in a second.
Where no face is found all are 0. A clip without any is missing the modality. Every picture is looked
at by itself, so a frame does not depend on the pictures before it, but for the speeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core.command import Refused
from core.file_access.regular_files import read_regular_file
from core.files import sha256_of_bytes
from data_shards.extract.extractors.face68 import NO_FACE
from data_shards.extract.extractors.protocol import Missing, Picture
from data_shards.extract.recipe import ExtractorRecord, Option

VERSION = "1"
POSE = 6  # yaw, pitch and roll in radians; right, up and towards the camera in decimetres
BLENDSHAPES = 52
MOVING = POSE + BLENDSHAPES  # numbers of a frame whose speed is one, too
WIDTH = 1 + 2 * MOVING
CENTIMETRES = 10.0  # in a decimetre, so that places are of the size of the other numbers
LARGEST_MODEL = 256 << 20  # bytes of a .task file
LICENCE = "MediaPipe: Apache-2.0; see the model's card"


class FaceMesh:
    """Frames of the one face of a clip that the landmarker is surest of.

    Args:
        open_landmarker: a new landmarker, which must be closed: it has threads of its own.
        image: makes the library's image of pixels (H, W, 3).
    """

    def __init__(
        self,
        record: ExtractorRecord,
        open_landmarker: Callable[[], Any],
        image: Callable[[np.ndarray], Any],
        longest_side: int,
    ):
        self.record = record
        self.longest_side = longest_side
        self._open_landmarker = open_landmarker
        self._image = image

    def frames(self, pictures: Iterator[Picture]) -> np.ndarray:
        """Features (T, 117) float32; see ``PictureExtractor``."""
        rows = []
        before: np.ndarray | None = None
        with self._open_landmarker() as landmarker:
            for now in self._described(pictures, landmarker):
                rows.append(self._row(now, before))
                before = now
        features = np.asarray(rows, np.float32).reshape(-1, WIDTH)
        if not features[:, 0].any():
            raise Missing(NO_FACE)
        return features

    def _described(
        self, pictures: Iterator[Picture], landmarker: Any
    ) -> Iterator[np.ndarray | None]:
        """Pose and blendshapes (58,) float64 of each picture; None where no face is found."""
        number, now = -1, None
        for picture in pictures:
            if picture.number != number:  # otherwise the same picture, shown for longer
                number = picture.number
                image = self._image(np.ascontiguousarray(picture.pixels))
                now = _pose_and_shapes(landmarker.detect(image))
            yield now

    def _row(self, now: np.ndarray | None, before: np.ndarray | None) -> np.ndarray:
        """A frame (117,)."""
        row = np.zeros(WIDTH, np.float32)
        if now is not None:
            row[0] = 1.0
            row[1 : 1 + MOVING] = now
            if before is not None:
                row[1 + MOVING :] = (now - before) * self.record.frame_rate
        return row


def _pose_and_shapes(found: Any) -> np.ndarray | None:
    """What is kept of the landmarker's answer for one picture."""
    if not found.facial_transformation_matrixes:
        return None
    pose = pose_of(np.asarray(found.facial_transformation_matrixes[0], np.float64))
    shapes = [shape.score for shape in found.face_blendshapes[0]]
    return np.concatenate([pose, shapes])


def pose_of(matrix: np.ndarray) -> np.ndarray:
    """Yaw (to the right of the picture), pitch (up), roll (counter-clockwise), and the place, (6,).

    Args:
        matrix: (4, 4); it takes a head in its own axes (left of the head, up, out of the face) to
            where the camera sees it, in centimetres.
    """
    across, outwards = matrix[:3, 0], matrix[:3, 2]
    yaw = np.arctan2(outwards[0], outwards[2])
    pitch = np.arctan2(outwards[1], np.hypot(outwards[0], outwards[2]))
    roll = np.arctan2(across[1], across[0])
    return np.array([yaw, pitch, roll, *(matrix[:3, 3] / CENTIMETRES)])


def build(modality: str, options: Mapping[str, Option]) -> FaceMesh:
    """The extractor.

    Raises:
        Refused: the package is not there, or the file is no landmarker with blendshapes.
    """
    path = Path(str(options["path"]))
    asked_for = f"--{modality} mediapipe:{path}"
    try:
        model = read_regular_file(path, LARGEST_MODEL)
    except FileNotFoundError:
        raise Refused(
            f"{asked_for}: no such file; give MediaPipe's face_landmarker.task, from its page of models"
        ) from None
    version, open_landmarker, image = _landmarker(model, asked_for)
    record = ExtractorRecord(
        modality=modality,
        name="mediapipe",
        version=f"{VERSION} mediapipe {version}",
        options=dict(options),
        width=WIDTH,
        frame_rate=float(options["fps"]),
        licence=LICENCE,
        checksum=sha256_of_bytes(model),
    )
    return FaceMesh(record, open_landmarker, image, int(options["longest_side"]))


def _landmarker(
    model: bytes, asked_for: str
) -> tuple[str, Callable[[], Any], Callable[[np.ndarray], Any]]:
    """The version of the library, what opens a landmarker, and what makes an image of pixels."""
    try:
        import mediapipe
        from mediapipe.tasks import python as tasks
        from mediapipe.tasks.python import vision
    except ImportError as error:
        raise Refused(
            f"{asked_for} needs the package mediapipe with what it needs itself ({error}); "
            "install it: pip install 'concord-train[mediapipe]'"
        ) from None
    wanted = vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_buffer=model),
        running_mode=vision.RunningMode.IMAGE,
        num_faces=1,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    open_landmarker = partial(vision.FaceLandmarker.create_from_options, wanted)
    try:
        with open_landmarker():
            pass  # refused now rather than at the first clip
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(
            f"{asked_for}: MediaPipe takes it for no face landmarker with blendshapes: {reason}"
        ) from None

    def image(pixels: np.ndarray) -> Any:
        return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)

    return str(mediapipe.__version__), open_landmarker, image
