"""Frames of a frozen encoder, made once: a model scores them as it scores sound and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from media_shards import convert_media, write_media_table
from tiny_media_models import save_vit, save_wav2vec2

from core.batch import Utterances
from core.building import build_model
from core.encoders.backbones.media_encoders import EncoderConfig
from core.encoders.inputs import InputConfig
from core.models.baseline import Baseline
from data_shards.batches import utterances
from data_shards.media.encode_shards import main as encode
from data_shards.shards.manifest import Manifest, read_manifest
from data_shards.stream import Stream
from data_shards.verify import verify
from launch.tasks.data_spec import sentiment_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of sound and pictures, the encoders of both, and the shards of their frames."""
    folder = tmp_path_factory.mktemp("encoded")
    convert_media(write_media_table(folder), folder / "raw")
    audio, vision = save_wav2vec2(folder / "wav2vec2"), save_vit(folder / "vit")
    words = [str(folder / "raw"), "--audio", str(audio), "--vision", str(vision)]
    assert encode([*words, "--out", str(folder / "frames")]) == 0
    return folder


def model_of(manifest: Manifest, **encoders: EncoderConfig) -> Any:
    data = sentiment_spec(manifest, None, {"audio": "audio", "vision": "vision"})
    inputs = InputConfig(standardise=False, **encoders)
    options = Baseline.Config(modalities=("audio", "vision"), inputs=inputs)
    return build_model("baseline", options, data).eval()


def batches(folder: Path) -> list[Utterances]:
    stream = Stream(folder, "test", global_batch=4, shuffle=False)
    found = [utterances(arrays) for (arrays,) in stream.epoch(0)]
    stream.close()
    return found


def test_a_model_scores_the_frames_as_it_scores_the_media(folder: Path):
    raw = model_of(
        read_manifest(folder / "raw"),
        audio=EncoderConfig(source=str(folder / "wav2vec2"), train="none"),
        vision=EncoderConfig(source=str(folder / "vit"), train="none"),
    )
    frames = model_of(read_manifest(folder / "frames"))
    frames.predict.load_state_dict(raw.predict.state_dict())
    seen = 0
    for left, right in zip(batches(folder / "raw"), batches(folder / "frames"), strict=True):
        assert torch.equal(left.index, right.index)
        assert torch.equal(left.label, right.label)
        with torch.no_grad():
            torch.testing.assert_close(raw(left).score, frames(right).score, rtol=1e-4, atol=1e-5)
        seen += len(left)
    assert seen == 6


def test_all_else_stays_as_it_was(folder: Path):
    before, after = read_manifest(folder / "raw"), read_manifest(folder / "frames")
    assert after.fields["audio"].shape == (None, 16)
    assert after.fields["vision"].shape == (None, 12)
    assert after.fields["label"] == before.fields["label"]
    assert after.moments.keys() == {"audio", "vision"}
    assert after.max_length["vision"] == before.max_length["vision"]
    assert after.source["encoded"]["audio"]["source"] == str(folder / "wav2vec2")
    assert not [
        found for found in verify(folder / "frames", deep=True, workers=1) if found.corruption
    ]
    for split in before.splits:
        left, right = (Stream(folder / kind, split, global_batch=4) for kind in ("raw", "frames"))
        everything = range(before.samples(split))
        assert left.records(everything) == right.records(everything)
        left.close()
        right.close()


def test_what_cannot_be_encoded_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    raw, audio = str(folder / "raw"), str(folder / "wav2vec2")
    for words, said in (
        ([raw, "--audio", audio, "--out", raw], "is not empty; give another --out"),
        ([raw, "--out", str(folder / "new")], "give the encoder of a field with --audio DIR"),
        (
            [str(folder / "frames"), "--audio", audio, "--out", str(folder / "new")],
            "holds no sound or pictures as 'audio'; it has media in no field",
        ),
        ([raw, "--audio", str(folder / "none"), "--out", str(folder / "new")], "no such folder"),
    ):
        assert encode(words) != 0
        assert said in capsys.readouterr().err
        assert not (folder / "new").exists()
