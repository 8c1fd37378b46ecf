"""From finished runs to tables: every number again from the runs' files, and what may not be
claimed."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import made_up_run

from launch.comparing.significance import permutation_p
from tune.studies.plan import Row, Study
from tune.studies.results import Cell, collect
from tune.studies.study import main, write_results
from tune.studies.study_page import conclusion
from tune.studies.study_tables import cell_text, latex, latex_text, markdown

SEEDS = (1, 2, 3, 4)
WORSE = {"full": 0.0, "text_alone": 0.4, "middle": 0.2}


def a_study(folder: Path, **changes) -> Study:
    study = Study(
        title="Parts & wholes",
        question="Which?",
        rows=tuple(Row(name, "hscl/demo") for name in WORSE),
        data=("/data",),
        sets=("demo",),
        seeds=SEEDS,
        baseline="full",
        metrics=("MAE", "Corr", "Has0_acc_2"),
        test="permutation",
        vary={},
        settings=(),
        folder=folder,
    )
    return replace(study, **changes)


def with_runs(study: Study) -> Study:
    for one in study.runs():
        rate = float(one.value or 0)
        off = WORSE[one.row] + 0.01 * one.seed + rate
        made_up_run(one.folder, *one.changes, off=off)
    return study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return with_runs(a_study(tmp_path / "study"))


def scores_of(study: Study, row: str, metric: str) -> list[float]:
    found = []
    for one in study.runs():
        if one.row == row:
            scores = json.loads((one.folder / "scores.json").read_text())
            found.append(scores["test"][metric])
    return found


def cells_by(study: Study) -> dict[tuple[str, str], Cell]:
    return {(cell.row, cell.metric): cell for cell in collect(study).cells}


def test_means_and_deviations_are_of_the_runs_scores(study: Study):
    cells = cells_by(study)
    for (row, metric), cell in cells.items():
        scores = scores_of(study, row, metric)
        assert cell.mean == pytest.approx(np.mean(scores))
        assert cell.deviation == pytest.approx(np.std(scores, ddof=1))
        assert cell.scores == tuple(scores)
    assert len(cells) == 9


def test_differences_are_of_pairs_with_one_seed(study: Study):
    cell = cells_by(study)["text_alone", "MAE"]
    differences = np.subtract(
        scores_of(study, "text_alone", "MAE"), scores_of(study, "full", "MAE")
    )
    assert cell.difference == pytest.approx(differences.mean())
    assert cell.p == permutation_p(differences.tolist()) == pytest.approx(0.125)
    assert cell.p_holm == pytest.approx(0.25)  # of two comparisons
    assert cell.effect == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert cell.difference_low < cell.difference < cell.difference_high


def test_which_is_best_follows_the_metric(study: Study):
    cells = cells_by(study)
    for metric in ("MAE", "Has0_acc_2"):
        means = {row: cells[row, metric].mean for row in WORSE}
        pick = min if metric == "MAE" else max
        best = pick(means.values())
        assert {row for row in WORSE if cells[row, metric].is_best} == {
            row for row in WORSE if means[row] == best
        }


def test_a_shift_of_all_answers_says_nothing_of_the_correlation(study: Study):
    cell = cells_by(study)["text_alone", "Corr"]
    assert abs(cell.difference) < 1e-9
    assert conclusion(replace(cell, difference=0.0)) == "the same"


def test_conclusions_need_seeds_and_samples():
    cell = Cell("a", "", "", "MAE", (1,), (0.5,), 0.5, math.nan, math.nan, math.nan)
    worse = replace(cell, difference=0.1, difference_low=0.05, difference_high=0.15)
    assert conclusion(worse).startswith("worse on other samples too")
    assert conclusion(replace(worse, p_holm=0.01)) == "worse, over seeds and over samples"
    chance = replace(worse, difference_low=-0.1)
    assert conclusion(chance) == "may be chance"
    assert conclusion(replace(chance, p_holm=0.01)).startswith("worse over seeds")


def test_runs_that_are_not_there_count_for_nothing(study: Study):
    for one in study.runs():
        if one.row == "middle" and one.seed > 2:
            (one.folder / "report.md").unlink()  # not come to its end
    results = collect(study)
    assert len(results.missing) == 2
    cell = results.cell("middle", ("/data", ""), "MAE")
    assert cell is not None
    assert cell.seeds == (1, 2)
    assert "2 runs are not there yet" in markdown(results)


def test_a_row_without_shared_seeds_is_not_compared(tmp_path: Path):
    study = a_study(tmp_path / "study")
    for one in study.runs():
        if (one.row == "full") == (one.seed < 3):
            made_up_run(one.folder, *one.changes, off=WORSE[one.row])
    for cell in collect(study).cells:
        assert math.isnan(cell.difference)


def test_files_of_a_study_agree_with_each_other(study: Study):
    page = write_results(collect(study), {}).read_text()
    folder = study.folder
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    text = (folder / "table.md").read_text()
    for row in rows:
        shown = f"{float(row['mean']):.3f} ± {float(row['deviation']):.3f}"
        assert shown in text
        assert shown in page
    with (folder / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 12
    for run in runs:
        scores = json.loads((folder / run["folder"] / "scores.json").read_text())
        assert float(run["MAE"]) == scores["test"]["MAE"]
        assert (folder / run["folder"] / "report.html").is_file()


def test_the_tables_say_what_so_few_seeds_cannot_show(study: Study):
    text = markdown(collect(study))
    assert "With 4 seeds no corrected p can be below 0.25" in text
    assert "*" not in cell_text(collect(study).cells[0])


def test_latex_is_escaped_and_has_rules(study: Study):
    text = latex(collect(study))
    assert r"\toprule" in text
    assert r"\bottomrule" in text
    assert r"text\_alone" in text
    assert r"Parts \& wholes" in text
    assert r"\textbf{" in text
    assert text.count("{") == text.count("}")
    assert latex_text("50% of_it") == r"50\% of\_it"


def test_over_what_is_varied_there_are_curves(tmp_path: Path):
    study = a_study(tmp_path / "study", vary={"missing.rate": [0.0, 0.5]}, seeds=(1, 2))
    results = collect(with_runs(study))
    assert len(results.cells) == 18
    page = write_results(results, {}).read_text()
    assert "Over what is varied" in page
    assert (study.folder / "figures").is_dir()
    assert "missing.rate=0.5" in markdown(results)


def test_tables_are_written_without_training(study: Study, capsys):
    words = [
        "hscl/demo",
        "data=/data",
        "seeds=1,2",
        f"run_dir={study.folder / 'again'}",
        "--tables",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 runs, 0 are done" in said
    assert "2 runs are not there yet" in said


def test_a_folder_with_another_run_is_refused(study: Study, capsys):
    one = next(study.runs())
    other = a_study(study.folder, settings=("batch_size=8",))
    assert next(other.runs()).folder == one.folder
    from core.command import Refused
    from tune.studies.study import run_study

    with pytest.raises(Refused, match="another batch_size"):
        run_study(other, only_tables=True)
