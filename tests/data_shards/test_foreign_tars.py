"""One's own tars are checked and measured as a conversion does it, and train to the same scores."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tars import Clips, clips, write_table, write_tars
from rank_trainings import train_all
from ranks import run_ranks
from small_models import small_run

from core.batch import Utterances
from data_shards.convert import main as convert
from data_shards.index import main as index
from data_shards.indexing.folder_indexer import index_folder
from data_shards.inspect import main as inspect
from data_shards.shards.manifest import Field, Labels, read_manifest
from data_shards.stream import Stream
from data_shards.verify import main as verify
from launch.config import load_recipe, override
from launch.tasks.build import build_task

# webdataset leaves its file to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CLASSES = {"classes": "given", "metrics": "classes", "select": "Macro_F1", "goal": "max"}


def test_the_same_arrays_train_alike_by_table_and_by_tars(tmp_path: Path) -> None:
    runs = []
    for target in ("label", "class"):
        made = clips(target)
        by_table, by_tars = tmp_path / target / "table", tmp_path / target / "tars"
        table = write_table(made, tmp_path / target / "raw")
        write_tars(made, by_tars)
        stated = ["--labels", "1:5:1/2"] if target == "label" else []
        assert not convert([str(table), "--out", str(by_table), *stated])
        assert not index([str(by_tars), *stated])
        one, other = read_manifest(by_table), read_manifest(by_tars)
        assert one.moments == other.moments
        assert one.moments["audio"][0][0] == pytest.approx(1000, abs=100)
        for fact in ("labels", "tokenizer", "max_length"):
            assert getattr(one, fact) == getattr(other, fact), fact
        changes = CLASSES if target == "class" else {"metrics": "mosi"}
        model = "baseline" if target == "class" else "hscl"
        runs += [small_run(model, data, **changes) for data in (by_table, by_tars)]
    (results,) = run_ranks(1, tmp_path / "ranks", train_all, runs, 4)
    for one, other in (results[:2], results[2:]):
        assert len(one["losses"]) == 4
        assert one["losses"] == other["losses"]
        assert one["scores"] == other["scores"]


def test_what_is_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tars(clips(), tmp_path, jpg=b"\xff\xd8", README=b"x")
    assert not index([str(folder)])
    said = capsys.readouterr().out
    assert (
        "indexed 24 train, 8 valid, 8 test samples with fields audio, label, text, vision" in said
    )
    assert "assumed: labels from 1 to 5 in steps of 0.5, as measured; state them" in said
    assert "assumed: 60 tokens, by the largest id; state them with --tokenizer DIR" in said
    assert "left out: 40 files .jpg, which are no arrays" in said
    manifest = read_manifest(folder)
    assert manifest.labels == Labels(low=1, high=5, resolution=0.5)
    assert not inspect([str(folder)])
    assert "scores from 1 to 5, annotated in steps of 0.5" in capsys.readouterr().out
    assert not verify([str(folder), "--deep"])


def every(clip_change: Callable[[dict[str, Any]], Any]) -> Callable[[Clips], Any]:
    """A change of every clip."""

    def change(made: Clips) -> None:
        for samples in made.values():
            for arrays in samples:
                clip_change(arrays)

    return change


def in_valid(clip_change: Callable[[dict[str, Any]], Any]) -> Callable[[Clips], Any]:
    """A change of every validation clip."""
    return lambda made: every(clip_change)({"valid": made["valid"]})


def one(clip_change: Callable[[dict[str, Any]], Any]) -> Callable[[Clips], Any]:
    """A change of train clip 3."""
    return lambda made: clip_change(made["train"][3])


def put(field: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda arrays: arrays.update({field: value})


def turn(field: str, function: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], Any]:
    """Another array in place of that of a field, where the clip has it."""

    def change(arrays: dict[str, Any]) -> None:
        if field in arrays:
            arrays[field] = function(arrays[field])

    return change


def classify(arrays: dict[str, Any]) -> None:
    """A class in place of the label."""
    del arrays["label"]
    arrays["class"] = np.int64(0)


def shifted(by: int) -> Callable[[Clips], Any]:
    return every(turn("class", lambda number: number + by))


ALIKE: list[tuple[str, Callable[[Clips], Any]]] = [
    ("labels of shape (1,)", every(turn("label", lambda label: label[None]))),
    ("one label of shape (1, 1)", one(turn("label", lambda label: label[None, None]))),
    ("no frames as (0, D)", one(put("vision", np.empty((0, 3))))),
    ("no frames as (0,)", one(put("vision", np.empty(0, np.float32)))),
    ("no token ids", one(put("text", np.empty(0)))),
    (
        "token ids with mask and types",
        every(turn("text", lambda ids: np.array([ids, ids * 0 + 1, ids * 0]))),
    ),
]


@pytest.mark.parametrize("change", [case[1] for case in ALIKE], ids=[case[0] for case in ALIKE])
def test_what_means_the_same_is_read_alike(tmp_path: Path, change: Callable[[Clips], Any]) -> None:
    made = clips()
    for samples in made.values():
        samples[3].pop("vision", None)
    change(made)
    manifest = index_folder(write_tars(made, tmp_path))
    assert manifest.fields["label"] == Field("float32", ())
    batch = override(load_recipe("baseline/demo"), [f"data={tmp_path}", "batch_size=24"])
    (batches,) = list(build_task(batch).batches(0))
    (utterances,) = batches
    assert isinstance(utterances, Utterances)
    assert utterances.label.shape == (24,)
    row = utterances.index.tolist().index(3)
    assert not utterances.mask["vision"][row].any()
    assert utterances.frames["text"].ndim == 2
    assert utterances.mask["text"][row].sum() == len(np.atleast_2d(made["train"][3]["text"])[0])


def test_vectors_are_one_frame(tmp_path: Path) -> None:
    made = clips()
    every(turn("audio", lambda frames: frames[0]))(made)
    one(turn("audio", lambda frame: frame[None]))(made)
    manifest = index_folder(write_tars(made, tmp_path))
    assert manifest.fields["audio"] == Field("float32", (None, 5))
    assert manifest.max_length["audio"] == 1
    (part,) = next(Stream(tmp_path, "train", global_batch=24, shuffle=False).epoch(0))
    np.testing.assert_array_equal(part.arrays["audio"][7, 0].numpy(), made["train"][7]["audio"])


NAN = np.float32("nan")
SAMPLE = r"train-000000\.tar, sample 'train_0003'"
REFUSED: list[tuple[str, Callable[[Clips], Any], list[str], str]] = [
    ("label is nan", one(put("label", NAN)), [], rf"{SAMPLE}: label: nan is no finite number"),
    ("label is inf", one(put("label", -np.float64("inf"))), [], "float64 with 0 axes, but float32"),
    (
        "many are nan",
        every(put("label", NAN)),
        [],
        r"'train_0000': label: nan.*; 40 samples in all",
    ),
    (
        "no label",
        one(lambda arrays: arrays.pop("label")),
        [],
        rf"{SAMPLE}: has neither a label nor",
    ),
    ("no labels", every(lambda arrays: arrays.pop("label")), [], "neither a label nor a class"),
    ("label and class", one(put("class", np.int64(1))), [], rf"{SAMPLE}: has both a label and"),
    (
        "of either kind",
        in_valid(classify),
        [],
        r"have a label, as in t\S+\.tar, and others a class, as in valid-000000\.tar",
    ),
    (
        "out of range",
        one(put("label", np.float32(7))),
        ["--labels", "1:5"],
        rf"{SAMPLE}: label: 7 is outside",
    ),
    (
        "label of two",
        every(put("label", np.zeros(2, "f4"))),
        [],
        r"'train_0000': label has shape \(2,\)",
    ),
    ("label is text", every(put("label", np.array([b"a"]))), [], "only little-endian numbers"),
    (
        "label is complex",
        every(put("label", np.complex64(1))),
        [],
        "'label' is complex64.*np.float32",
    ),
    (
        "labels all equal",
        every(put("label", np.float32(2))),
        [],
        "every label is 2, so there is no range",
    ),
    ("view is nan", one(put("label_audio", NAN)), [], rf"{SAMPLE}: label_audio: nan"),
    (
        "view out of range",
        one(put("label_text", np.float32(9))),
        ["--labels", "1:5"],
        "label_text: 9 is outside",
    ),
    ("view of integers", one(put("label_audio", np.int64(1))), [], "'label_audio' is int64"),
    (
        "frame is nan",
        one(put("audio", np.full((2, 5), NAN))),
        [],
        rf"{SAMPLE}: audio: nan at \(0, 0\), one of 10",
    ),
    ("frames overflow", every(turn("vision", lambda x: x * 0 + 1e300)), [], "vision: 1e.300 at"),
    (
        "another width",
        one(put("audio", np.ones((2, 4), "f4"))),
        [],
        rf"{SAMPLE}: audio has 4 features, and samples before it have 5",
    ),
    (
        "another width in valid",
        in_valid(put("audio", np.ones((2, 4), "f4"))),
        [],
        r"valid-000000\.tar: audio has 4 features",
    ),
    (
        "another dtype in valid",
        in_valid(turn("audio", lambda frames: frames.astype("f8"))),
        [],
        r"valid-000000\.tar: audio is float64",
    ),
    (
        "frames of integers",
        every(turn("audio", lambda x: x.astype("i2"))),
        [],
        r"'audio' is int16 of shape \(T, 5\); frames are floats",
    ),
    (
        "three axes",
        every(turn("audio", lambda x: x[None])),
        [],
        r"'audio' is float32 of shape \(T, \d+, 5\)",
    ),
    ("a number", every(put("age", np.float32(3))), [], r"'age' is float32 of shape"),
    (
        "a name with a dot",
        every(put("a.b", np.ones((1, 1)))),
        [],
        r"'a.b' cannot be the name of a modality \(a key ends at its first dot\)",
    ),
    (
        "a name with a blank",
        every(put("a b", np.ones((1, 1)))),
        [],
        r"train-000000\.tar.*'a b' cannot be the name of a modality.*--leave-out 'a b'",
    ),
    (
        "a name with a blank, among arrays",
        every(put("a b", np.ones((1, 1)))),
        ["--task", "arrays"],
        r"train-000000\.tar: 'a b' cannot be the name of a field.*--leave-out 'a b'",
    ),
    (
        "token id negative",
        one(put("text", np.array([5, -1]))),
        [],
        rf"{SAMPLE}: text: token 1 is -1, outside",
    ),
    (
        "token ids in columns",
        every(turn("text", lambda ids: np.ones((len(ids) + 3, 3), int))),
        [],
        "'text' is int64 of shape",
    ),
    (
        "token ids padded",
        every(turn("text", lambda ids: np.array([ids, ids > 9, ids * 0]))),
        [],
        "its mask marks padding",
    ),
    (
        "token types",
        every(turn("text", lambda ids: np.array([ids, ids * 0 + 1, ids * 0 + 1]))),
        [],
        "token types other than 0",
    ),
]
CLASSES_REFUSED: list[tuple[str, Callable[[Clips], Any], list[str], str]] = [
    ("from 1", shifted(1), [], "classes go up to 3, but no sample is of class 0"),
    ("negative", shifted(-1), [], "-1 is no number of a class"),
    (
        "too few names",
        shifted(0),
        ["--classes", "a,b"],
        r"class: 2, but there are only classes 0 to 1 \(a, b\)",
    ),
    ("one name", shifted(0), ["--classes", "a"], "expected two or more different names"),
    (
        "a range for classes",
        shifted(0),
        ["--labels", "0:2"],
        "holds classes: state them with --classes",
    ),
    ("class is a float", every(turn("class", np.float32)), [], "a class is one whole number"),
    (
        "no token ids for a tokenizer",
        every(lambda arrays: arrays.pop("text")),
        ["--tokenizer", "/nowhere"],
        "no such folder",
    ),
]


@pytest.mark.parametrize(
    ("target", "change", "options", "message"),
    [("label", *case[1:]) for case in REFUSED] + [("class", *case[1:]) for case in CLASSES_REFUSED],
    ids=[case[0] for case in REFUSED] + [case[0] for case in CLASSES_REFUSED],
)
def test_what_would_be_learnt_wrongly_is_refused_by_name(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    target: str,
    change: Callable[[Clips], Any],
    options: list[str],
    message: str,
) -> None:
    made = clips(target)
    change(made)
    assert index([str(write_tars(made, tmp_path)), *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, said), said
    assert not (tmp_path / "manifest.json").exists()
