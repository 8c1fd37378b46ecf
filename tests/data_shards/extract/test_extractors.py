"""eGeMAPS, the face, encoders and recognisers, each against what it should be by other means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from media_files import astronaut, face_at, tone
from tiny_media_models import (
    save_speller,
    save_vit,
    save_wav2vec2,
    save_whisper,
    save_writer,
)

from core.command import Refused
from data_shards.extract.extractors import egemaps as egemaps_module
from data_shards.extract.extractors.face_measures import MEASURES, POSE
from data_shards.extract.extractors.protocol import SOUND_RATE, Missing, Picture
from data_shards.extract.extractors.registry import choose, open_extractors, parse_choice
from data_shards.extract.recipe import ExtractionRecipe

FOUND = 0
FEATURE = {name: 1 + number for number, name in enumerate(POSE + MEASURES)}
SPEED = {name: 1 + len(FEATURE) + number for number, name in enumerate(POSE + MEASURES)}


def voice(seconds: float) -> np.ndarray:
    """Something with pitch and pauses."""
    time = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    pitch = 140 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SOUND_RATE
    overtones = sum(np.sin(k * phase) / k for k in range(1, 12))
    return (0.1 * overtones * (np.sin(2 * np.pi * 1.3 * time) > -0.5)).astype(np.float32)


def opened(modality: str, words: str):
    return choose({modality: words}).opened[modality][1]


@pytest.fixture(scope="module")
def egemaps():
    return opened("audio", "egemaps")


@pytest.fixture(scope="module")
def face68():
    return opened("vision", "face68")


def test_egemaps_is_what_opensmile_says(egemaps):
    import opensmile

    smile = opensmile.Smile(
        opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors
    )
    samples = voice(1.5)
    frames = egemaps.frames(iter(np.array_split(samples, 7)))
    assert frames.shape == (146, 25)  # 100 a second, the last ones need 60 ms
    np.testing.assert_array_equal(frames, smile.process_signal(samples, SOUND_RATE).to_numpy())


def test_egemaps_in_pieces_is_that_of_the_whole(egemaps, monkeypatch: pytest.MonkeyPatch):
    samples = voice(9.3)
    whole = egemaps.frames(iter([samples]))
    monkeypatch.setattr(egemaps_module, "CORE", 3)
    pieces = egemaps.frames(iter(np.array_split(samples, 20)))
    assert pieces.shape == whole.shape
    deviation = whole.std(axis=0)
    is_equal = (np.abs(pieces - whole) < 0.1 * deviation).all(axis=1)
    assert is_equal.mean() > 0.98  # pitch is followed over time, so a border may shift a frame


def test_sound_too_short_for_a_frame_is_missing(egemaps):
    with pytest.raises(Missing, match="too short"):
        egemaps.frames(iter([voice(0.05)]))


def shown(*pictures: np.ndarray) -> Iterator[Picture]:
    return iter([Picture(pixels, number) for number, pixels in enumerate(pictures)])


def test_a_face_that_moves_is_followed(face68):
    pictures = [face_at(30 + 4 * step, 20) for step in range(14)]
    frames = face68.frames(shown(*pictures))
    assert frames.shape == (14, 169)
    assert frames.dtype == np.float32
    assert frames[:, FOUND].all()
    steps = np.diff(frames[:, FEATURE["x"]]) * 360  # pixels, of a picture 360 high
    assert steps.mean() == pytest.approx(4.0, abs=0.4)
    assert np.abs(np.diff(frames[:, FEATURE["y"]]) * 360).max() < 2.5
    assert np.diff(frames[:, FEATURE["x"]]) * 10 == pytest.approx(frames[1:, SPEED["x"]], abs=1e-5)
    assert not frames[0, SPEED["yaw"] :][:16].any()


def test_tracking_gives_about_what_searching_gives(face68):
    pictures = [face_at(30 + 4 * step, 20) for step in range(10)]
    followed = face68.frames(shown(*pictures))
    searched = opened("vision", "face68,detect_every=1").frames(shown(*pictures))
    # distances between the eyes: less than what the landmarks jitter by anyway
    assert np.abs(followed[:, -136:] - searched[:, -136:]).mean() < 0.03


def test_tilting_the_head_changes_the_roll_and_little_else(face68):
    from skimage.transform import rotate

    straight = face_at(90, 30)
    angle = 12.0
    tilted = (rotate(straight, angle, mode="edge") * 255).astype(np.uint8)  # counter-clockwise
    first = face68.frames(shown(straight))[0]
    second = face68.frames(shown(tilted))[0]
    turned = np.degrees(second[FEATURE["roll"]] - first[FEATURE["roll"]])
    assert turned == pytest.approx(angle, abs=2.0)
    assert abs(second[FEATURE["mouth width"]] - first[FEATURE["mouth width"]]) < 0.06


def test_a_mirrored_face_looks_the_other_way(face68):
    straight = face_at(90, 30)
    first = face68.frames(shown(straight))[0]
    mirrored = face68.frames(shown(straight[:, ::-1].copy()))[0]
    assert mirrored[FEATURE["yaw"]] == pytest.approx(-first[FEATURE["yaw"]], abs=0.1)
    assert mirrored[FEATURE["left brow"]] == pytest.approx(first[FEATURE["right brow"]], abs=0.08)


def test_no_face_is_missing_and_pictures_without_one_are_zeros(face68):
    grey = np.full((360, 480, 3), 90, np.uint8)
    with pytest.raises(Missing, match="no face"):
        face68.frames(shown(*[grey] * 5))
    frames = face68.frames(shown(*[face_at(90, 30)] * 3, *[grey] * 30))
    assert frames[:3, FOUND].all()
    assert not frames[20:].any()


def test_clips_do_not_depend_on_the_clip_before(face68):
    pictures = [face_at(60 + 3 * step, 20) for step in range(4)]
    alone = face68.frames(shown(*pictures))
    face68.frames(shown(face_at(150, 55), face_at(140, 50)))
    np.testing.assert_array_equal(face68.frames(shown(*pictures)), alone)


def test_an_encoder_of_sound_says_what_it_says_of_the_whole(tmp_path: Path):
    import torch
    import transformers

    folder = save_wav2vec2(tmp_path)
    encoder = opened("audio", f"hf:{folder}")
    assert (encoder.record.width, encoder.record.frame_rate) == (16, 50.0)
    samples = voice(3.0)
    prepare = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    model = transformers.Wav2Vec2Model.from_pretrained(folder).eval()
    values = prepare(samples, sampling_rate=SOUND_RATE, return_tensors="pt").input_values
    with torch.inference_mode():
        expected = model(values).last_hidden_state[0].numpy()
    np.testing.assert_allclose(encoder.frames(iter([samples])), expected, atol=1e-5)
    assert encoder.frames(iter([voice(45.0)])).shape == (2249, 16)  # three pieces


def test_an_encoder_of_whispers_kind_leaves_out_what_was_padding(tmp_path: Path):
    encoder = opened("audio", f"hf:{save_whisper(tmp_path)}")
    assert (encoder.record.width, encoder.record.frame_rate) == (16, 50.0)
    assert encoder.frames(iter([voice(2.0)])).shape == (100, 16)
    assert encoder.frames(iter([voice(21.0)])).shape == (1050, 16)


@pytest.mark.parametrize("crop", ["face", "frame"])
def test_an_encoder_of_images(tmp_path: Path, crop: str):
    encoder = opened("vision", f"hf:{save_vit(tmp_path)},crop={crop},fps=2")
    assert (encoder.record.width, encoder.record.frame_rate) == (12, 2.0)
    here, there = face_at(30, 20), face_at(120, 40)
    grey = np.full((360, 480, 3), 90, np.uint8)
    frames = encoder.frames(shown(here, there, *[grey] * 6))
    assert frames.shape == (8, 12)
    apart = np.abs(frames[0] - frames[1]).max()
    if crop == "face":  # cut out, it is nearly the same face
        assert apart < 0.5 * np.abs(frames[0] - encoder._encode(grey)).max()
        assert not frames[-1].any()
        with pytest.raises(Missing, match="no face"):
            encoder.frames(shown(grey))
    else:
        assert apart > 0
        np.testing.assert_array_equal(frames[-1], encoder._encode(grey))


@pytest.mark.filterwarnings("ignore:std\\(\\):UserWarning")  # one head of one layer is looked at
@pytest.mark.parametrize("save", [save_speller, save_writer])
def test_a_recogniser_gives_words_with_times(tmp_path: Path, save):
    recogniser = opened("text", f"whisper:{save(tmp_path)}")
    noise = np.random.default_rng(0).normal(0, 0.1, 40 * SOUND_RATE).astype(np.float32)
    words = recogniser.words(iter(np.array_split(noise, 9)))
    assert len(words) > 10
    starts = [word.start for word in words]
    assert starts == sorted(starts)
    assert all(0 <= word.start <= word.end <= 40 for word in words)
    assert words[-1].end > 30  # of the second piece


def test_a_recipe_opens_the_same_extractors_again(tmp_path: Path):
    folder = save_wav2vec2(tmp_path / "model")
    first = choose({"text": "given", "audio": f"hf:{folder}"})
    recipe = ExtractionRecipe.from_json(first.recipe.to_json(), "here")
    assert recipe == first.recipe
    again = open_extractors(recipe)
    samples = voice(1.0)
    frames = [e.opened["audio"][1].frames(iter([samples])) for e in (first, again)]
    np.testing.assert_array_equal(*frames)
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(Refused, match="no such folder"):
        open_extractors(recipe)
    assert open_extractors(recipe, {"audio": str(moved)}).recipe == recipe


def test_another_version_or_model_is_refused_with_both_sides():
    recipe = choose({"vision": "face68"}).recipe
    (record,) = recipe.extractors
    other = replace(record, version="1 dlib 0.1", checksum="0" * 64)
    with pytest.raises(Refused, match="not the extractor") as refusal:
        open_extractors(replace(recipe, extractors=(other,)))
    table = "\n".join(refusal.value.table)
    assert "1 dlib 0.1" in table
    assert record.version in table
    assert record.checksum in table


@pytest.mark.parametrize(
    ("modality", "words", "problem"),
    [
        ("audio", "egemap", "did you mean 'egemaps'"),
        ("vision", "face68,fp=3", "did you mean 'fps'"),
        ("vision", "face68,fps=0", "not between"),
        ("vision", "face68,fps=many", "is no float"),
        ("audio", "hf", "hf:FOLDER"),
        ("text", "given:x", "write it as given"),
        ("audio", "hf:nowhere", "no such folder"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(modality, words, problem):
    with pytest.raises(Refused, match=problem):
        choose({modality: words})


@pytest.mark.parametrize(
    ("module", "modality", "words"),
    [("opensmile", "audio", "egemaps"), ("dlib", "vision", "face68")],
)
def test_without_its_package_an_extractor_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, modality: str, words: str
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Refused, match=r"pip install 'concord-train\[clips\]'"):
        choose({modality: words})


def test_options_are_read_and_filled_up():
    assert parse_choice("vision", "face68,fps=5") == (
        "face68",
        {"fps": 5.0, "detect_every": 10, "longest_side": 640},
    )
    assert parse_choice("vision", "hf:a,b/c,crop=frame")[1]["path"] == "a,b/c"
    with pytest.raises(Refused, match="nothing to extract"):
        choose({"text": "none", "audio": "none"})


def test_the_picture_of_the_tests_is_a_face():
    assert astronaut().shape == (300, 300, 3)
    assert np.abs(tone(0.1)).max() > 0.2
