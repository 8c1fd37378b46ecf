"""Codebooks: centres of scaled train frames, and of nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import codebook
from data_shards.codebook import load_codebooks, main, write
from data_shards.convert import convert
from data_shards.shards.manifest import DataError, read_manifest
from data_shards.synthetic import make

CENTRES = np.array(
    [[0, 0], [10, 0], [0, 1000], [10, 1000]], np.float64
)  # the second feature is on another scale


def _raw(folder: Path, test_shift: float = 0.0) -> Path:
    """Sound whose train frames lie around four centres."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = make(40)
    for split in ("train", "valid", "test"):
        part = content[split]
        spread = np.array([0.3, 30.0])
        nearest = rng.integers(4, size=(len(part["id"]), 50))
        part["audio"] = CENTRES[nearest] + spread * rng.normal(size=(*nearest.shape, 2))
        if split != "train":
            part["audio"] += test_shift
        part["audio_lengths"] = [50] * len(part["id"])
    path = folder / "mosi.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    convert(_raw(tmp_path), tmp_path / "out", shard_size=9)
    return tmp_path / "out"


def test_the_centres_are_found_on_the_scale_of_the_model(shards: Path) -> None:
    write(shards, clusters=4)
    manifest = read_manifest(shards)
    mean, std = (np.array(part) for part in manifest.moments["audio"])
    found = load_codebooks(shards, manifest)["audio"]
    assert found.dtype == np.float32
    order = np.lexsort((found[:, 0], found[:, 1] > 0))
    np.testing.assert_allclose(found[order], (CENTRES - mean) / std, atol=0.05)


def test_valid_and_test_frames_do_not_matter(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "other").mkdir()
    convert(_raw(tmp_path / "other", test_shift=500.0), tmp_path / "other" / "out", shard_size=9)
    for folder in (shards, tmp_path / "other" / "out"):
        write(folder, modalities=["audio"])
    assert (shards / "codebook.npz").read_bytes() == (
        tmp_path / "other" / "out" / "codebook.npz"
    ).read_bytes()


def test_only_a_part_of_very_many_frames_is_used(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codebook, "MOST_FRAMES", 300)
    write(shards, clusters=4, modalities=["audio"])
    manifest = read_manifest(shards)
    mean, std = (np.array(part) for part in manifest.moments["audio"])
    found = load_codebooks(shards, manifest)["audio"]
    order = np.lexsort((found[:, 0], found[:, 1] > 0))
    np.testing.assert_allclose(found[order], (CENTRES - mean) / std, atol=0.2)


def test_the_manifest_vouches_for_the_file(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(shards)
    assert load_codebooks(shards, before) == {}
    assert main([str(shards)]) == 0
    assert "16 centres each for audio, vision" in capsys.readouterr().out
    manifest = read_manifest(shards)
    assert {name: centres.shape for name, centres in load_codebooks(shards, manifest).items()} == {
        "audio": (16, 2),
        "vision": (16, 20),
    }
    assert manifest.extras["codebook"] == {
        "clusters": 16,
        "seed": 0,
        "modalities": ["audio", "vision"],
    }
    assert manifest.splits == before.splits
    first = (shards / "codebook.npz").read_bytes()
    main([str(shards)])
    assert (shards / "codebook.npz").read_bytes() == first
    (shards / "codebook.npz").write_bytes(first[:-1] + b"x")
    with pytest.raises(DataError, match="not the file that manifest.json vouches for"):
        load_codebooks(shards, manifest)
    (shards / "codebook.npz").unlink()
    with pytest.raises(DataError, match="is missing; make it again"):
        load_codebooks(shards, manifest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clusters", "1"], "at least 2"),
        (["--clusters", "2000"], "too few for 2000 clusters"),
        (["--modalities", "smell"], "no frames called 'smell'; it has audio, vision"),
    ],
)
def test_what_cannot_be_clustered_is_refused(
    shards: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = (shards / "manifest.json").read_bytes()
    assert main([str(shards), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert (shards / "manifest.json").read_bytes() == before
    assert not (shards / "codebook.npz").exists()
