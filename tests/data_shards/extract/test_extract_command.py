"""``concord extract``: from clips to a table, to shards, and on after an interruption."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from media_files import tone, write_clip, write_talking_face

from concord.__main__ import main
from core.command import DONE, REFUSED
from data_shards.convert import convert
from data_shards.extract.__main__ import extract
from data_shards.extract.clip import ClipSource, extract_clip, open_extractors
from data_shards.extract.clip_jobs import Plan, run_rows
from data_shards.extract.clip_table import ClipRow, find_clips
from data_shards.extract.extractors.registry import choose
from data_shards.shards.manifest import DataError, Labels, Manifest, read_manifest
from data_shards.sources.raw_dataset import Options

HEADER = "id,file,start,end,transcript,label,split,speaker\n"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of six clips: two parts of a file with a face, one without sound, one that is spoilt
    and has a transcript, one that is spoilt and has none."""
    folder = tmp_path_factory.mktemp("clips")
    write_talking_face(folder / "a" / "face.mp4", 2.0)
    write_clip(folder / "深い.mp4", 1.0, has_sound=False)
    write_clip(folder / "tone.m4a", 1.0, has_pictures=False, rate=16_000)
    (folder / "bad.mp4").write_bytes(b"no clip")
    rows = [
        "first,a/face.mp4,0,1,well it was good,1.5,train,ann",
        "second,a/face.mp4,1,2,,-0.5,valid,ann",
        "深い,深い.mp4,,,no sound here,0,train,bob",
        "tone,tone.m4a,,,,0.5,test,bob",
        "bad,bad.mp4,,,only words,-2,train,eve",
        "worse,bad.mp4,,,,3,train,eve",
    ]
    (folder / "table.csv").write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def extractors():
    return choose({"text": "given", "audio": "egemaps", "vision": "face68"})


@pytest.fixture(scope="module")
def faces_only():
    """What opens in no time in another process."""
    return choose({"text": "given", "vision": "face68"})


@pytest.fixture(scope="module")
def features(clips: Path, extractors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    extract(clips / "table.csv", out, extractors, jobs=0)
    return out


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def contents(folder: Path) -> dict[str, bytes]:
    """All that was written, without what depends on the time of a file."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".json" and path.name != ".lock":
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_the_table_has_what_was_found_and_nothing_else(features: Path):
    table = rows_of(features / "clips.csv")
    assert list(table) == ["first", "second", "深い", "tone", "bad"]
    assert table["first"]["text"] == "well it was good"
    assert table["first"]["label"] == "1.5"
    assert table["first"]["speaker"] == "ann"
    audio = np.load(features / table["first"]["audio"])
    vision = np.load(features / table["first"]["vision"])
    assert audio.shape == (96, 25)
    assert vision.shape == (10, 169)
    assert vision[:, 0].all()
    assert (table["深い"]["audio"], table["深い"]["vision"]) == ("", "")
    assert table["tone"]["audio"]
    assert (table["bad"]["audio"], table["bad"]["text"]) == ("", "only words")


def test_what_is_missing_is_named_with_the_reason(features: Path):
    with (features / "missing.csv").open(encoding="utf-8", newline="") as file:
        found = {(row["id"], row["modality"]): row["reason"] for row in csv.DictReader(file)}
    assert found["深い", "audio"] == "no sound"
    assert found["深い", "vision"] == "no face"
    assert found["tone", "vision"] == "no pictures"
    assert found["second", "text"] == "no transcript"
    assert "no media" in found["worse", "audio"]
    assert ("first", "vision") not in found


def test_shards_carry_the_recipe_and_new_clips_get_the_same_features(
    clips: Path, features: Path, extractors, tmp_path: Path
):
    options = Options(labels=Labels(low=-3.0, high=3.0), rename={"vision": "face"})
    manifest = convert(features / "clips.csv", tmp_path / "shards", options)
    read = read_manifest(tmp_path / "shards")
    assert read == manifest
    assert read.extraction is not None
    assert [record.modality for record in read.extraction.extractors] == ["text", "audio", "face"]
    again = open_extractors(read.extraction)
    clip = ClipSource("new", clips / "a" / "face.mp4", 0.0, 1.0)
    found = extract_clip(clip, again)
    table = rows_of(features / "clips.csv")
    np.testing.assert_array_equal(
        found.arrays["audio"], np.load(features / table["first"]["audio"])
    )
    np.testing.assert_array_equal(
        found.arrays["face"], np.load(features / table["first"]["vision"])
    )


def test_manifests_without_a_recipe_stay_as_they_were():
    manifest = Manifest("m", "arrays", {}, {})
    text = manifest.to_json()
    assert "extraction" not in text
    assert Manifest.from_json(text, "here") == manifest
    with pytest.raises(DataError, match="changed"):
        Manifest.from_json(text.replace('"repairs"', '"extraction": null,\n "repairs"'), "here")


def test_the_bytes_are_the_same_for_any_number_of_processes(
    clips: Path, features: Path, extractors, tmp_path: Path
):
    extract(clips / "table.csv", tmp_path / "two", extractors, jobs=2)
    assert contents(tmp_path / "two") == contents(features)


def test_finished_clips_are_kept_and_changed_ones_done_again(
    clips: Path, extractors, tmp_path: Path
):
    source = write_clip(tmp_path / "in" / "one.m4a", 1.0, has_pictures=False)
    write_clip(tmp_path / "in" / "two.m4a", 1.0, has_pictures=False)
    (tmp_path / "in" / "one.txt").write_text("a word")
    out = tmp_path / "out"
    extract(tmp_path / "in", out, extractors, jobs=0)
    table = rows_of(out / "clips.csv")
    assert table["one"]["text"] == "a word"
    before = {name: (out / row["audio"]).stat().st_mtime_ns for name, row in table.items()}
    write_clip(source, 1.5, has_pictures=False)
    extract(tmp_path / "in", out, extractors, jobs=0)
    after = {name: (out / row["audio"]).stat().st_mtime_ns for name, row in table.items()}
    assert after["two"] == before["two"]
    assert len(np.load(out / table["one"]["audio"])) == pytest.approx(150, abs=6)
    (out / table["two"]["audio"]).unlink()
    extract(tmp_path / "in", out, extractors, jobs=0)
    assert (out / table["two"]["audio"]).exists()


def test_after_kill_9_the_same_command_goes_on(clips: Path, faces_only, tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_shards.extract", str(clips / "table.csv")]
    command += ["--out", str(out), "--audio", "none"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        said = b""
        while not re.search(rb" [1-6]/6 ", said):  # at least one clip of six is done
            said += running.stderr.read(1)
        running.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("features/*/*.json")}
    assert kept
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == DONE, done.stderr
    extract(clips / "table.csv", tmp_path / "at_once", faces_only, jobs=0)
    assert contents(out) == contents(tmp_path / "at_once")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_other_extractors_need_another_folder(clips: Path, features: Path, capsys):
    words = ["extract", str(clips / "table.csv"), "--out", str(features), "--audio", "none"]
    assert main(words) == REFUSED
    assert "features of other extractors" in capsys.readouterr().err
    assert (features / "clips.csv").exists()


class Deadly(ClipSource):
    """Ends the process that it is sent to."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_clip_that_ends_its_process_is_named_and_the_others_go_on(
    clips: Path, faces_only, tmp_path: Path
):
    good = list(find_clips(clips / "table.csv"))[1:3]
    deadly = ClipRow(Deadly("deadly", clips / "tone.m4a"), {}, "row 9")
    plan = Plan(tmp_path, faces_only.recipe)
    rows = [good[0], deadly, good[1]]
    records = list(run_rows(plan, rows, 1, faces_only, force=False))
    by_id = {record.clips[0].id: record.clips[0] for record in records}
    assert by_id.keys() == {"second", "deadly", "深い"}
    assert "the process that read it died" in by_id["deadly"].missing["vision"]
    assert "vision" in by_id["second"].arrays


@pytest.mark.parametrize("is_table", [True, False])
def test_links_in_a_circle_are_named_and_the_others_go_on(
    tmp_path: Path, faces_only, is_table: bool
):
    folder = tmp_path / "in"
    write_talking_face(folder / "face.mp4", 0.5)
    (folder / "circle.mp4").symlink_to("circle.mp4")
    (folder / "table.csv").write_text("id,file\nface,face.mp4\ncircle,circle.mp4\n")
    source = folder / "table.csv" if is_table else folder
    extract(source, tmp_path / "out", faces_only, jobs=0)
    assert list(rows_of(tmp_path / "out" / "clips.csv")) == ["face"]
    missing = rows_of(tmp_path / "out" / "missing.csv")["circle"]
    assert "symbolic links" in missing["reason"]


def test_words_give_one_frame_each(tmp_path: Path, extractors):
    write_talking_face(tmp_path / "in" / "a.mp4", 1.0)
    words = [["well", 0.0, 0.3], ["good", 0.4, 0.9]]
    rows = [
        {"id": "a", "file": "in/a.mp4", "transcript": "well good", "words": words},
        {"id": "b", "file": "in/a.mp4", "transcript": "well good"},
    ]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    aligned = choose({"text": "given", "audio": "egemaps", "vision": "face68"}, "words")
    extract(table, tmp_path / "out", aligned, jobs=0)
    found = rows_of(tmp_path / "out" / "clips.csv")
    audio = np.load(tmp_path / "out" / found["a"]["audio"])
    assert audio.shape == (2, 25)
    assert np.load(tmp_path / "out" / found["a"]["vision"]).shape == (2, 169)
    assert json.loads(found["a"]["words"]) == words
    assert found["b"]["audio"] == ""
    assert rows_of(tmp_path / "out" / "missing.csv")["b"]["reason"] == "no word times"


def test_windows_become_rows_that_stay_together(tmp_path: Path, extractors):
    write_clip(tmp_path / "in" / "talk.m4a", 5.0, has_pictures=False)
    words = ["extract", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--windows", "2"]
    assert main([*words, "--vision", "none", "--jobs", "0"]) == DONE
    table = rows_of(tmp_path / "out" / "clips.csv")
    assert list(table) == ["talk@0", "talk@2", "talk@4"]
    assert {row["video"] for row in table.values()} == {"talk"}


def test_extract_and_convert_in_one_command(clips: Path, features: Path, tmp_path: Path, capsys):
    words = ["extract", str(clips / "table.csv"), "--out", str(tmp_path / "out")]
    words += ["--shards", str(tmp_path / "shards"), "--labels", "-3:3", "--jobs", "0"]
    assert main(words) == DONE
    said = capsys.readouterr().out
    assert "missing: vision of 1 clips: no pictures" in said
    assert "nothing is known of 1 clips" in said
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.samples("train") == 3
    assert manifest.extraction is not None


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,x.mp4,2,1,,1,train,s", "ends at 1 s and starts at 2 s"),
        ("a,x.mp4,-1,,,1,train,s", "no time in seconds"),
        ("a,../x.mp4,,,,1,train,s", "lies outside"),
        ("a,x\0.mp4,,,,1,train,s", r"'x\\x00.mp4' cannot be the name of a file"),
        ("a,,,,,1,train,s", "no 'file'"),
        ("a,x.mp4,,,,1,train,s\na,x.mp4,,,,1,train,s", "line 3 .*another clip has the id"),
    ],
)
def test_rows_that_cannot_be_read_are_refused_with_their_line(tmp_path, capsys, row, problem):
    (tmp_path / "t.csv").write_text(HEADER + row + "\n")
    words = ["extract", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--audio", "none"]
    assert main(words) == REFUSED
    said = capsys.readouterr().err
    assert "line " in said
    assert re.search(problem, said)
    assert not (tmp_path / "out").exists()


def test_words_of_the_command_that_have_no_effect_are_refused(tmp_path: Path, capsys):
    write_clip(tmp_path / "in" / "a.m4a", 0.3, has_pictures=False, sound=tone(0.3))
    base = ["extract", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--audio", "none"]
    for more, problem in (
        (["--pauses"], "no effect without --windows"),
        (["--labels", "-1:1"], "no effect without --shards"),
        (["--jobs", "-1"], "give 1 or more"),
    ):
        assert main([*base, *more]) == REFUSED
        assert problem in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(base) == REFUSED
    assert "holds no features" in capsys.readouterr().err
    words = ["extract", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")]
    assert main([*words, "--audio", "none"]) == REFUSED
    assert "does not exist" in capsys.readouterr().err
