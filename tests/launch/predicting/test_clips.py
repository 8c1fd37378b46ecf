"""Clips scored by the recipe of the training data: a folder, a table, windows, files that are none."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import ENCRYPTED, brightening, face_at, tone, write_clip
from trained_models import changed_config, untrained_bundle

from data_shards.extract.extractors.registry import choose
from launch.predict import main as predict


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of transcripts and of sound as openSMILE describes it."""
    recipe = choose({"text": "given", "audio": "egemaps"}).recipe
    (sound,) = [record for record in recipe.extractors if record.modality == "audio"]
    folder = tmp_path_factory.mktemp("clips") / "bundle"
    return untrained_bundle(folder, widths={"audio": sound.width}, extraction=asdict(recipe))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    write_clip(folder / "täne.m4a", 1.5, sound=tone(1.5), has_pictures=False)
    (folder / "täne.txt").write_text("the film was great\n", encoding="utf-8")
    write_clip(folder / "quiet.m4a", 1.0, sound=tone(1.0, loudness=0.0), has_pictures=False)
    (folder / "broken.mp4").write_bytes(b"no clip at all")
    (folder / "notes.md").write_text("no clip either")
    return folder


def scored(words: list[str], out: Path) -> dict[str, dict[str, Any]]:
    assert predict([*words, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row for row in rows}


def test_each_clip_is_scored_or_its_reason_said(bundle: Path, clips: Path, tmp_path: Path):
    rows = scored([str(bundle), str(clips)], tmp_path / "o.jsonl")
    assert rows.keys() == {"täne", "quiet", "broken"}
    assert rows["täne"]["seen"] == ["text", "audio"]
    assert isinstance(rows["täne"]["score"], float)
    assert rows["quiet"]["score"] is None
    assert "audio: silent" in rows["quiet"]["warning"]
    assert rows["broken"]["score"] is None
    assert "text: no transcript" in rows["broken"]["warning"]
    alone = scored([str(bundle), str(clips / "täne.m4a")], tmp_path / "one.jsonl")
    assert alone["täne"]["score"] == pytest.approx(rows["täne"]["score"], abs=1e-5)


def upright(number: int) -> np.ndarray:
    return face_at(90 + number, 30)


def lying(number: int) -> np.ndarray:
    """What a camera on its side writes: a file says that its pictures are to be turned."""
    return np.rot90(upright(number), -1)


def write_face(path: Path, **changes: Any) -> Path:
    settings = {"pictures": upright, "fps": 10, "rate": 16_000} | changes
    return write_clip(path, 0.8, **settings)


def write_every_kind(folder: Path) -> None:
    whole = write_face(folder / "a face.mp4").read_bytes()
    (folder / "corrupt.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "circle.mp4").symlink_to("circle.mp4")
    write_face(folder / "encrypted.mp4", options=ENCRYPTED)
    write_face(folder / "only sound.m4a", has_pictures=False)
    write_face(folder / "only pictures.mp4", has_sound=False)
    write_face(folder / "variable rate.mkv", shown_at=[0.0, 0.04, 0.5, 0.55, 0.7])
    write_face(folder / "turned.mp4", pictures=lying, rotation=90)
    write_face(folder / "視頻 é 🎬.mp4")


BOTH = ["audio", "vision"]
# clip -> what of it is seen, and what is said of the rest
KINDS: dict[str, tuple[list[str], str]] = {
    "a face": (BOTH, "text: no transcript"),
    "corrupt": ([], "audio: unreadable: damaged, encrypted or no media"),
    "empty": ([], "vision: empty file"),
    "noise": ([], "audio: unreadable"),
    "circle": ([], "symbolic links"),
    "encrypted": ([], "encrypted"),
    "only sound": (["audio"], "vision: no pictures"),
    "only pictures": (["vision"], "audio: no sound"),
    "variable rate": (BOTH, "text: no transcript"),
    "turned": (BOTH, "text: no transcript"),
    "視頻 é 🎬": (BOTH, "text: no transcript"),
}


def test_a_file_of_every_kind_is_scored_or_named_and_the_others_go_on(tmp_path: Path):
    recipe = choose({"text": "given", "audio": "egemaps", "vision": "face68"}).recipe
    widths = {record.modality: record.width for record in recipe.extractors if record.width}
    folder = untrained_bundle(tmp_path / "bundle", widths=widths, extraction=asdict(recipe))
    write_every_kind(tmp_path / "clips")
    rows = scored([str(folder), str(tmp_path / "clips")], tmp_path / "o.jsonl")
    assert rows.keys() == KINDS.keys()
    for name, (seen, said) in KINDS.items():
        row = rows[name]
        assert row["seen"] == seen, row
        assert said in row["warning"], row
        assert isinstance(row["score"], float) == bool(seen), row


@pytest.mark.slow
def test_8k_is_scored_and_larger_pictures_are_named(tmp_path: Path):
    recipe = choose({"vision": "face68,fps=2"}).recipe
    widths = {"vision": recipe.extractors[0].width}
    folder = untrained_bundle(tmp_path / "bundle", widths=widths, extraction=asdict(recipe))
    clips = tmp_path / "clips"

    def face_of_8k(number: int) -> np.ndarray:
        return face_at(170, 30, (640, 360)).repeat(12, 0).repeat(12, 1)

    settings: dict[str, Any] = {"shown_at": [0.0, 0.5], "has_sound": False}
    write_clip(clips / "8k.mp4", pictures=face_of_8k, **settings)
    larger = brightening(1, 2, (8192, 4608))
    write_clip(clips / "larger.mp4", pictures=lambda number: larger, **settings)
    rows = scored([str(folder), str(clips)], tmp_path / "o.jsonl")
    assert rows["8k"]["seen"] == ["vision"]
    assert isinstance(rows["8k"]["score"], float)
    assert rows["larger"]["score"] is None
    assert "vision: too large: pictures of 8192 x 4608" in rows["larger"]["warning"]


def test_a_table_names_parts_of_files(bundle: Path, clips: Path, tmp_path: Path):
    (clips / "parts.csv").write_text(
        "id,file,start,end,transcript,split\n"
        "first,täne.m4a,0,0.7,the film was great,test\n"
        "second,täne.m4a,0.7,,,train\n",
        encoding="utf-8",
    )
    table = str(clips / "parts.csv")
    rows = scored([str(bundle), table], tmp_path / "o.jsonl")
    assert [row["seen"] for row in rows.values()] == [["text", "audio"], ["audio"]]
    assert scored([str(bundle), table, "--split", "train"], tmp_path / "t.jsonl").keys() == {
        "second"
    }


def test_windows_give_a_row_each(bundle: Path, clips: Path, tmp_path: Path):
    write_clip(clips / "long.m4a", 3.2, sound=tone(3.2), has_pictures=False)
    words = [str(bundle), str(clips / "long.m4a"), "--windows", "1"]
    assert scored(words, tmp_path / "o.jsonl").keys() == {"long@0", "long@1", "long@2"}


def test_an_extractor_of_another_kind_is_refused_with_both_sides(
    bundle: Path, clips: Path, tmp_path: Path, capsys: Any
):
    config = json.loads((bundle / "config.json").read_text())
    changed = json.loads(json.dumps(config["extraction"]))
    changed["extractors"][1]["version"] = "of another day"
    try:
        changed_config(bundle, extraction=changed)
        assert predict([str(bundle), str(clips), "--out", str(tmp_path / "o.csv")]) == 2
    finally:
        changed_config(bundle, extraction=config["extraction"])
    error = capsys.readouterr().err
    assert "is not the extractor that the model was trained with" in error
    assert "of another day" in error


def test_a_model_of_other_features_takes_no_clips(clips: Path, tmp_path: Path, capsys: Any):
    other = untrained_bundle(tmp_path / "other", with_tokenizer=False)
    assert predict([str(other), str(clips), "--out", str(tmp_path / "o.csv")]) == 2
    assert "were not made by concord extract" in capsys.readouterr().err
