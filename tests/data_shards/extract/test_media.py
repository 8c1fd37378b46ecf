"""Files of every kind: what of them is heard and seen, and how the others are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media_files import ENCRYPTED, astronaut, tone, write_clip

from core.command import Refused
from data_shards.extract.extractors.protocol import SOUND_RATE, Missing
from data_shards.extract.media import LIMITS, Limits, Unreadable, clip_seconds, pictures, sound


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(clips: Path) -> Path:
    """Three seconds, 25 pictures in each, the index of its parts in front."""
    return write_clip(clips / "clip.mp4", 3.0, options={"movflags": "faststart"})


def heard(path: Path, *part: float, limits: Limits = LIMITS) -> np.ndarray:
    return np.concatenate(list(sound(path, *part, limits=limits)))


def seen(path: Path, start=0.0, end=None, rate=10.0, side=160, limits=LIMITS) -> list:
    return list(pictures(path, start, end, rate, side, limits))


def test_sound_is_mono_and_of_one_rate(clip: Path):
    samples = heard(clip)
    assert samples.dtype == np.float32
    assert len(samples) / SOUND_RATE == pytest.approx(3.0, abs=0.03)
    spectrum = np.abs(np.fft.rfft(samples[8000:24000]))
    assert np.argmax(spectrum) == 220  # Hz: one second was looked at


def test_pictures_come_at_the_wanted_rate_and_size(clip: Path):
    shown = seen(clip, rate=5.0)
    assert len(shown) == 15
    assert [picture.number for picture in shown] == list(range(0, 75, 5))
    assert shown[0].pixels.shape == (90, 160, 3)
    assert seen(clip, side=1000)[0].pixels.shape == (180, 320, 3)  # never made larger


def test_a_part_is_what_the_whole_has_there(clip: Path):
    whole, part = heard(clip), heard(clip, 1.2, 2.4)
    assert len(part) == round(1.2 * SOUND_RATE)
    first = round(1.2 * SOUND_RATE)
    assert np.abs(part - whole[first : first + len(part)]).max() < 0.02
    blues = [picture.pixels[-1, -1, 2] for picture in seen(clip, 1.2, 2.4, rate=25.0)]
    expected = [picture.pixels[-1, -1, 2] for picture in seen(clip, rate=25.0)][30:60]
    assert blues == expected
    assert clip_seconds(clip, 1.2, 2.4) == pytest.approx(1.2)


def test_time_stamps_decide_and_not_counts(clips: Path):
    """Ten pictures in the first second, then two, each for half a second."""
    times = [*np.arange(10) / 10, 1.0, 1.5]
    path = write_clip(clips / "variable.mkv", 2.0, shown_at=times)
    numbers = [picture.number for picture in seen(path, rate=10.0, end=2.0)][:20]
    assert numbers[:10] == list(range(10))
    assert numbers[10:15] == [10] * 5
    assert set(numbers[15:]) == {11}


@pytest.mark.parametrize("last", [0.4, 3.0, 20.0])
def test_a_picture_that_is_shown_for_long_is_not_taken_for_a_file_cut_off(clips: Path, last: float):
    path = write_clip(
        clips / f"still{last}.mp4", shown_at=[0.0, 0.1, last], has_sound=False, fps=10
    )
    numbers = [picture.number for picture in seen(path, rate=10.0)]
    assert numbers[:2] == [0, 1]
    assert numbers.count(1) == round(10 * (last - 0.1))
    assert numbers[-1] == 2


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_pictures_are_turned_upright(clips: Path, rotation: int):
    path = write_clip(clips / f"turned{rotation}.mp4", 0.4, rotation=rotation)
    upright = seen(write_clip(clips / "straight.mp4", 0.4))[0].pixels
    turned = seen(path)[0].pixels
    expected = np.rot90(upright, rotation // 90)  # counter-clockwise
    assert turned.shape == expected.shape
    assert np.abs(turned.astype(int) - expected).mean() < 3


def test_sound_that_is_interrupted_has_silence_there(clips: Path):
    import av

    path = clips / "interrupted.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in (0, 32_000):  # one second from 0 and one from 2
            whole = (tone(1.0, 16_000) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(stream.encode(frame))
    samples = heard(path)
    assert len(samples) == 3 * SOUND_RATE
    assert not samples[17_000:31_000].any()
    assert np.abs(samples[33_000:47_000]).max() > 0.2


def test_what_a_file_lacks_is_missing(clips: Path):
    deaf = write_clip(clips / "deaf.mp4", 0.4, has_sound=False)
    blind = write_clip(clips / "blind.m4a", 0.4, has_pictures=False)
    silent = write_clip(clips / "silent.mp4", 0.4, sound=tone(0.4, loudness=0.0))
    with pytest.raises(Missing, match="no sound"):
        heard(deaf)
    with pytest.raises(Missing, match="no pictures"):
        seen(blind)
    with pytest.raises(Missing, match="silent"):
        heard(silent)
    assert seen(deaf)
    assert len(heard(blind))


def test_a_name_in_any_script_is_read(clips: Path):
    path = write_clip(clips / "Überraschung 視頻 🎬.mp4", 0.4)
    assert len(seen(path)) == 4


def spoilt(clips: Path, clip: Path, kind: str) -> Path:
    """A file that cannot be used."""
    whole = clip.read_bytes()
    path = clips / (f"{kind}.m3u8" if kind == "playlist" else f"{kind}.mp4")
    if kind == "flipped":
        changed = bytearray(whole)
        places = np.random.default_rng(1).integers(len(whole) // 3, len(whole), 300)
        for place in places:
            changed[place] ^= 0xFF
        whole = bytes(changed)
    contents = {
        "empty": b"",
        "noise": np.random.default_rng(0).bytes(5000),
        "cut": whole[: len(whole) // 2],
        "flipped": whole,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nclip.mp4\n#EXT-X-ENDLIST\n",
        "concatenation": b"ffconcat version 1.0\nfile clip.mp4\n",
    }
    if kind == "encrypted":
        return write_clip(path, 1.0, options=ENCRYPTED)
    path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "empty file"),
        ("noise", "no media"),
        ("cut", "cut off|damaged"),
        ("flipped", "damaged"),
        ("encrypted", "encrypted"),
        ("playlist", "a list of other files"),
        ("concatenation", "a list of other files|not permitted"),
    ],
)
def test_spoilt_files_are_refused_by_name(clips: Path, clip: Path, kind: str, reason: str):
    path = spoilt(clips, clip, kind)
    with pytest.raises(Unreadable, match=reason):
        heard(path)
    with pytest.raises(Unreadable, match=reason):
        seen(path)


def test_what_is_no_file_is_refused(tmp_path: Path):
    with pytest.raises(Unreadable, match="no such file"):
        clip_seconds(tmp_path / "absent.mp4", 0.0, None)
    with pytest.raises(Refused, match="a folder"):
        clip_seconds(tmp_path, 0.0, None)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(bytes=100), "too large: .* bytes"),
        (Limits(seconds=1.0), "too long: 3 s"),
        (Limits(pixels=1000), "too large: pictures of 320 x 180"),
    ],
)
def test_limits_are_kept(clip: Path, limits: Limits, reason: str):
    def read() -> None:
        clip_seconds(clip, 0.0, None, limits)
        seen(clip, limits=limits)

    with pytest.raises(Unreadable, match=reason):
        read()


def test_a_part_beyond_the_end_is_refused(clip: Path):
    assert clip_seconds(clip, 1.0, 3.5) == pytest.approx(2.0, abs=0.1)
    for part in ((4.0, None), (1.0, 9.0)):
        with pytest.raises(Unreadable, match="beyond the end"):
            clip_seconds(clip, *part)


def test_the_cover_of_a_song_is_no_video(clips: Path):
    import av

    path = clips / "song.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("mp3", rate=44_100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 96, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(astronaut()[:96, :96].copy(), format="rgb24")
        picture.pts = 0
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
        samples = tone(1.0)
        for start in range(0, len(samples), 1152):
            frame = av.AudioFrame.from_ndarray(
                samples[None, start : start + 1152], format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 44_100, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    assert len(heard(path)) / SOUND_RATE == pytest.approx(1.0, abs=0.1)
    with pytest.raises(Missing, match="no pictures"):
        seen(path)
