"""Real data that lack modalities by nature, from the file as published to scores."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT, SHARED_DATA
from training_runs import scores, train

SOURCE = SHARED_DATA / "mfn_sequences" / "mmmo.npz"


@pytest.mark.skipif(
    not SOURCE.exists(), reason="the public data sets are not beside the repository"
)
def test_clips_without_text_are_learnt_from(tmp_path: Path):
    """None of the 220 train clips has text; those of validation and test have."""
    from data_shards.convert import main as convert

    raw, shards = tmp_path / "raw", tmp_path / "shards"
    subprocess.run(
        [sys.executable, "examples/mmmo.py", str(SOURCE), str(raw)], cwd=ROOT, check=True
    )
    table = [
        str(raw / "mmmo.csv"),
        "--out",
        str(shards),
        "--labels",
        "1:5:.5",
        "--text",
        "features",
    ]
    assert not convert(table)
    done = train("self_mm/mmmo", f"data={shards}", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    for split, found in scores(tmp_path / "run").items():
        assert set(found) == {"MAE", "RMSE", "Corr", "Mult_acc_5"}
        assert all(math.isfinite(value) for value in found.values()), split
    assert scores(tmp_path / "run")["test"]["MAE"] < 1.360  # of a constant answer
