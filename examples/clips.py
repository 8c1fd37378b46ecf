"""Made-up clips with speech and a face, and the whole way from a clip to a score.

    pip install 'concord-train[clips,examples]'
    python examples/clips.py demo_clips            # clips, features, shards, two models, scores

A voice (eSpeak NG) says the sentences of the demo, higher and livelier the better the clip's mood;
the corners of a mouth (the astronaut of scikit-image) go up and down with it; the head moves and
tilts whatever the mood. docs/clips.md goes through the steps, and says what such clips do not show.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

from data_shards import synthetic
from data_shards.synthetic import Utterance, utterance, vocabulary

SHARES = {"train": 96, "valid": 24, "test": 12}
FRESH = 24  # clips that are made after training, of other speakers
# Of the demo's adjectives, so few that 96 clips show each of them often enough to learn it.
ADJECTIVES = {"terrible", "awful", "bad", "boring", "nice", "good", "great", "wonderful"}
FPS = 12
FACE = (slice(0, 300), slice(90, 390))  # of the astronaut's picture
EYES, MOUTH = (135.0, 102.0), (133.0, 145.0)  # where they are in that part: right, down
MOUTH_HALF = 24.0  # pixels from its middle to a corner
LIFT = 4.0  # pixels by which a corner goes up for a face that says 1
WORD = 1  # kinds of eSpeak's events
SETTINGS = ["batch_size=8", "epochs=40", "patience=12", "threads=1"]


@dataclass(frozen=True)
class Speech:
    """Spoken words."""

    samples: np.ndarray  # (n,) float32
    rate: int
    words: list[tuple[str, float, float]]  # with the seconds of their start and end


class Event(ctypes.Structure):
    """What eSpeak says about the sound that it hands over."""

    _fields_ = [
        ("kind", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("position", ctypes.c_int),  # of the word in the text, from 1
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("value", ctypes.c_char * 8),
    ]


class Voice:
    """eSpeak NG's library, which the package espeakng-loader brings."""

    RATE, PITCH, RANGE = 1, 3, 4  # its parameters
    RETRIEVE, CHARACTERS, UTF8 = 1, 1, 1  # hand sound over; count characters; of UTF-8

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            sys.exit("a voice is needed: pip install espeakng-loader")
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self._rate = self._library.espeak_Initialize(self.RETRIEVE, 0, data, 0)
        if self._rate <= 0:
            sys.exit(f"eSpeak NG does not start with its data in {data.decode()}")
        self._library.espeak_SetVoiceByName(b"en")
        self._pieces: list[np.ndarray] = []
        self._starts: list[tuple[int, int, float]] = []
        function = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
        )
        self._callback = function(self._take)  # kept, for the library calls it later
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, rate: int, pitch: int, liveliness: int) -> Speech:
        """A sentence: words a minute, pitch and its range from 0 to 99."""
        for parameter, value in ((self.RATE, rate), (self.PITCH, pitch), (self.RANGE, liveliness)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        self._starts.clear()
        encoded = text.encode("utf-8")
        self._library.espeak_Synth(
            encoded, len(encoded) + 1, 0, self.CHARACTERS, 0, self.UTF8, None, None
        )
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._pieces).astype(np.float32) / 32768
        ends = [start for _, _, start in self._starts[1:]] + [len(samples) / self._rate]
        words = []
        for (position, length, start), end in zip(self._starts, ends, strict=True):
            words.append((text[position - 1 : position - 1 + length], start, end))
        return Speech(samples, self._rate, words)

    def _take(self, sound: ctypes.Array, count: int, events: ctypes.Array) -> int:
        if sound and count:
            self._pieces.append(np.ctypeslib.as_array(sound, (count,)).copy())
        number = 0
        while events[number].kind:
            event = events[number]
            if event.kind == WORD:
                self._starts.append((event.position, event.length, event.milliseconds / 1000))
            number += 1
        return 0


@cache
def the_voice() -> Voice:
    """The one of this process: eSpeak NG does not start twice."""
    return Voice()


def astronaut() -> np.ndarray:
    """The face (300, 300, 3) uint8."""
    try:
        from skimage.data import astronaut as picture
    except ImportError:
        sys.exit("a face is needed: pip install scikit-image")
    return np.ascontiguousarray(picture()[FACE])


def warped(face: np.ndarray, lift: float, opening: float, tilt: float, shift: tuple) -> np.ndarray:
    """The face with the corners of the mouth ``lift`` pixels higher, the lower lip ``opening``
    pixels lower, turned by ``tilt`` radians and moved by ``shift`` pixels (right, down)."""
    height, width = face.shape[:2]
    down, right = np.mgrid[0:height, 0:width].astype(np.float64)
    # for every pixel of the picture, where it is in the face: first undo moving and turning
    x, y = right - shift[0] - EYES[0], down - shift[1] - EYES[1]
    x, y = (
        np.cos(tilt) * x - np.sin(tilt) * y + EYES[0],
        np.sin(tilt) * x + np.cos(tilt) * y + EYES[1],
    )
    across, below = (x - MOUTH[0]) / MOUTH_HALF, (y - MOUTH[1]) / MOUTH_HALF
    near = np.exp(-((across / 1.4) ** 4) - (below / 0.8) ** 2)
    y = y + lift * near * (np.minimum(across**2, 1.5) - 0.4)
    y = y - opening * near * (below > 0.1)
    channels = [
        map_coordinates(face[..., channel], (y, x), order=1, mode="nearest") for channel in range(3)
    ]
    return np.stack(channels, axis=-1)


def write_clip(path: Path, said: Utterance, voice: Voice, rng: np.random.Generator) -> Speech:
    """Speak the sentence and show the face while it is spoken, as H.264 and AAC in an mp4."""
    import av

    speech = voice.say(
        said.text,
        rate=round(165 + 12 * said.voice),
        pitch=int(np.clip(48 + 16 * said.voice + rng.normal(0, 3), 5, 95)),
        liveliness=int(np.clip(50 + 18 * said.voice, 5, 95)),
    )
    face = astronaut()
    moves = rng.uniform(0.2, 0.6, 3)  # times a second: right, down, tilt
    phases = rng.uniform(0, 2 * np.pi, 3)
    seconds = len(speech.samples) / speech.rate
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = face.shape[1], face.shape[0], "yuv420p"
        audio = container.add_stream("aac", rate=speech.rate, layout="mono")
        for number in range(int(seconds * FPS)):
            time = number / FPS
            right, down, tilt = np.sin(2 * np.pi * moves * time + phases)
            here = speech.samples[int(time * speech.rate) :][: speech.rate // FPS]
            opening = min(12.0 * float(np.sqrt(np.mean(here**2))), 3.0)
            pixels = warped(face, LIFT * said.face, opening, 0.08 * tilt, (10 * right, 6 * down))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, len(speech.samples), 1024):
            piece = speech.samples[None, start : start + 1024]
            sound = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(piece), format="fltp", layout="mono"
            )
            sound.sample_rate, sound.pts = speech.rate, start
            sound.time_base = Fraction(1, speech.rate)
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return speech


def plain_utterance(rng: np.random.Generator) -> Utterance:
    """What a clip says, in few words: none of the demo's other adjectives, no negation."""
    others = {"not", *synthetic.ADJECTIVES} - ADJECTIVES
    while True:
        said = utterance(rng)
        if not others & set(said.text.split()):
            return said


def make_clips(out: Path, table: str, splits: dict[str, int], seed: int) -> Path:
    """Clips of several splits and their table; a clip's label is what words, voice and face come
    to."""
    rng = np.random.default_rng(seed)
    voice = the_voice()
    (out / "clips").mkdir(parents=True, exist_ok=True)
    columns = ["id", "file", "transcript", "words", "label", "split"]
    with (out / table).open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        for split, count in splits.items():
            for number in range(count):
                name = f"{Path(table).stem}_{split}_{number:03d}"
                said = plain_utterance(rng)
                speech = write_clip(out / "clips" / f"{name}.mp4", said, voice, rng)
                rows.writerow(
                    {
                        "id": name,
                        "file": f"clips/{name}.mp4",
                        "transcript": said.text,
                        "words": json.dumps(speech.words),
                        "label": f"{said.label:.1f}",
                        "split": split,
                    }
                )
    return out / table


def save_tokenizer(folder: Path) -> Path:
    """A tokenizer that knows the words of the demo, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    number_of = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(number_of, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(word, number_of[word]) for word in ("[CLS]", "[SEP]")],
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    special = {f"{name}_token": word for name, word in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def concord(*words: object) -> None:
    """A command, said before it is run."""
    command = [str(word) for word in words]
    print("concord", *command, flush=True)
    done = subprocess.run([sys.executable, "-m", "concord", *command])
    if done.returncode:
        sys.exit(done.returncode)


def correlation(scores: Path, table: Path) -> float:
    """Of predicted scores with the labels of a table."""
    columns = []
    for path, column in ((scores, "score"), (table, "label")):
        with path.open(encoding="utf-8", newline="") as file:
            columns.append({row["id"]: float(row[column]) for row in csv.DictReader(file)})
    predicted, labels = columns
    pairs = np.array([(predicted[name], labels[name]) for name in labels])
    return float(np.corrcoef(pairs.T)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="also train each modality alone")
    parser.add_argument("--only-clips", action="store_true", help="make clips and tables, no more")
    words = parser.parse_args()
    out = words.out
    table = make_clips(out, "table.csv", SHARES, words.seed)
    fresh = make_clips(out, "fresh.csv", {"test": FRESH}, words.seed + 1000)
    tokenizer = save_tokenizer(out / "tokenizer")
    if words.only_clips:
        return
    shards = out / "shards"
    concord(
        *("extract", table, "--out", out / "features", "--jobs", words.jobs),
        *("--shards", shards, "--labels", "-3:3", "--tokenizer", tokenizer),
    )
    runs = {model: [f"{model}/demo"] for model in ("baseline", "hscl")}
    if words.alone:
        for modality in ("text", "audio", "vision"):
            runs[f"baseline_{modality}"] = ["baseline/demo", f"options.modalities={modality}"]
    for name, settings in runs.items():
        concord("train", *settings, f"data={shards}", f"run_dir={out / name}", *SETTINGS)
        reads_text = not name.endswith(("_audio", "_vision"))
        words_of_text = ["--tokenizer", tokenizer] if reads_text else []
        concord("export", out / name, "--out", out / f"{name}_bundle", *words_of_text)
        scores = out / f"{name}_scores.csv"
        concord("predict", out / f"{name}_bundle", fresh, "--out", scores)
        print(f"{name}: Corr {correlation(scores, fresh):.3f} on {FRESH} fresh clips", flush=True)


if __name__ == "__main__":
    main()
