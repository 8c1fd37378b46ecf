"""The demo at its full size: what it promises about scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_models import SENTIMENT
from training_runs import losses, scores, train

from data_shards.codebook import main as codebook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


SLOW = ("cenet", "self_mm", "tate", "tfr_net")  # the others are run by make test-deep


def demo_models() -> list[Any]:
    """Every sentiment model but those that the other tests are about."""
    names = [name for name in SENTIMENT if name not in ("baseline", "hscl")]
    return [name if name in SLOW else pytest.param(name, marks=pytest.mark.deep) for name in names]


@pytest.fixture(scope="module")
def demo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_shards.convert import main as convert
    from data_shards.synthetic import main as synthetic

    folder = tmp_path_factory.mktemp("demo")
    assert not synthetic([str(folder / "synthetic.pkl")])
    assert not convert([str(folder / "synthetic.pkl"), "--out", str(folder / "shards")])
    return folder / "shards"


@pytest.fixture(scope="module")
def demo(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Test scores of the recipe as it is."""
    run_dir = tmp_path_factory.mktemp("run") / "all"
    done = train("hscl/demo", f"data={demo_shards}", f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return scores(run_dir)["test"]


def test_three_modalities_reach_the_promised_correlation(demo: dict[str, float]):
    assert demo["Corr"] >= 0.80


@pytest.mark.parametrize(
    "modality",
    [  # words weigh most in the label, so text is the hardest to beat
        "text",
        pytest.param("audio", marks=pytest.mark.deep),
        pytest.param("vision", marks=pytest.mark.deep),
    ],
)
def test_one_modality_alone_is_worse(
    modality: str, demo: dict[str, float], demo_shards: Path, tmp_path: Path
):
    done = train(
        "hscl/demo",
        f"data={demo_shards}",
        f"run_dir={tmp_path / 'run'}",
        f"options.modalities={modality}",
    )
    assert done.returncode == 0, done.stderr
    alone = scores(tmp_path / "run")["test"]
    assert alone["Corr"] < demo["Corr"] - 0.03
    assert alone["MAE"] > demo["MAE"]


@pytest.mark.parametrize("model", demo_models())
def test_every_model_beats_a_constant_answer_by_far(model: str, demo_shards: Path, tmp_path: Path):
    """A constant answer has no correlation at all. MISA is behind the others here: its recipe
    reached .57, as it says."""
    shards = tmp_path / "shards"  # a codebook goes into the folder
    shutil.copytree(demo_shards, shards)
    if model == "cenet":
        assert not codebook([str(shards)])
    done = train(f"{model}/demo", f"data={shards}", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    floor = 0.50 if model == "misa" else 0.70
    assert scores(tmp_path / "run")["test"]["Corr"] >= floor


def test_two_processes_give_the_scores_of_one(demo_shards: Path, tmp_path: Path):
    """Three epochs: what differs is the order of float32 sums, which training amplifies without
    end."""
    for processes in (1, 2):
        run_dir = tmp_path / str(processes)
        done = train(
            "hscl/demo",
            f"data={demo_shards}",
            f"run_dir={run_dir}",
            "epochs=3",
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)
    assert scores(tmp_path / "2")["test"] == pytest.approx(scores(tmp_path / "1")["test"], abs=5e-4)
