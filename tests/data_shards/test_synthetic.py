"""The made-up data set: small, clearly marked, and such that three modalities beat any one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from data_shards.convert import convert
from data_shards.inspect import render
from data_shards.inspecting.contents import examine
from data_shards.sources.pickles import load_pickle
from data_shards.synthetic import ADJECTIVES, DEGREES, main, make, vocabulary

WORDS = {word: number for number, word in enumerate(vocabulary())}


def _pooled(part: dict[str, Any], modalities: str) -> np.ndarray:
    """Features a linear model can use: means of frames, counts of words and of word pairs after a
    degree word."""
    rows = []
    for i, text in enumerate(part["raw_text"]):
        row = []
        if "t" in modalities:
            words = text.split()
            single, pairs = np.zeros(len(WORDS)), np.zeros((len(DEGREES), len(WORDS)))
            for before, word in zip(["", *words], words, strict=False):
                single[WORDS[word]] += 1
                if before in DEGREES:
                    pairs[list(DEGREES).index(before), WORDS[word]] += 1
            row += [single, pairs.ravel()]
        for letter, modality in (("a", "audio"), ("v", "vision")):
            if letter in modalities:
                length = part[f"{modality}_lengths"][i]
                row.append(3 * np.nan_to_num(part[modality][i, :length], neginf=0).mean(axis=0))
        rows.append(np.concatenate(row))
    return np.array(rows)


def test_three_modalities_beat_any_one_of_them() -> None:
    content = make()
    scores = {}
    for modalities in ("t", "a", "v", "tav"):
        model = Ridge(1.0).fit(
            _pooled(content["train"], modalities), content["train"]["regression_labels"]
        )
        guess = model.predict(_pooled(content["test"], modalities))
        scores[modalities] = float(np.corrcoef(guess, content["test"]["regression_labels"])[0, 1])
    assert scores["tav"] > 0.9
    for single in "tav":
        assert 0.4 < scores[single] < scores["tav"] - 0.15


def test_the_same_seed_gives_the_same_file_and_another_gives_another(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([str(tmp_path / f"{name}.pkl"), "--samples", "30", "--seed", seed]) == 0
    first, again, other = ((tmp_path / f"{name}.pkl").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_it_says_that_it_is_made_up_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "mosi.pkl"), "--samples", "30"]) == 0
    assert capsys.readouterr().out.startswith("SYNTHETIC data: 30 made-up clips")
    manifest = convert(tmp_path / "mosi.pkl", tmp_path / "out")
    assert manifest.synthetic is True
    assert manifest.source["dataset"] is None  # it has MOSI's shape, and is not MOSI
    assert "SYNTHETIC" in render(examine(tmp_path / "out"))


def test_its_token_ids_come_with_their_vocabulary(tmp_path: Path) -> None:
    main([str(tmp_path / "made.pkl"), "--samples", "30"])
    manifest = convert(tmp_path / "made.pkl", tmp_path / "out")
    assert manifest.tokenizer is not None
    assert manifest.tokenizer["vocab_size"] == len(vocabulary()) == len(set(vocabulary()))
    assert manifest.tokenizer["special"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    part = make(30)["train"]
    for text, rows in zip(part["raw_text"], part["text_bert"], strict=True):
        ids = rows[0, rows[1] == 1].astype(int)
        assert [vocabulary()[number] for number in ids] == ["[CLS]", *text.split(), "[SEP]"]


def test_its_layout_is_that_of_mmsa(tmp_path: Path) -> None:
    main([str(tmp_path / "made.pkl"), "--samples", "100"])
    content = load_pickle(tmp_path / "made.pkl")
    assert [len(content[split]["id"]) for split in ("train", "valid", "test")] == [60, 10, 30]
    videos = [
        {name.split("$_$")[0] for name in content[split]["id"]}
        for split in ("train", "valid", "test")
    ]
    assert not videos[0] & videos[1]
    assert not (videos[0] | videos[1]) & videos[2]
    part = content["train"]
    assert part["text_bert"].shape == (60, 3, 20)
    assert part["audio"].shape[::2] == (60, 5)
    assert part["vision"].shape[::2] == (60, 20)
    labels = part["regression_labels"]
    np.testing.assert_allclose(labels / 0.2, np.round(labels / 0.2), atol=1e-5)
    assert np.abs(labels).max() <= 3
    assert np.isneginf(part["audio"]).sum() == 3
    assert (np.array(part["annotations"]) == "Negative").sum() == (labels < 0).sum()


def test_each_modality_has_a_label_that_the_common_one_is_mixed_of() -> None:
    part = make(400)["train"]
    unimodal = np.stack([part[f"regression_labels_{letter}"] for letter in "TAV"])  # (3, N)
    np.testing.assert_allclose(unimodal / 0.2, np.round(unimodal / 0.2), atol=1e-5)
    assert np.abs(unimodal).max() <= 3
    correlations = np.corrcoef([*unimodal, part["regression_labels"]])
    assert (correlations[3, :3] > 0.5).all()
    assert (correlations[3, :3] < 0.85).all()
    assert (np.abs(correlations[:3, :3] - 0.25) < 0.15)[np.triu_indices(3, 1)].all()
    weights = np.linalg.lstsq(unimodal.T, part["regression_labels"], rcond=None)[0]
    explained = np.corrcoef(weights @ unimodal, part["regression_labels"])[0, 1]
    assert explained > 0.97


def test_sentences_hold_negation_intensifiers_and_sentiment() -> None:
    texts = " ".join(make(300)["train"]["raw_text"]).split()
    assert set(ADJECTIVES) | set(DEGREES) - {""} <= set(texts)


def test_too_few_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "made.pkl"), "--samples", "5"]) == 2
    assert "at least 10" in capsys.readouterr().err
    assert not (tmp_path / "made.pkl").exists()
    assert pickle.dumps(make(10)["test"])
