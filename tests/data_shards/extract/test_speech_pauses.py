"""Windows that end where nobody speaks, by what Silero VAD hears, also where it is loud."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import write_clip
from paths import ROOT

from concord.__main__ import main
from core.command import REFUSED
from data_shards.extract import speech_pauses
from data_shards.extract.clip import ClipSource
from data_shards.extract.extractors.protocol import SOUND_RATE
from data_shards.extract.speech_pauses import STEP, SpeechDetector, open_detector, speech_in
from data_shards.extract.windows import Windows, windows_of


@cache
def sentence() -> np.ndarray:
    """Two seconds of a voice, 16 kHz."""
    found = spec_from_file_location("example_clips", ROOT / "examples" / "clips.py")
    example = sys.modules["example_clips"] = module_from_spec(found)  # its dataclasses look there
    found.loader.exec_module(example)
    said = example.Voice().say(
        "the film was great and we talked about it for a long time", 165, 50, 50
    )
    places = np.arange(2 * SOUND_RATE) * said.rate / SOUND_RATE
    return np.interp(places, np.arange(len(said.samples)), said.samples).astype(np.float32)


def noise(seconds: float, loudness: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, loudness, round(seconds * SOUND_RATE)).astype(np.float32)


@cache
def talk() -> np.ndarray:
    """Three times two seconds of speech and one of noise, which is louder."""
    return np.concatenate([part for n in range(3) for part in (sentence(), noise(1.0, 0.3, n))])


def packaged_program() -> torch.jit.ScriptModule:
    """The package's own network, with weights of another training."""
    (listed,) = [entry for entry in files("silero-vad") or [] if entry.name == "silero_vad.jit"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(listed.locate()), map_location="cpu").eval()


def with_weights_of(program: torch.jit.ScriptModule) -> SpeechDetector:
    stored = program.state_dict()
    weights = {"stft_conv.weight": stored["_model.stft.forward_basis_buffer"]}
    for name, value in stored.items():
        if name.startswith("_model.encoder."):
            number, _, kind = name.removeprefix("_model.encoder.").split(".")
            weights[f"conv{int(number) + 1}.{kind}"] = value
        elif name.startswith("_model.decoder.rnn."):
            weights[f"lstm.{name.rpartition('.')[2]}_l0"] = value
        elif name.startswith("_model.decoder.decoder."):
            weights[f"final_conv.{name.rpartition('.')[2]}"] = value
    detector = SpeechDetector().eval()
    detector.load_state_dict(weights)
    return detector


def test_it_computes_what_the_package_itself_computes():
    program = packaged_program()
    program.reset_states()
    steps = torch.from_numpy(talk())[: len(talk()) // STEP * STEP]
    with torch.no_grad():
        expected = torch.cat([program(step, SOUND_RATE)[0] for step in steps.split(STEP)])
    detector = with_weights_of(program)
    found = torch.cat([detector(part.clone()) for part in steps.split(50 * STEP)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_it_tells_a_voice_from_noise_that_is_louder():
    loudness = float(np.sqrt(np.square(sentence()).mean()))
    assert np.median(speech_in(iter([sentence()]))) > 0.9
    for times in (0.0, 0.5, 3.0):
        assert speech_in(iter([noise(3.0, times * loudness)])).max() < 0.2


def test_it_does_not_depend_on_how_sound_comes_or_on_the_clip_before(
    monkeypatch: pytest.MonkeyPatch,
):
    whole = speech_in(iter([talk()]))
    monkeypatch.setattr(speech_pauses, "STEPS_AT_ONCE", 7)
    cuts = np.sort(np.random.default_rng(0).integers(0, len(talk()), 40))
    pieces = speech_in(iter(np.split(talk(), cuts)))
    np.testing.assert_allclose(pieces, whole, atol=1.01e-3)
    assert speech_in(iter([])).shape == (0,)
    assert speech_in(iter([talk()[: STEP - 1]])).shape == (0,)


def test_windows_end_in_pauses_that_are_louder_than_the_speech(tmp_path: Path):
    path = write_clip(
        tmp_path / "talk.wav",
        has_pictures=False,
        sound=np.concatenate([talk(), sentence()]),
        rate=SOUND_RATE,
        sound_codec="pcm_f32le",
    )
    clip = ClipSource("talk", path)
    by_speech = [part.start for part in windows_of(clip, Windows(4.0, "speech"))]
    by_loudness = [part.start for part in windows_of(clip, Windows(4.0, at_pauses=True))]
    assert len(by_speech) > 2
    assert all(2.0 <= start % 3 <= 3.0 for start in by_speech[1:]), by_speech
    assert not all(2.0 <= start % 3 <= 3.0 for start in by_loudness[1:]), by_loudness


def test_without_its_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_clip(tmp_path / "in" / "a.m4a", 0.3, has_pictures=False)

    def not_there(name: str) -> None:
        raise PackageNotFoundError(name)

    open_detector.cache_clear()
    monkeypatch.setattr(speech_pauses, "files", not_there)
    words = ["extract", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--audio", "none"]
    assert main([*words, "--windows", "3", "--speech-pauses"]) == REFUSED
    said = capsys.readouterr().err
    assert "needs the package silero-vad" in said
    assert "pip install 'concord-train[clips]'" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--speech-pauses"], "--speech-pauses has no effect without --windows"),
        (["--pauses"], "--pauses has no effect without --windows"),
        (["--windows", "5", "--pauses", "--speech-pauses"], "two ways of one thing"),
    ],
)
@pytest.mark.parametrize("command", ["extract", "predict"])
def test_options_without_effect_are_refused(
    tmp_path: Path, command: str, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
):
    names = ["extract", "clips"] if command == "extract" else ["predict", "bundle", "clips"]
    assert main([*names, "--out", str(tmp_path / "o.csv"), *words]) == REFUSED
    assert problem in capsys.readouterr().err
