"""Clips of three hours and pictures of 8K."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from media_files import brightening, write_clip

from data_shards.extract.clip import ClipSource, extract_clip
from data_shards.extract.extractors.registry import choose
from data_shards.extract.media import Unreadable, clip_seconds, pictures, sound
from data_shards.extract.windows import Windows, windows_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HOURS = 3
RATE = 8000


@pytest.fixture(scope="module")
def interview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hours of a tone with a pause in each half minute, and a picture every ten seconds."""
    path = tmp_path_factory.mktemp("long") / "interview.mkv"
    half_minute = np.sin(2 * np.pi * 220 * np.arange(30 * RATE) / RATE)
    half_minute[: RATE // 2] = 0
    samples = (8000 * half_minute).astype(np.int16)[None]
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for number in range(HOURS * 120):
            for ten_seconds in range(3):
                picture = brightening(number, HOURS * 120, (64, 48))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = 30 * number + 10 * ten_seconds, Fraction(1)
                container.mux(video.encode(frame))
            piece = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            piece.sample_rate, piece.pts = RATE, number * samples.shape[1]
            container.mux(audio.encode(piece))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


def test_three_hours_are_read_in_the_memory_of_minutes(interview: Path):
    assert clip_seconds(interview, 0.0, None) == pytest.approx(HOURS * 3600, abs=15)
    sum(map(len, sound(interview, 0.0, 60.0)))  # what the library needs once
    memory = psutil.Process().memory_info
    before = largest = memory().rss
    heard = seen = 0
    for number, piece in enumerate(sound(interview)):
        heard += len(piece)
        if number % 100 == 0:
            largest = max(largest, memory().rss)
    for number, _ in enumerate(pictures(interview, 0.0, None, 0.2, 64)):
        seen += 1
        if number % 100 == 0:
            largest = max(largest, memory().rss)
    assert heard == HOURS * 3600 * 16_000
    assert seen == pytest.approx(HOURS * 720, abs=3)
    assert largest - before < 64 << 20  # the samples alone would be 660 MiB


def test_three_hours_become_windows_that_end_in_pauses(interview: Path):
    parts = windows_of(ClipSource("i", interview), Windows(40.0, at_pauses=True))
    assert len(parts) > HOURS * 90
    in_pauses = [part for part in parts[1:] if part.start % 30 < 0.5]
    assert len(in_pauses) > 0.98 * len(parts[1:])
    found = extract_clip(parts[-2], choose({"audio": "egemaps"}))
    length = parts[-2].end - parts[-2].start
    assert len(found.arrays["audio"]) == pytest.approx(100 * length, abs=5)


def test_8k_is_read_and_what_is_larger_refused(tmp_path: Path):
    path = write_clip(
        tmp_path / "8k.mp4",
        pictures=lambda number: brightening(number, 2, (7680, 4320)),
        shown_at=[0.0, 0.5],
        has_sound=False,
    )
    shown = list(pictures(path, 0.0, None, 2.0, 640))
    assert [picture.pixels.shape for picture in shown] == [(360, 640, 3)] * 2
    larger = write_clip(
        tmp_path / "larger.mp4",
        pictures=lambda number: brightening(number, 2, (8192, 4608)),
        shown_at=[0.0],
        has_sound=False,
    )
    with pytest.raises(Unreadable, match="too large"):
        list(pictures(larger, 0.0, None, 2.0, 640))
