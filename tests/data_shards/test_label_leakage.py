"""Features that know the labels of one split better than those of another."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from data_shards.convert import convert
from data_shards.inspect import main
from data_shards.inspecting import label_leakage
from data_shards.inspecting.label_leakage import MeanFrames, fit, leakage_lines
from data_shards.shards.manifest import Labels
from data_shards.sources.raw_dataset import Options

SIZES = {"train": 200, "valid": 60, "test": 60}


def drawn(knows: set[str], width: int = 4, seed: int = 0) -> dict[str, tuple[np.ndarray, ...]]:
    """Split -> frames (N, 1, D) and labels (N,); the first feature is the label in splits of
    ``knows``."""
    rng = np.random.default_rng(seed)
    data = {}
    for split, size in SIZES.items():
        labels = rng.uniform(-3, 3, size)
        frames = rng.normal(size=(size, 1, width))
        if split in knows:
            frames[:, 0, 0] = labels + rng.normal(size=size)
        data[split] = (frames, labels)
    return data


def found_in(data: dict[str, tuple[np.ndarray, ...]]) -> MeanFrames:
    found = MeanFrames()
    for split, (frames, labels) in data.items():
        for i, label in enumerate(labels):
            arrays = {"audio": frames[i], "label": np.float32(label)}
            record = {"id": f"{split}{i}", "video": f"{split}{i // 4}"}
            found.add(split, arrays, record, len(labels))
    return found


def test_a_validation_that_the_features_know_is_leakage() -> None:
    lines = leakage_lines(found_in(drawn({"train", "valid"})))
    (warning,) = [line for line in lines if line.startswith("LEAKAGE")]
    assert "'audio' finds the labels of valid" in warning
    assert "made with labels of valid" in warning


def test_features_that_know_train_alone_are_warned_of() -> None:
    lines = leakage_lines(found_in(drawn({"train"})))
    assert not [line for line in lines if line.startswith("LEAKAGE")]
    (warning,) = [line for line in lines if line.startswith("WARNING")]
    assert "labels of held-out train videos" in warning


@pytest.mark.parametrize("knows", [set(), {"train", "valid", "test"}])
def test_features_that_say_the_same_everywhere_are_not_warned_of(knows: set[str]) -> None:
    lines = leakage_lines(found_in(drawn(knows)))
    assert [line.split()[0] for line in lines[2:]] == ["modality", "audio"]


def test_fitting_too_well_is_no_leakage() -> None:
    """As many features as samples: train itself would be found perfectly."""
    found = found_in(drawn(set(), width=200))
    fitted = fit({split: rows["audio"] for split, rows in found.rows.items()})
    assert fitted is not None
    assert abs(fitted.correlation["train"]) < 0.25
    assert len(leakage_lines(found)) == 4


def test_the_fit_is_the_closed_form_on_standardised_means() -> None:
    data = drawn({"train", "valid", "test"})
    found = found_in(data)
    fitted = fit({split: rows["audio"] for split, rows in found.rows.items()})
    assert fitted is not None
    (frames, labels), (others, truth) = data["train"], data["test"]
    mean, std = frames[:, 0].mean(0), frames[:, 0].std(0)
    design = (frames[:, 0] - mean) / std
    covariance = design.T @ design / len(design) + np.eye(4)
    weights = np.linalg.inv(covariance) @ (design.T @ (labels - labels.mean())) / len(design)
    answers = (others[:, 0] - mean) / std @ weights
    assert fitted.correlation["test"] == pytest.approx(np.corrcoef(answers, truth)[0, 1], abs=1e-6)


def test_no_more_is_kept_than_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_leakage, "SAMPLED", 50)
    monkeypatch.setattr(label_leakage, "WIDEST", 3)
    found = found_in(drawn({"train"}))
    kept = {split: rows["audio"].means().shape for split, rows in found.rows.items()}
    assert kept == {"train": (50, 3), "valid": (30, 3), "test": (30, 3)}


def test_samples_without_numbers_to_learn_from_are_left_out() -> None:
    found = MeanFrames()
    frames = np.ones((2, 3))
    for number, arrays in enumerate(
        [
            {"audio": frames},
            {"audio": frames, "label": np.float32(np.nan)},
            {"audio": frames * np.inf, "label": np.float32(1)},
            {"audio": frames, "class": np.int64(5)},
            {"text": np.arange(4), "label": np.float32(1)},
            {"audio": np.zeros((0, 3)), "label": np.float32(1)},
        ]
    ):
        found.add("train", arrays, {"id": str(number)}, 6)
    assert not any(rows.frames for rows in found.rows.get("train", {}).values())
    assert leakage_lines(found) == []


def test_classes_are_compared_as_well() -> None:
    found = MeanFrames(num_classes=2)
    for split, (frames, labels) in drawn({"train", "valid"}).items():
        for i, label in enumerate(labels):
            arrays = {"audio": frames[i], "class": np.int64(label > 0)}
            found.add(split, arrays, {"id": f"{split}{i}"}, len(labels))
    assert any(line.startswith("LEAKAGE") for line in leakage_lines(found))


def test_inspect_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = drawn({"train", "valid"})
    np.save(tmp_path / "audio.npy", np.concatenate([frames for frames, _ in data.values()])[:, 0])
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "label", "audio"])
        row = 0
        for split, (_, labels) in data.items():
            for label in labels:
                writer.writerow([f"s{row}", split, label, f"audio.npy[{row}]"])
                row += 1
    convert(tmp_path / "t.csv", tmp_path / "out", Options(labels=Labels(low=-3, high=3)))
    assert main([str(tmp_path / "out")]) == 0
    assert "LEAKAGE: 'audio' finds the labels of valid" in capsys.readouterr().out
