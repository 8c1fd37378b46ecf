"""One measurement of ``benchmarks/clips.py``, in a process that imports nothing else.

    python benchmarks/clips_measured.py CLIP sound ""
    python benchmarks/clips_measured.py CLIP vision face68

Prints, as JSON, the CPU seconds of one clip.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_shards.extract.clip import ClipSource, extract_clip  # noqa: E402
from data_shards.extract.extractors.registry import choose  # noqa: E402
from data_shards.extract.media import pictures, sound  # noqa: E402

WIDTH = 640


def measure(path: Path, what: str, words: str) -> dict[str, float]:
    """Decode sound or pictures alone, or have a modality extracted."""
    extractors = choose({what: words}) if words else None
    begin = time.process_time()
    if extractors is not None:
        found = extract_clip(ClipSource("clip", path), extractors)
        if found.missing:
            raise SystemExit(f"{path}: {found.missing}")
    elif what == "sound":
        sum(len(piece) for piece in sound(path))
    else:
        sum(1 for _ in pictures(path, 0.0, None, 10.0, WIDTH))
    return {"seconds": time.process_time() - begin}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
