"""Depression scores (AVEC 2019): from a table over each model's recipe to the concordance
correlation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.codebook import main as make_codebook
from data_shards.convert import main as convert
from launch.config import load_recipe, override, recipe_names
from launch.tasks.build import build_model, build_task

DEPRESSION = [name for name in recipe_names() if name.endswith("/avec2019")]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of made-up interviews with the widths of AVEC 2019: 39 MFCC features, 49 of AU poses,
    PHQ-8 scores."""
    folder, rng = tmp_path_factory.mktemp("avec"), np.random.default_rng(0)
    rows = []
    for place in range(24):
        np.save(
            folder / f"audio{place}.npy",
            rng.normal(size=(rng.integers(5, 12), 39)).astype(np.float32),
        )
        np.save(
            folder / f"vision{place}.npy",
            rng.normal(size=(rng.integers(4, 9), 49)).astype(np.float32),
        )
        split = ("train", "train", "valid", "test")[place % 4]
        files = {m: f"{m}{place}.npy" for m in ("audio", "vision")}
        tokens = [2, *rng.integers(5, 50, 4).tolist(), 3]
        rows.append(
            {
                "id": f"s{place}",
                "split": split,
                "label": int(rng.integers(0, 25)),
                "tokens": tokens,
                **files,
            }
        )
    (folder / "avec.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert not convert(
        [str(folder / "avec.jsonl"), "--out", str(folder / "shards"), "--labels", "0:24:1"]
    )
    assert not make_codebook([str(folder / "shards"), "--clusters", "4"])
    return folder / "shards"


def test_every_model_of_the_four_has_a_recipe_for_depression() -> None:
    assert DEPRESSION == ["cenet/avec2019", "self_mm/avec2019", "tate/avec2019", "tfr_net/avec2019"]


@pytest.mark.parametrize("name", DEPRESSION)
def test_depression_scores_are_learnt_and_measured(name: str, sessions: Path) -> None:
    small = [
        "options.text.source=small",
        "options.text.width=16",
        "options.text.frozen=false",
        "missing.rate=0.3",
    ]
    run = override(load_recipe(name), [f"data={sessions}", *small])
    task = build_task(run)
    model = build_model(run, task.data)
    assert task.data.label_range == (0, 24)
    model.begin_epoch(0)
    ((batch,),) = task.batches(0)
    batch = replace(batch, loss_denominators=model.loss_denominators(batch))
    torch.stack([*model.losses(model.train()(batch), batch).values()]).sum().backward()
    found = task.evaluate(model, "test", torch.device("cpu"))
    assert set(found) == {"MAE", "RMSE", "CCC", "Corr"}
    assert run.select in found
    assert run.goal == "max"
