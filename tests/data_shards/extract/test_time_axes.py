"""Pieces, pauses, windows, words and head angles: what can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import tone, write_clip

from core.command import Refused
from data_shards.extract.clip import ClipSource
from data_shards.extract.extractors.face_measures import _HEAD, head_angles
from data_shards.extract.extractors.pieces import cut_at_pauses, fixed_pieces
from data_shards.extract.extractors.protocol import SOUND_RATE, Word
from data_shards.extract.windows import Windows, windows_of
from data_shards.extract.word_times import mean_by_word


@settings(deadline=None, max_examples=200)
@given(
    length=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    core=st.integers(3, 25),
    context=st.integers(0, 3),
)
def test_fixed_pieces_do_not_depend_on_how_sound_comes(length, cuts, core, context):
    sound = np.arange(length, dtype=np.float32)
    parts = np.split(sound, sorted(cut for cut in cuts if cut <= length))
    pieces = list(fixed_pieces(iter(parts), core, context))
    whole = list(fixed_pieces(iter([sound]), core, context))
    assert [piece[0].tolist() for piece in pieces] == [piece[0].tolist() for piece in whole]
    cores = []
    for number, (samples, before, is_last) in enumerate(pieces):
        assert before == (context if number else 0)
        assert is_last == (number == len(pieces) - 1)
        cores += samples[before : None if is_last else before + core].tolist()
    assert cores == sound.tolist()


def test_sound_is_cut_where_it_is_quiet():
    samples = np.ones(10 * SOUND_RATE, np.float32)
    for second in (2.5, 5.2):
        middle = round(second * SOUND_RATE)
        samples[middle - 2000 : middle + 2000] = 0
    pieces = list(cut_at_pauses(iter([samples]), 4 * SOUND_RATE, 2 * SOUND_RATE))
    ends = np.cumsum([len(piece) for piece in pieces]) / SOUND_RATE
    assert ends[:2] == pytest.approx([2.5, 5.2], abs=0.13)
    assert ends[-1] == 10.0
    np.testing.assert_array_equal(np.concatenate(pieces), samples)


def test_windows_cover_a_clip_and_take_the_words_that_begin_in_them(tmp_path: Path):
    path = write_clip(tmp_path / "long.m4a", 7.3, has_pictures=False)
    words = (Word("one", 0.5, 1.0), Word("two", 2.9, 3.4), Word("three", 6.9, 7.2))
    clip = ClipSource("long", path, transcript="one two three", words=words)
    parts = windows_of(clip, Windows(3.0))
    assert [part.id for part in parts] == ["long@0", "long@3", "long@6"]
    assert [(part.start, part.end) for part in parts] == [(0.0, 3.0), (3.0, 6.0), (6.0, None)]
    assert [part.transcript for part in parts] == ["one two", "", "three"]
    assert parts[2].words[0].start == pytest.approx(0.9)
    inner = windows_of(ClipSource("in", path, start=2.0, end=6.5), Windows(2.0))
    assert [(part.start, part.end) for part in inner] == [(2.0, 4.0), (4.0, 6.5)]


def test_windows_end_in_pauses(tmp_path: Path):
    samples = tone(9.0)
    for second in (2.6, 4.9, 7.5):
        middle = round(second * 44_100)
        samples[middle - 6000 : middle + 6000] = 0
    path = write_clip(tmp_path / "pauses.m4a", sound=samples, has_pictures=False)
    parts = windows_of(ClipSource("p", path), Windows(3.0, at_pauses=True))
    assert [part.start for part in parts] == pytest.approx([0.0, 2.6, 4.9, 7.5], abs=0.15)
    assert parts[1].id == f"p@{parts[1].start:g}"


def test_windows_of_what_cannot_be_read_is_the_clip_itself(tmp_path: Path):
    (tmp_path / "bad.mp4").write_bytes(b"bad")
    clip = ClipSource("bad", tmp_path / "bad.mp4")
    assert windows_of(clip, Windows(3.0)) == [clip]
    with pytest.raises(Refused, match="1 second or more"):
        Windows(0.2)


def test_a_word_has_the_mean_of_its_frames():
    frames = np.arange(20, dtype=np.float32)[:, None] * [1.0, 10.0]  # 10 in a second
    words = [Word("a", 0.0, 0.3), Word("b", 0.3, 0.5), Word("tiny", 0.71, 0.72)]
    words += [Word("late", 1.9, 2.0), Word("beyond", 2.4, 2.9)]
    aligned = mean_by_word(frames, 10.0, words)
    assert aligned.dtype == np.float32
    assert aligned[:, 0].tolist() == [1.0, 3.5, 7.0, 19.0, 19.0]
    np.testing.assert_array_equal(aligned[:, 1], 10 * aligned[:, 0])


@pytest.mark.parametrize(
    "angles", [(0.0, 0.0, 0.0), (0.4, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, -0.5)]
)
def test_head_angles_are_those_by_which_a_head_was_turned(angles):
    """The head itself, turned about one axis and seen from far away."""
    yaw, pitch, roll = angles
    cosine, sine = np.cos, np.sin
    about_up = [[cosine(yaw), 0, sine(yaw)], [0, 1, 0], [-sine(yaw), 0, cosine(yaw)]]
    about_right = [[1, 0, 0], [0, cosine(pitch), sine(pitch)], [0, -sine(pitch), cosine(pitch)]]
    about_view = [[cosine(roll), -sine(roll), 0], [sine(roll), cosine(roll), 0], [0, 0, 1]]
    turned = (
        np.array(list(_HEAD.values()))
        @ (np.array(about_up) @ np.array(about_right) @ np.array(about_view)).T
    )
    landmarks = np.zeros((68, 2))
    landmarks[list(_HEAD)] = 200 + 2 * turned[:, :2] * (1.0, -1.0)
    assert head_angles(landmarks) == pytest.approx(angles, abs=1e-6)
