"""How fast features are made from clips: times real time, on one core.

    python benchmarks/clips.py work=FOLDER [seconds=40] [repeats=2]

A clip of 640 x 360 at 25 pictures a second in H.264 and AAC is made in ``work``: a face that moves,
and a voice of changing pitch. Then, each in a process of one thread, of which the CPU seconds
count: decoding alone, eGeMAPS, and ``face68`` with 10 pictures a second, once with tracking (a
search in every tenth picture) and once with a search in each. Decoding is part of all of them; the
fastest of the repeats counts.

The table is printed, written into ``docs/clips.md``, and saved with machine and versions as
``benchmarks/results/clips.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, paste, read_words, refuse_others, run_command  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "clips.json"
DEFAULTS = {"work": "", "seconds": "40", "repeats": "2"}
WIDTH, HEIGHT, FPS, RATE = 640, 360, 25, 44_100
MEASURED = {
    "decoding sound": ("sound", ""),
    "decoding pictures, 10 a second": ("pictures", ""),
    "egemaps": ("audio", "egemaps"),
    "face68, tracking": ("vision", "face68"),
    "face68, a search in every picture": ("vision", "face68,detect_every=1"),
}


def make_clip(path: Path, seconds: int) -> Path:
    """The clip that is measured, unless it is there."""
    import av
    from skimage.data import astronaut

    if path.exists():
        return path
    face = astronaut()[0:300, 90:390]
    moment = np.arange(seconds * RATE) / RATE
    pitch = 150 + 40 * np.sin(2 * np.pi * 0.5 * moment)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 15)) * 0.1
    voice = (voice * (np.sin(2 * np.pi * 0.9 * moment) > -0.6)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(seconds * FPS):
            picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
            left = int(170 + 120 * np.sin(2 * np.pi * 0.2 * number / FPS))
            picture[30:330, left : left + 300] = face
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, len(voice), 1024):
            piece = np.ascontiguousarray(voice[None, start : start + 1024])
            sound = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = RATE, start, Fraction(1, RATE)
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return path


def in_process(path: Path, what: str, words: str) -> dict[str, float]:
    """CPU seconds of a process that does one clip."""
    script = str(ROOT / "benchmarks" / "clips_measured.py")
    command = [sys.executable, script, str(path), what, words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    own, others = read_words(DEFAULTS)
    refuse_others(others, DEFAULTS)
    work = Path(own["work"] or ".")
    work.mkdir(parents=True, exist_ok=True)
    seconds, repeats = int(own["seconds"]), int(own["repeats"])
    clip = make_clip(work / f"clip{seconds}.mp4", seconds)
    rows: dict[str, Any] = {}
    for name, (what, words) in MEASURED.items():
        fastest = min((in_process(clip, what, words) for _ in range(repeats)), key=_seconds)
        rows[name] = {
            "times_real_time": seconds / fastest["seconds"],
            "cpu_seconds": fastest["seconds"],
        }
    result = {"made_by": made_by(), "clip_seconds": seconds, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    header = ["", "times real time"]
    lines = [[name, f"{row['times_real_time']:.0f}"] for name, row in rows.items()]
    table = markdown_table(header, lines)
    print(table)
    paste(table, "clips", ROOT / "docs" / "clips.md")


def _seconds(measured: dict[str, float]) -> float:
    return measured["seconds"]


if __name__ == "__main__":
    sys.exit(run_command(main))
