"""A trial's end, the confirmation and the report of a search, without Ray running."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot, rc_context
from optuna.exceptions import ExperimentalWarning
from optuna.visualization.matplotlib import plot_slice
from searches import a_search, alone, anything, ended

from launch.config import load_recipe, override
from launch.reports.plots import figure
from launch.train import parse
from tune import search as command
from tune import tuner
from tune.cluster import Capacity
from tune.journal import WORST, Journal
from tune.sampling.domain import Choice, Range
from tune.sampling.suggest import Suggester
from tune.search_plots import as_study, importance, leave_out_outliers, position
from tune.search_report import best_changes, write_best, write_confirmed, write_report
from tune.settings import Search
from tune.trial_progress import ProgressCallback

# a trial's end ---------------------------------------------------------------------------------


class Told:
    """In place of a trial's processes: what they would report."""

    def __init__(self, *objective: float):
        self.events = [
            {"epoch": epoch, "objective": value, "scores": {"MAE": value}, "last": False}
            for epoch, value in enumerate(objective, 1)
        ]

    def next(self) -> dict[str, Any]:
        return self.events.pop(0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_validation_score_that_is_no_number_ends_the_trial_which_is_never_the_best(
    tmp_path: Path, value: float
):
    search = a_search(tmp_path)
    changes = {"options.alpha": 0.5, "options.layers": 2}
    ray_trial = SimpleNamespace(config={"number": 1, **changes}, last_result={})
    actor = alone(tmp_path / "trials", "shards", number=1)
    actor.processes = Told(0.1, value, 0.05)  # type: ignore[assignment]
    with Journal(tmp_path / "journal.jsonl") as journal:
        progress = ProgressCallback(journal, trials=1, select="MAE", sign=1.0)
        progress.on_trial_start(0, [], ray_trial)
        while not ray_trial.last_result.get("done"):
            ray_trial.last_result = actor.step()
            assert math.isfinite(ray_trial.last_result["best"])  # what Ray compares
            progress.on_trial_result(0, [], ray_trial, ray_trial.last_result)
        progress.on_trial_complete(0, [], ray_trial)
    with (
        Journal(tmp_path / "journal.jsonl") as journal,
        Journal(tmp_path / "confirm.jsonl") as confirmation,
    ):
        record = journal.records[1]
        assert (record.state, sorted(record.history)) == ("diverged", [1])
        assert f"the validation score is {value} after epoch 2" in record.reason
        assert journal.ranking() == []
        assert Suggester(search, anything).frozen(record).value == WORST
        write_report(search, journal, confirmation)
    assert record.reason in (tmp_path / "report.md").read_text()


def test_a_trial_that_is_given_up_is_recorded_with_what_its_process_died_of(
    tmp_path: Path, capsys: Any
):
    error = tmp_path / "error.txt"
    ray_trial = SimpleNamespace(config={"number": 1, "options.alpha": 0.5}, error_file=str(error))
    with Journal(tmp_path / "journal.jsonl") as journal:
        progress = ProgressCallback(journal, trials=1, select="MAE", sign=1.0)
        progress.on_trial_start(0, [], ray_trial)
        progress.on_trial_recover(0, [], ray_trial)  # Ray knows nothing of it yet
        error.write_text(
            "Failure # 1\nTraceback\ntune.trial.TrialKilled: the process was ended by SIGSEGV\n"
        )
        progress.on_trial_recover(0, [], ray_trial)
        with error.open("a") as file:
            file.write(
                "Failure # 2\nTraceback\ntune.trial.TrialKilled: the process was ended by SIGKILL\n\n"
            )
        progress.on_trial_error(0, [], ray_trial)
        record = journal.records[1]
    assert (record.state, record.reason) == ("failed", "the process was ended by SIGKILL")
    printed = capsys.readouterr().out
    assert "starts again from its checkpoint: its actor died" in printed
    assert "starts again from its checkpoint: the process was ended by SIGSEGV" in printed
    assert "failed    the process was ended by SIGKILL" in printed


# the confirmation ------------------------------------------------------------------------------


def test_test_is_evaluated_when_the_validation_scores_of_all_seeds_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    search, evaluated = a_search(tmp_path), []

    def run(
        search: Search, part: str, points: Any, journal: Journal, capacity: Capacity, count: int
    ) -> None:
        for number in range(1, count + 1):
            journal.write("start", number, changes=points(number, []))
            journal.write("epoch", number, epoch=1, objective=0.5, scores={"MAE": 0.5})
            journal.write("end", number, state="finished")

    def evaluate(search: Search, part: str, journal: Journal, capacity: Capacity) -> None:
        body = json.loads((tmp_path / "confirm.json").read_text())
        assert body["test"] == {}
        assert {seed: scores["valid"] for seed, scores in body["seeds"].items()} == {
            "1111": {"MAE": 0.5},
            "1112": {"MAE": 0.5},
        }
        with Journal(tmp_path / "confirm.jsonl") as read:
            assert [record.state for record in read.trials()] == ["finished", "finished"]
        evaluated.append(len(journal.untested()))
        for record in journal.trials():
            journal.write("test", record.number, scores={"MAE": 0.6})

    monkeypatch.setattr(tuner, "run", run)
    monkeypatch.setattr(tuner, "evaluate", evaluate)
    for _ in range(2):  # when it goes on, nothing is left to evaluate
        with Journal(tmp_path / "confirm.jsonl") as journal:
            assert command.confirm(search, {"options.alpha": 0.5}, journal, Capacity(0.0, 1))
    assert evaluated == [2]
    assert json.loads((tmp_path / "confirm.json").read_text())["test"] == {
        "MAE": {"mean": 0.6, "std": 0.0}
    }


def test_test_is_not_evaluated_while_a_seed_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(
        search: Search, part: str, points: Any, journal: Journal, capacity: Capacity, count: int
    ) -> None:
        journal.write("start", 1, changes=points(1, []))
        journal.write("epoch", 1, epoch=1, objective=0.5, scores={"MAE": 0.5})
        journal.write("end", 1, state="finished")
        journal.write("start", 2, changes=points(2, []))  # and a signal

    monkeypatch.setattr(tuner, "run", run)
    monkeypatch.setattr(tuner, "evaluate", lambda *_: pytest.fail("test was evaluated"))
    with Journal(tmp_path / "confirm.jsonl") as journal:
        assert not command.confirm(a_search(tmp_path), {}, journal, Capacity(0.0, 1))


# the report ------------------------------------------------------------------------------------


def a_journal(search: Search) -> Journal:
    journal = Journal(search.folder / "journal.jsonl")
    suggester = Suggester(search, anything)
    for number in range(1, 8):
        point = suggester.point(number, journal.trials())
        assert point is not None
        value = 0.5 + (point["options.alpha"] - 0.3) ** 2
        journal.records[number] = ended(
            number, [value + 0.2, value], "stopped" if number % 3 == 0 else "finished", **point
        )
    journal.records[8] = replace(
        ended(8, [], "diverged", **point), reason="loss became nan | in epoch 0"
    )
    return journal


def test_the_best_configuration_is_what_training_takes(tmp_path: Path):
    search = a_search(tmp_path)
    with a_journal(search) as journal:
        best = journal.ranking()[0]
        write_best(search, best)
    run = parse(["hscl/demo", "data=elsewhere", f"@{tmp_path / 'best.json'}"])
    assert run.options.alpha == best.changes["options.alpha"]
    assert run.epochs == 9  # what held for every trial holds for the best
    assert run.data == "elsewhere"
    assert replace(run, data="shards") == search.run(best.changes)


def test_the_report_names_every_trial_and_shows_its_pictures(tmp_path: Path):
    search = a_search(tmp_path)
    confirmation = Journal(tmp_path / "confirm.jsonl")
    with a_journal(search) as journal, confirmation:
        write_report(search, journal, confirmation)
    table = (tmp_path / "trials.csv").read_text().splitlines()
    assert len(table) == 1 + 8
    assert table[0].startswith(
        "trial,state,epochs,best_epoch,valid_MAE,valid_Corr,options.alpha,options.layers"
    )
    text = (tmp_path / "report.md").read_text()
    assert "| 8 | diverged | 0 | loss became nan / in epoch 0 |" in text
    for name in ("history.png", "parallel.png", "slices.png", "importance.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).stat().st_size > 5000


def test_a_search_without_a_usable_trial_has_a_report_that_says_so(tmp_path: Path):
    search = a_search(tmp_path)
    with (
        Journal(tmp_path / "journal.jsonl") as journal,
        Journal(tmp_path / "confirm.jsonl") as confirmation,
    ):
        journal.records = {1: replace(ended(1, [], "failed"), reason="out of memory")}
        write_report(search, journal, confirmation)
    text = (tmp_path / "report.md").read_text()
    assert "No trial came to a normal end" in text
    assert "out of memory" in text


def test_importance_finds_the_setting_that_matters(tmp_path: Path):
    search = a_search(tmp_path, search="random")
    suggester = Suggester(search, anything)
    points = [suggester.point(number, []) for number in range(2, 40)]
    records = [ended(n, [p["options.alpha"]], **p) for n, p in enumerate(points, 1) if p]
    shares = importance(search.domains(), records)
    assert math.isclose(sum(shares.values()), 1.0, rel_tol=1e-6)
    assert shares["options.alpha"] > 0.9
    assert importance(search.domains(), records[:2]) == {}
    assert (
        importance(search.domains(), [ended(r.number, [1.0], **r.changes) for r in records]) == {}
    )


def test_an_outlier_does_not_press_the_other_trials_into_a_line(tmp_path: Path):
    search = a_search(tmp_path, spaces={"options.alpha": "uniform(0.0, 1.0)"})
    scores = [0.50, 0.52, 0.55, 0.58, 0.61, 9.0]
    records = [ended(n, [score], **{"options.alpha": n / 10}) for n, score in enumerate(scores)]
    # optuna sets a style for the whole process, and its plots are experimental
    with rc_context(), pytest.warns(ExperimentalWarning):
        axes_of_optuna = plot_slice(as_study(search.domains(), records))
    assert axes_of_optuna.get_ylim()[1] > 9.0
    drawing, axes = figure(4, 3)
    leave_out_outliers(axes.set_ylim, np.array(scores))
    low, high = axes.get_ylim()
    assert low < 0.50
    assert 0.61 < high < 1.0
    pyplot.close(axes_of_optuna.figure)


def test_a_value_is_drawn_where_it_lies_on_its_own_scale():
    assert position(Range(1e-4, 1e-2, log=True), 1e-3) == pytest.approx(0.5)
    assert position(Range(0, 4), 1) == pytest.approx(0.25)
    assert position(Choice(("a", "b", "c")), "b") == pytest.approx(0.5)
    assert position(Choice(("a",)), "a") == 0.0


def test_confirmation_is_summed_up_over_seeds_and_test_only_when_all_have_it(tmp_path: Path):
    search = a_search(tmp_path)
    values = [0.5, 0.6, 0.85]
    with Journal(tmp_path / "confirm.jsonl") as journal:
        for number, value in enumerate(values, 1):
            journal.records[number] = ended(number, [value + 0.1, value], seed=1110 + number)
        journal.records[1].test = {"MAE": 0.7}
        write_confirmed(search, journal)
        body = json.loads((tmp_path / "confirm.json").read_text())
        assert body["valid"]["MAE"]["mean"] == pytest.approx(statistics.mean(values))
        assert body["valid"]["MAE"]["std"] == pytest.approx(statistics.stdev(values))
        assert body["test"] == {}
        for record in journal.trials():
            record.test = {"MAE": 0.7}
        write_confirmed(search, journal)
    assert json.loads((tmp_path / "confirm.json").read_text())["test"]["MAE"] == {
        "mean": pytest.approx(0.7),
        "std": pytest.approx(0.0),
    }


def test_best_changes_leave_out_the_places_of_this_machine(tmp_path: Path):
    changes = best_changes(a_search(tmp_path), ended(1, [0.5], **{"options.alpha": 0.2}))
    assert changes == {"epochs": 9, "options.alpha": 0.2}
    assert (
        override(
            load_recipe("hscl/demo"), [f"{k}={json.dumps(v)}" for k, v in changes.items()]
        ).epochs
        == 9
    )
