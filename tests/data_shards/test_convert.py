"""From a raw pickle to a shard folder: every variant of the layout."""

from __future__ import annotations

import gc
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from raw_pickles import SPLITS, Content, assert_same, each, read_back, save

from data_shards import convert as entry
from data_shards.convert import convert
from data_shards.shards.frame_moments import Moments
from data_shards.shards.manifest import Field, Labels
from data_shards.sources.raw_dataset import Options


def test_samples_are_stored_at_their_true_length(content: Content, tmp_path: Path) -> None:
    manifest = convert(save(content, tmp_path), tmp_path / "out")
    samples = read_back(tmp_path / "out")
    part = content["train"]
    for i, name in enumerate(part["id"]):
        sample = samples[name]
        assert sample["key"] == f"train_{i:08d}"
        assert sample["json"] == {
            "id": name,
            "video": name.split("$_$")[0],
            "annotation": part["annotations"][i],
        }
        assert sample["txt"] == part["raw_text"][i]
        tokens = int(part["text_bert"][i, 1].sum())
        np.testing.assert_array_equal(
            sample["text.npy".removesuffix(".npy")], part["text_bert"][i, 0, :tokens]
        )
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
    assert {split: manifest.samples(split) for split in manifest.splits} == {
        "train": 24,
        "valid": 4,
        "test": 12,
    }


def test_moments_are_of_train_frames_alone(content: Content, tmp_path: Path) -> None:
    manifest = convert(save(content, tmp_path), tmp_path / "out", shard_size=5)
    for modality in ("audio", "vision"):
        part = content["train"]
        lengths = part[f"{modality}_lengths"]
        frames = np.concatenate([part[modality][i, :n] for i, n in enumerate(lengths)]).astype(
            np.float64
        )
        mean, std = manifest.moments[modality]
        np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(std, frames.std(axis=0), rtol=1e-12)
        assert manifest.max_length[modality] == max(
            max(content[split][f"{modality}_lengths"]) for split in SPLITS
        )
    assert set(manifest.moments) == {"audio", "vision"}


def test_moments_joined_in_pieces_stay_exact_far_from_zero() -> None:
    frames = np.random.default_rng(0).normal(1e6, 1e-2, (1000, 2))
    pieces = [Moments.of(piece) for piece in np.split(frames, [1, 10, 500])]
    joined = pieces[0].join(pieces[1]).join(pieces[2]).join(pieces[3])
    np.testing.assert_allclose(joined.mean, frames.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(joined.std(), frames.std(axis=0), rtol=1e-6)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves tars open
def test_stock_webdataset_reads_the_shards_with_its_own_decoder(
    content: Content, tmp_path: Path
) -> None:
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
    "change",
    [_lists, _nested_lists, _float64, _fortran, _no_lengths, _bytes_ids, _object_ids, _mult],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_variants_of_the_layout_give_the_same_samples(
    content: Content, tmp_path: Path, change: Callable[[Content], None], protocol: int
) -> None:
    convert(save(content, tmp_path / "plain"), tmp_path / "expected")
    manifest = convert(
        save(each(content, change), tmp_path / "changed", protocol=protocol), tmp_path / "out"
    )
    assert_same(read_back(tmp_path / "out"), read_back(tmp_path / "expected"))
    assert manifest.repairs == {}


def test_padding_on_the_left_is_found_and_counted(content: Content, tmp_path: Path) -> None:
    convert(save(content, tmp_path / "plain"), tmp_path / "expected")

    def left(part: Content) -> None:
        for modality in ("audio", "vision"):
            lengths = part[f"{modality}_lengths"]
            part[modality] = np.stack(
                [
                    np.roll(x, len(x) - n, axis=0)
                    for x, n in zip(part[modality], lengths, strict=True)
                ]
            )
        text = part["text_bert"]
        part["text_bert"] = np.stack(
            [np.roll(x, x.shape[1] - int(x[1].sum()), axis=1) for x in text]
        )

    short = sum(
        int(np.sum(np.array(content[split]["audio_lengths"]) < content[split]["audio"].shape[1]))
        for split in SPLITS
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
    np.testing.assert_array_equal(
        read_back(tmp_path / "out")[part["id"][0]]["vision"], part["vision"][0, :length]
    )


def test_lengths_that_disagree_with_the_frames_are_counted_again(
    content: Content, tmp_path: Path
) -> None:
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


def test_values_that_are_not_finite_become_zero_and_are_counted(
    content: Content, tmp_path: Path
) -> None:
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
def test_three_tokens_of_three_rows_are_told_apart_by_the_mask(
    content: Content, tmp_path: Path, swapped: bool
) -> None:
    def three(part: Content) -> None:
        ids = np.array([[2, 7, 3], [1, 1, 1], [0, 0, 0]], np.float32)
        part["text_bert"] = np.stack([ids.T if swapped else ids] * len(part["id"]))

    convert(save(each(content, three), tmp_path), tmp_path / "out")
    assert all(
        sample["text"].tolist() == [2, 7, 3] for sample in read_back(tmp_path / "out").values()
    )


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


def test_text_features_end_with_the_mask_and_not_with_zeros(
    content: Content, tmp_path: Path
) -> None:
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


def test_transcripts_go_through_a_local_tokenizer(
    content: Content, tmp_path: Path, minilm: Path
) -> None:
    manifest = convert(
        save(content, tmp_path), tmp_path / "out", Options(tokenizer=str(minilm), max_tokens=8)
    )
    sample = read_back(tmp_path / "out")[content["train"]["id"][0]]
    assert sample["text"][0] == 101
    assert sample["text"][-1] == 102
    assert len(sample["text"]) == manifest.max_length["text"] == 8
    assert manifest.tokenizer is not None
    assert manifest.tokenizer["vocab_size"] == 30522
    assert manifest.tokenizer["special"] == {
        "pad": 0,
        "cls": 101,
        "sep": 102,
        "unk": 100,
        "mask": 103,
    }
    longer = [
        name for split in SPLITS for name in content[split]["raw_text"] if len(name.split()) > 6
    ]
    assert manifest.repairs == {"texts cut to 8 tokens": len(longer)}


def test_sources_can_be_sent_to_processes_that_are_not_forked(
    content: Content, tmp_path: Path, minilm: Path
) -> None:
    source = entry.read(save(content, tmp_path), Options(tokenizer=str(minilm)))
    row = next(source.rows())[1]
    sent = pickle.loads(pickle.dumps((source, row)))
    left, right = source.sample(row, Counter()), sent[0].sample(sent[1], Counter())
    assert left.id == right.id
    for name in left.arrays:
        np.testing.assert_array_equal(left.arrays[name], right.arrays[name])
