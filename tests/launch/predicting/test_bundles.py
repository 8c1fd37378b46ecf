"""Bundles that stand alone: exported without shards, on a hub, of an earlier version; their card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import fake_hub
from huggingface_hub import ModelCard
from trained_models import changed_config, untrained_bundle

import concord
from core.command import Refused
from data_shards.synthetic import write_tokenizer
from launch.bundles import hub
from launch.bundles.program import exported_program
from launch.export import main as export
from launch.predict import main as predict
from launch.predicting.trained import open_trained
from launch.tasks.spec_record import NAME, read_spec


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A finished run that may be changed, and whose shards cannot be found."""
    folder = tmp_path / "run"
    shutil.copytree(finished / "one", folder)
    config = json.loads((folder / "config.json").read_text())
    config["run"]["data"] = "/no/such/shards"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_run_without_its_shards_is_exported_and_loaded_from_any_folder(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    write_tokenizer(tmp_path / "words")
    bundle = tmp_path / "elsewhere" / "bundle"
    bundle.parent.mkdir()
    words = ["--out", str(bundle), "--tokenizer", str(tmp_path / "words"), "--licence", "mit"]
    assert export([str(run_dir), *words]) == 0
    of_run, _ = concord.load(run_dir)
    shutil.rmtree(run_dir)
    shutil.rmtree(tmp_path / "words")
    monkeypatch.chdir(bundle.parent)
    model, data = concord.load("bundle")
    assert same_weights(model, of_run)
    assert data.features == {"text": 0, "audio": 5, "vision": 20}
    capsys.readouterr()
    assert predict(["bundle", "--text", "the film was great"]) == 0
    assert json.loads(capsys.readouterr().out)["seen"] == ["text"]
    said = " ".join(path.read_text() for path in bundle.rglob("*.json"))
    assert str(tmp_path) not in said  # nothing of this machine


def test_the_card_says_what_a_user_must_know(run_dir: Path, tmp_path: Path):
    assert export([str(run_dir), "--out", str(tmp_path / "bundle"), "--licence", "apache-2.0"]) == 0
    card = ModelCard.load(tmp_path / "bundle" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "concord"
    scores = json.loads((run_dir / "scores.json").read_text())
    assert f"| test | {scores['test']['MAE']:.4f} |" in card.text
    facts = json.loads((run_dir / "facts.json").read_text())
    median = facts["constant"]["test"]["median"]["MAE"]
    assert f"| test, always answering the median | {median:.4f} |" in card.text
    for words in ("seed 1111", "72 train samples", "synthetic data", "## Limits", "from -3 to 3"):
        assert words in card.text, words


def test_without_a_licence_the_card_says_so(run_dir: Path, tmp_path: Path, capsys: Any):
    assert export([str(run_dir), "--out", str(tmp_path / "bundle")]) == 0
    assert "noted: it holds no tokenizer" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "bundle" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "not-stated")
    assert "Nobody has stated one for the weights" in card.text


def test_a_run_of_an_earlier_version_is_exported_with_its_shards(
    run_dir: Path, small_shards: Path, tmp_path: Path, capsys: Any
):
    (run_dir / NAME).unlink()
    (run_dir / "facts.json").unlink()
    assert export([str(run_dir), "--out", str(tmp_path / "bundle")]) == 2
    assert "/no/such/shards" in capsys.readouterr().err
    words = [str(run_dir), f"data={small_shards}", "--out", str(tmp_path / "bundle")]
    assert export(words) == 0
    assert not open_trained(str(tmp_path / "bundle")).facts.bounds


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"format": "concord-data-spec"}'])
def test_an_odd_record_of_the_data_is_refused_by_name(run_dir: Path, content: str):
    (run_dir / NAME).write_text(content)
    with pytest.raises(Refused, match=NAME):
        read_spec(run_dir)


def test_a_record_of_other_data_is_refused_by_name(run_dir: Path):
    spec = json.loads((run_dir / NAME).read_text())
    spec["data"]["features"]["audio"] = 6
    (run_dir / NAME).write_text(json.dumps(spec))
    with pytest.raises(Refused, match=NAME):
        concord.load(run_dir)


def test_codebooks_are_kept_with_the_run(coded_shards: Path, tmp_path: Path):
    from small_models import small_run

    from launch.tasks.build import build_task
    from launch.tasks.spec_record import CODEBOOKS, write_spec

    task = build_task(small_run("cenet", coded_shards))
    write_spec(tmp_path, task)
    record = read_spec(tmp_path)
    assert record.data.codebooks.keys() == {"audio", "vision"}
    for name, centres in task.data.codebooks.items():
        assert (record.data.codebooks[name] == centres).all()
    (tmp_path / CODEBOOKS).unlink()
    with pytest.raises(Refused, match=CODEBOOKS):
        read_spec(tmp_path)


def test_a_bundle_of_an_earlier_version_scores_as_before(tmp_path: Path, capsys: Any):
    folder = untrained_bundle(tmp_path / "bundle")
    assert predict([str(folder), "--text", "the film was great"]) == 0
    now = json.loads(capsys.readouterr().out)
    shutil.rmtree(folder / "tokenizer")
    changed_config(folder, roles=None, facts=None, extraction=None)
    words = [str(folder), "--text", "the film was great"]
    assert predict(words) == 2
    assert "holds no tokenizer" in capsys.readouterr().err
    assert predict([*words, "--tokenizer", str(tmp_path / "bundle-tokenizer")]) == 0
    assert json.loads(capsys.readouterr().out) == now


# the client's own way of handing a file to its library
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_bundle_goes_to_a_hub_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    folder = untrained_bundle(tmp_path / "bundle")
    (folder / "private.txt").write_text("not of a bundle")
    with fake_hub() as far:
        monkeypatch.setenv("HF_ENDPOINT", far.address)
        monkeypatch.setenv("HF_TOKEN", "hf_madeup")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        assert hub.push(folder, "group/model").startswith(far.address)
        stored = far.repositories["group/model"]
        assert set(stored) == {
            "README.md",
            "config.json",
            "model.safetensors",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
        }
        assert far.tokens == {"Bearer hf_madeup"}
        monkeypatch.chdir(tmp_path)
        model, _ = concord.load("group/model")
        assert same_weights(model, concord.load(folder)[0])
        assert predict(["group/model", "--text", "the film was great"]) == 0
        with pytest.raises(Refused, match="the hub has no such model"):
            concord.load("group/other")
    # what was fetched serves where no hub answers
    assert same_weights(concord.load("group/model")[0], model)
    with pytest.raises(Refused, match="no hub answers"):
        concord.load("group/other")
    assert "hf_madeup" not in capsys.readouterr().out


def test_a_push_that_cannot_be_is_refused_by_name(tmp_path: Path, monkeypatch: Any):
    folder = untrained_bundle(tmp_path / "bundle", with_tokenizer=False)
    with pytest.raises(Refused, match="write ORGANISATION/NAME"):
        hub.push(folder, "../name")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Refused, match="no hub answers"):
        hub.push(folder, "group/model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "cenet", "hscl", "tate"])
def test_a_model_becomes_a_graph_of_any_length(name: str, spec: Any):
    from contracts import build

    assert len(exported_program(name, build(name, spec).eval(), spec)) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["self_mm", "tfr_net"])
def test_a_model_with_a_recurrence_is_refused_by_name(name: str, spec: Any):
    from contracts import build

    with pytest.raises(Refused, match=f"--program: {name} cannot become a graph"):
        exported_program(name, build(name, spec).eval(), spec)
