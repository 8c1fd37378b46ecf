"""The benchmark of searches: what it does with an interrupted one, and its tables."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from paths import ROOT

from tune.journal import Journal


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/search.py``, with results of its own and searches that take no time."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.search")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results" / "search.json")
    monkeypatch.setattr(module, "PAGE", tmp_path / "search.md")
    monkeypatch.setattr(module, "shards", lambda work: work / "shards")
    (tmp_path / "search.md").write_text(
        "before\n<!-- results: search -->\n<!-- end of results -->\nafter\n"
    )
    return module


def searching(commands: list[list[str]], interrupted: list[bool]) -> Any:
    """In place of the process of a search."""

    def run(command: list[str], **_: Any) -> None:
        commands.append(command)
        [folder] = [
            Path(word.partition("=")[2])
            for word in command
            if word.startswith(("run_dir=", "resume="))
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "search.json").write_text("{}")
        if interrupted.pop(0):
            raise KeyboardInterrupt
        with Journal(folder / "journal.jsonl") as journal:
            journal.write("start", 1, changes={"options.alpha": 0.1})
            journal.write("epoch", 1, epoch=1, objective=0.5, scores={"MAE": 0.5})
            journal.write("end", 1, state="finished")

    return SimpleNamespace(run=run)


def test_a_search_is_timed_once_and_not_at_all_when_it_was_interrupted(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []
    monkeypatch.setattr(benchmark, "subprocess", searching(commands, [False, True, False]))
    records, seconds = benchmark.search(tmp_path, "whole", ["trials=1"])
    assert records[0].best == 0.5
    assert seconds > 0
    assert benchmark.search(tmp_path, "whole", ["trials=1"]) == (
        records,
        seconds,
    )  # from another step, or later
    assert len(commands) == 1
    with pytest.raises(SystemExit, match="trials=1; give another work="):
        benchmark.search(tmp_path, "whole", ["trials=2"])
    words = ["search=random", "trials=1", "seed=1111", "scheduler=none"]
    with pytest.raises(KeyboardInterrupt):
        benchmark.search(tmp_path, "none-1111", words)
    with pytest.raises(SystemExit, match="interrupted"):
        benchmark.overhead(tmp_path, 1111, 1, 1)
    assert f"resume={tmp_path / 'none-1111'}" in commands[-1]
    assert (
        benchmark.search(
            tmp_path, "none-1111", ["search=random", "trials=1", "seed=1111", "scheduler=none"]
        )[1]
        is None
    )


def test_a_result_that_is_no_number_is_not_written_over_those_that_are(benchmark: ModuleType):
    benchmark.write({"overhead": {"ratio": 2.0}})
    with pytest.raises(ValueError, match="JSON"):
        benchmark.write({"overhead": {"ratio": float("nan")}})
    assert benchmark.results()["steps"] == {"overhead": {"ratio": 2.0}}


def a_comparison(default: float, none: float, asha: float, seconds: float | None) -> dict[str, Any]:
    return {
        "trials": 16,
        "default_MAE": default,
        "epochs": {"asha": 60, "none": 240},
        "share_of_epochs": 0.25,
        "best_MAE": {"asha": asha, "none": none},
        "behind": asha / none - 1.0,
        "seconds": {"asha": 100.0, "none": seconds},
        "load_before": 1.0,
    }


def test_tables_have_a_row_for_each_seed_and_one_for_their_mean(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finds = {
        "trials": 16,
        "seconds": 160.4,
        "epochs": 56,
        "default_MAE": 0.4,
        "best_MAE": 0.4,
        "best": {},
        "load_before": 1.0,
    }
    speed = {"search": 200.0, "one_after_the_other": 100.0}
    benchmark.write(
        {
            "finds": finds,
            "finds-7": {**finds, "seed": 7, "default_MAE": 0.5, "load_before": 99.0},
            "asha-1111": a_comparison(0.5, 0.40, 0.40, 300.0),
            "asha-7": a_comparison(0.5, 0.40, 0.44, None),
            "overhead": {
                "trials_per_hour": speed,
                "ratio": 2.0,
                "ratio_at_equal_epochs": 1.9,
                "plain_runs": 8,
            },
        }
    )
    monkeypatch.setattr("sys.argv", ["search.py", "only=table"])
    benchmark.main()
    page = (tmp_path / "search.md").read_text()
    assert page.startswith("before\n<!-- results: search -->\n")
    assert page.endswith("<!-- end of results -->\nafter\n")
    for row in (
        "| 1111 | 0.4000 | 0.4000 | +0.0% | 56 | 160 |",
        "| 7 | 0.5000 | 0.4000 | -20.0% | 56 | machine busy |",
        "| mean | 0.4500 | 0.4000 | -10.0% | 56 |  |",
        "| 1111 | 0.5000 | 0.4000 / 0.4000 | 0.0% | 240 / 60 | 25% | 300 / 100 |",
        "| 7 | 0.5000 | 0.4000 / 0.4400 | 10.0% | 240 / 60 | 25% | interrupted / 100 |",
        "| mean |  | 0.4000 / 0.4200 | 5.0% |  | 25% |  |",
    ):
        assert row in page
    assert "200 in a search, 100 by `launch/train.py`" in page
    json.loads((tmp_path / "results" / "search.json").read_text())
