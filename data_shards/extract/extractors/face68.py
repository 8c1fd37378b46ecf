"""``--vision face68``: a face is found and followed, and 68 landmarks are put on it, by dlib.

A frame is: whether there is a face; pose and measures (``face_measures.py``); how fast they change,
in a second; the normalised landmarks. Where no face is found all are 0. A clip without any is
missing the modality.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np

from core.command import Refused
from core.files import sha256_of_file
from data_shards.extract.extractors.face_measures import MEASURES, POSE, WIDTH, describe
from data_shards.extract.extractors.protocol import Missing, Picture
from data_shards.extract.recipe import ExtractorRecord, Option

VERSION = "1"
MODEL_PACKAGE = "face-recognition-models"
MODEL_FILE = "shape_predictor_68_face_landmarks.dat"
LICENCE = "dlib: BSL-1.0; landmarks trained on iBUG 300-W, no commercial use"
NO_FACE = "no face"
MOVING = len(POSE) + len(MEASURES)  # numbers of a frame whose speed is one, too
JUMP = 0.35  # of the face's size: landmarks that move or grow by more between two frames are lost
INSTALL = "install them: pip install 'concord-train[clips]'"


class FaceTracker:
    """Landmarks of the one face of a clip: the largest at first, then the one that goes on.

    A face is searched for in every ``detect_every``-th picture, and three times as often while
    there is none. In between the landmarks of a picture say where to look in the next.
    """

    def __init__(self, detector: Any, predictor: Any, rectangle: Any, detect_every: int):
        self._detector = detector
        self._predictor = predictor
        self._rectangle = rectangle
        self._detect_every = detect_every
        self.begin()

    def begin(self) -> None:
        """Forget the clip before."""
        self._until_search = 0
        self._box: np.ndarray | None = None  # left, top, right, bottom
        self._number = -1
        self._landmarks: np.ndarray | None = None

    def find(self, picture: Picture) -> np.ndarray | None:
        """Landmarks (68, 2) float64 in pixels; None where no face is found."""
        if picture.number == self._number:  # the same picture, shown for longer
            return self._landmarks
        self._number = picture.number
        grey = _grey(picture.pixels)
        if self._until_search <= 0:
            self._box = self._search(grey)
            self._landmarks = None
            has_face = self._box is not None
            self._until_search = self._detect_every if has_face else -(-self._detect_every // 3)
        self._until_search -= 1
        before = self._landmarks
        self._landmarks = None
        if self._box is not None:
            self._landmarks = self._place(grey, self._box)
            if before is not None and _has_jumped(before, self._landmarks):
                self._landmarks = None
                self._until_search = 0
            self._box = self._next_box()
        return self._landmarks

    def _search(self, grey: np.ndarray) -> np.ndarray | None:
        """The box of the face that overlaps most with the one before, or of the largest."""
        boxes = []
        for found in self._detector(grey, 0):
            boxes.append([found.left(), found.top(), found.right(), found.bottom()])
        if not boxes:
            return None
        before = self._box
        found_boxes = np.array(boxes, np.float64)
        size = _area(found_boxes)
        if before is not None:
            common = np.concatenate(
                [
                    np.maximum(found_boxes[:, :2], before[:2]),
                    np.minimum(found_boxes[:, 2:], before[2:]),
                ],
                axis=1,
            )
            overlap = _area(common)
            if overlap.max() > 0:
                size = overlap
        return found_boxes[int(np.argmax(size))]

    def _place(self, grey: np.ndarray, box: np.ndarray) -> np.ndarray:
        left, top, right, bottom = (int(round(edge)) for edge in box)
        shape = self._predictor(grey, self._rectangle(left, top, right, bottom))
        points = []
        for number in range(shape.num_parts):
            point = shape.part(number)
            points.append((point.x, point.y))
        return np.array(points, np.float64)

    def _next_box(self) -> np.ndarray | None:
        """Where the detector would see the face that has these landmarks: it takes in eyebrows and
        chin, and is a square."""
        if self._landmarks is None:
            return None
        low, high = self._landmarks.min(axis=0), self._landmarks.max(axis=0)
        middle = (low + high) / 2
        half = max(float((high - low).max()) / 2, 1.0)
        return np.concatenate([middle - half, middle + half])


class Face68:
    """Frames of a face."""

    def __init__(self, record: ExtractorRecord, tracker: FaceTracker, longest_side: int):
        self.record = record
        self.longest_side = longest_side
        self._tracker = tracker

    def frames(self, pictures: Iterator[Picture]) -> np.ndarray:
        """Features (T, 169) float32; see ``PictureExtractor``."""
        self._tracker.begin()
        rows = []
        before: np.ndarray | None = None
        for picture in pictures:
            landmarks = self._tracker.find(picture)
            row = np.zeros(WIDTH, np.float32)
            now = None
            if landmarks is not None:
                now = describe(landmarks, picture.pixels.shape[:2])
                row[0] = 1.0
                row[1 : 1 + MOVING] = now[:MOVING]
                row[1 + 2 * MOVING :] = now[MOVING:]
                if before is not None:
                    speed = (now[:MOVING] - before[:MOVING]) * self.record.frame_rate
                    row[1 + MOVING : 1 + 2 * MOVING] = speed
            before = now
            rows.append(row)
        features = np.asarray(rows, np.float32).reshape(-1, WIDTH)
        if not features[:, 0].any():
            raise Missing(NO_FACE)
        return features


def build(modality: str, options: Mapping[str, Option]) -> Face68:
    """The extractor; Refused without its packages."""
    version, checksum, tracker = open_tracker(f"--{modality} face68", int(options["detect_every"]))
    record = ExtractorRecord(
        modality=modality,
        name="face68",
        version=f"{VERSION} dlib {version}",
        options=dict(options),
        width=WIDTH,
        frame_rate=float(options["fps"]),
        licence=LICENCE,
        checksum=checksum,
    )
    return Face68(record, tracker, int(options["longest_side"]))


def open_tracker(asked_for: str, detect_every: int) -> tuple[str, str, FaceTracker]:
    """The version of dlib, the checksum of the landmarks' model, and a tracker with both."""
    try:
        import dlib
    except ImportError:
        raise Refused(
            f"{asked_for} needs the packages dlib-bin and {MODEL_PACKAGE}; {INSTALL}"
        ) from None
    path = _model_file(asked_for)
    tracker = FaceTracker(
        dlib.get_frontal_face_detector(),
        dlib.shape_predictor(str(path)),
        dlib.rectangle,
        detect_every,
    )
    return dlib.__version__, sha256_of_file(path), tracker


def _model_file(asked_for: str) -> Path:
    """Where the package has its model; importing it would need a package that Python has no more."""
    try:
        listed = files(MODEL_PACKAGE) or []
    except PackageNotFoundError:
        listed = []
    for entry in listed:
        path = Path(str(entry.locate()))
        if path.name == MODEL_FILE and path.is_file():
            return path
    raise Refused(
        f"{asked_for} needs the package {MODEL_PACKAGE}, with its {MODEL_FILE}; {INSTALL}"
    )


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Brightness (H, W) uint8 of pixels (H, W, 3), by the weights of ITU-R BT.601 in 256ths."""
    wide = pixels.astype(np.uint16)
    weighted = 77 * wide[..., 0] + 150 * wide[..., 1] + 29 * wide[..., 2]
    return (weighted >> 8).astype(np.uint8)


def _area(boxes: np.ndarray) -> np.ndarray:
    """Areas (n,) of boxes (n, 4); 0 for those that are empty."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return sides[:, 0] * sides[:, 1]


def _has_jumped(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether landmarks moved or grew more than a face does between two pictures."""
    size = max(float(np.ptp(before, axis=0).max()), 1.0)
    moved = float(np.hypot(*(now.mean(axis=0) - before.mean(axis=0))))
    grown = abs(float(np.ptp(now, axis=0).max()) - size)
    return max(moved, grown) > JUMP * size
