"""Sound and pictures from tables and clips into shards, and out of them in the same exact batches."""

from __future__ import annotations

import csv
import json
import logging
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_files import write_clip
from media_shards import MEDIA, SIDE, convert_media, write_media_table

from core.command import Refused
from data_shards.convert import main as convert_command
from data_shards.extract.__main__ import extract
from data_shards.extract.extractors.registry import choose
from data_shards.extract.windows import Windows
from data_shards.index import main as index_command
from data_shards.inspect import main as inspect_command
from data_shards.media.member_codec import decode_member
from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import DataError, Manifest, _checksum, read_manifest
from data_shards.stream import Stream
from data_shards.verify import verify


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media_table(tmp_path_factory.mktemp("table"), 32)


@pytest.fixture(scope="module")
def shards(table: Path) -> Path:
    convert_media(table, table.parent / "shards")
    return table.parent / "shards"


def test_members_are_the_files_themselves(table: Path, shards: Path):
    manifest = read_manifest(shards)
    assert {name: manifest.fields[name].media for name in MEDIA} == MEDIA
    assert manifest.max_length["audio"] == round(0.21 * 16_000)
    assert manifest.max_length["vision"] == 3
    assert not manifest.moments
    with tarfile.open(shards / "train-000000.tar") as tar:
        names = tar.getnames()
        record = json.load(tar.extractfile("train_00000001.json"))
        body = tar.extractfile("train_00000001.audio.wav").read()
    assert names[:3] == ["train_00000000.json", "train_00000000.label.npy", "train_00000000.txt"]
    assert record == {"id": "clip1"}
    assert body == (table.parent / "files" / "1.wav").read_bytes()


def test_the_same_table_gives_the_same_bytes(table: Path, shards: Path, tmp_path: Path):
    again = convert_media(table, tmp_path / "again")
    assert again == read_manifest(shards)


def epoch(folder: Path, **more) -> list[list[Arrays]]:
    stream = Stream(folder, "train", **{"global_batch": 6, **more})
    try:
        return list(stream.epoch(1))
    finally:
        stream.close()


def by_index(steps: list[list[Arrays]], step: int) -> dict[int, dict[str, np.ndarray]]:
    """Number of a sample -> its fields at their true length."""
    found = {}
    for arrays in steps[step]:
        for row, number in enumerate(arrays.index.tolist()):
            if arrays.weight[row] == 0:
                continue
            fields = {}
            for name in MEDIA:
                length = int(arrays.lengths[name][row])
                fields[name] = arrays.arrays[name][row, :length].numpy().copy()
                assert not arrays.arrays[name][row, length:].any()
            found[number] = fields
    return found


def test_batches_are_the_same_for_any_number_of_ranks_and_threads(table: Path, shards: Path):
    whole = epoch(shards, decode_threads=1)
    parts = [epoch(shards, rank=rank, ranks=2, micro_batches=2) for rank in (0, 1)]
    with open(table, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    seen = 0
    for step in range(len(whole)):
        expected = by_index(whole, step)
        found = by_index(parts[0], step) | by_index(parts[1], step)
        assert expected.keys() == found.keys()
        for number, fields in expected.items():
            for name, array in fields.items():
                np.testing.assert_array_equal(array, found[number][name])
                cell = rows[number][name]
                assert bool(cell) == bool(len(array))
                if cell:
                    stored = decode_member((table.parent / cell).read_bytes(), MEDIA[name])
                    np.testing.assert_array_equal(array, stored)
            seen += 1
    assert seen == len(rows)


def test_a_stream_goes_on_where_it_stopped(shards: Path):
    whole = epoch(shards)
    stream = Stream(shards, "train", global_batch=6)
    steps: Any = stream.epoch(1)
    next(steps)
    stream.mark_consumed()
    state = stream.state_dict()
    steps.close()
    stream.close()
    rest = Stream(shards, "train", global_batch=6, rank=0, ranks=1)
    rest.load_state_dict(state)
    for expected, found in zip(whole[1:], rest.epoch(1), strict=True):
        for name, array in expected[0].arrays.items():
            assert torch.equal(array, found[0].arrays[name])
    rest.close()


def with_broken_member(table: Path, folder: Path) -> tuple[Path, str]:
    """Shards, one of whose members holds noise, and its sample: as if they had been written by
    something that does not decode what it stores."""
    convert_media(table, folder)
    manifest = read_manifest(folder)
    (shard, *others) = manifest.splits["train"]
    tar = bytearray((folder / shard.name).read_bytes())
    with tarfile.open(folder / shard.name) as opened:
        member = opened.getmember("train_00000001.audio.wav")
    tar[member.offset_data : member.offset_data + 60] = bytes(60)
    (folder / shard.name).write_bytes(tar)
    # as whoever wrote them would have vouched for them
    from core.files import sha256_of_bytes
    from data_shards.indexing.tar_indexer import index_tar

    body = index_tar(folder / shard.name, (), "sentiment", tuple(MEDIA)).index.to_bytes()
    (folder / shard.name).with_suffix(".idx").write_bytes(body)
    changed = replace(shard, sha256=sha256_of_bytes(bytes(tar)), index_sha256=sha256_of_bytes(body))
    splits = {**manifest.splits, "train": (changed, *others)}
    (folder / "manifest.json").write_text(replace(manifest, splits=splits).to_json())
    return folder, "train_00000001"


def test_a_broken_member_is_named_or_skipped_within_the_budget(
    table: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder, key = with_broken_member(table, tmp_path / "broken")
    with pytest.raises(DataError, match=rf"train-000000.tar, sample '{key}': audio cannot be dec"):
        epoch(folder)
    with pytest.raises(DataError, match=r"1 of 16 samples .* more than the budget of 0.01"):
        epoch(folder, on_corrupt="skip")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = epoch(folder, on_corrupt="skip", max_skipped_fraction=0.1)
    assert sum(key in record.message for record in caplog.records) == 1
    parts = [
        epoch(folder, on_corrupt="skip", max_skipped_fraction=0.1, rank=rank, ranks=2)
        for rank in (0, 1)
    ]
    sound = epoch(shards)
    for step in range(len(sound)):
        expected = by_index(sound, step)
        if 1 in expected:
            expected[1]["audio"] = expected[1]["audio"][:0]
        for others in (by_index(found, step), by_index(parts[0], step) | by_index(parts[1], step)):
            assert others.keys() == expected.keys()
            for number, fields in expected.items():
                np.testing.assert_array_equal(others[number]["audio"], fields["audio"])


def test_a_flipped_bit_in_a_member_is_found_like_any_other(table: Path, tmp_path: Path):
    convert_media(table, tmp_path / "flipped")
    tar = tmp_path / "flipped" / "train-000000.tar"
    body = bytearray(tar.read_bytes())
    body[2000] ^= 1
    tar.write_bytes(body)
    with pytest.raises(DataError, match="is damaged: its checksum is wrong; sample 'train_"):
        epoch(tmp_path / "flipped")


def test_a_clip_that_is_longer_than_allowed_counts_as_broken(shards: Path):
    with pytest.raises(DataError, match=r"audio cannot be decoded: too long"):
        epoch(shards, longest_clip=0.05)


def test_other_commands_know_the_members(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "shards"
    convert_media(table, folder)
    assert not [finding for finding in verify(folder, deep=True, workers=1) if finding.corruption]
    index = folder / "train-000000.idx"
    before = index.read_bytes()
    index.unlink()
    assert index_command([str(folder)]) == 0
    assert index.read_bytes() == before
    assert inspect_command([str(folder)]) == 0
    assert "all read" in capsys.readouterr().out


def test_a_manifest_without_media_says_nothing_of_them(shards: Path):
    manifest = read_manifest(shards)
    plain = replace(manifest, fields={"label": manifest.fields["label"]}, source={})
    assert '"media"' not in plain.to_json()
    text = manifest.to_json()
    assert Manifest.from_json(text, "m") == manifest
    for wrong in ({"rate": -1.0}, {"side": 3}, {"kind": "smell"}, {"codec": "flac"}):
        body = json.loads(text)
        body.pop("checksum")
        body["fields"]["audio"]["media"] |= wrong
        body["checksum"] = _checksum(body)
        with pytest.raises(DataError, match="audio"):
            Manifest.from_json(json.dumps(body), "m")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("files/none.flac", r"there is no file 'files/none.flac'"),
        ("../outside.flac", r"lies outside the table's folder"),
        ("files/1.frames", r"cannot be decoded: a frames file; sound is flac"),
    ],
)
def test_a_cell_that_names_no_sound_is_refused(table: Path, tmp_path: Path, cell: str, said: str):
    write_media_table(tmp_path, 8)
    (tmp_path.parent / "outside.flac").write_bytes(b"")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    lines[2] = lines[2].replace("files/1.wav", cell)
    (tmp_path / "table.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"line 3 .*audio: .*{said}"):
        convert_media(tmp_path / "table.csv", tmp_path / "shards")


def test_the_command_takes_columns_of_media(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [str(table), "--out", str(tmp_path / "s"), "--labels=-3:3"]
    media = ["--media", "audio", "--media", f"vision=2:{SIDE}"]
    assert convert_command([*words, *media, "--rename", "vision=face"]) == 0
    assert read_manifest(tmp_path / "s").fields["face"].media == MEDIA["vision"]
    words[2] = str(tmp_path / "t")
    assert convert_command([*words, "--media", "sound"]) != 0
    assert "has no column 'sound' with files" in capsys.readouterr().err


def test_clips_are_extracted_as_they_are(tmp_path: Path):
    clips = tmp_path / "clips"
    for number, split in enumerate(("train", "valid", "test")):
        write_clip(clips / f"{split}.mp4", 1.0 + number, has_sound=number != 1)
    (clips / "table.csv").write_text(
        "id,file,split,label\n"
        + "".join(f"{s},{s}.mp4,{s},{n}\n" for n, s in enumerate(("train", "valid", "test")))
    )
    extractors = choose({"audio": "raw,format=opus", "vision": f"raw,fps=2,side={SIDE}"})
    out = tmp_path / "features"
    extract(clips / "table.csv", out, extractors, windows=Windows(1.5), jobs=0)
    words = [str(out / "clips.csv"), "--out", str(tmp_path / "shards"), "--labels=-3:3"]
    assert convert_command(words) == 0
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.fields["vision"].media == MEDIA["vision"]
    assert manifest.extraction == extractors.recipe
    assert manifest.samples("test") == 2  # windows
    stream = Stream(tmp_path / "shards", "valid", global_batch=4)
    ((arrays,),) = list(stream.epoch(0))
    stream.close()
    assert arrays.lengths["audio"].tolist() == [0] * len(arrays.index)
    assert int(arrays.lengths["vision"].max()) == 4  # one window: the rest would be too short


def test_extractors_of_media_refuse_what_they_do_not_know():
    for choice, said in (
        ({"audio": "raw,format=mp4"}, "format=mp4: it is flac, wav, opus"),
        ({"vision": "raw,crop=hand"}, "crop=hand: it is one of face, frame"),
        ({"vision": "raw,side=4000"}, "pictures of 4000 pixels"),
    ):
        with pytest.raises(Refused, match=said):
            choose(choice)
    with pytest.raises(Refused, match=r"--align words averages frames .* --audio raw"):
        choose({"audio": "raw"}, "words")
