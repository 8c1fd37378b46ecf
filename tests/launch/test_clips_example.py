"""The worked example: from made-up clips to scores of fresh ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

UNSEEN = 0.6  # what both models reach at least on clips that nobody has seen
CHANCE = 0.34  # what a modality alone reaches: above 95 % of random scores of 24 clips


def test_fresh_clips_are_scored_from_their_files(tmp_path: Path):
    command = [sys.executable, str(ROOT / "examples" / "clips.py"), str(tmp_path), "--alone"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(\w+): Corr (-?\d\.\d+)", done.stdout, re.MULTILINE))
    correlations = {name: float(value) for name, value in found.items()}
    assert correlations.keys() == {
        "baseline",
        "hscl",
        "baseline_text",
        "baseline_audio",
        "baseline_vision",
    }
    for model in ("baseline", "hscl"):
        assert correlations[model] >= UNSEEN
    for modality in ("text", "audio", "vision"):
        assert correlations[f"baseline_{modality}"] >= CHANCE
