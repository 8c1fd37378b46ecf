"""Pages of runs and comparisons: what they say comes from the files, and what runs hold cannot break
them."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_runs import made_up_run

from core.command import Refused
from launch.comparing.compare import compare, comparison_page, main, read_runs
from launch.comparing.differences import different_settings, run_names, shared_answers
from launch.reports.pages.axes import linear_axis, logarithmic_axis, whole_axis
from launch.reports.pages.charts import Series, line_chart
from launch.reports.pages.run_page import write_run_page
from launch.reports.run_record import read_run
from launch.tasks.sample_record import write_sample_record


class Checked(HTMLParser):
    """Collects what a page must not have, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(page: str) -> Checked:
    parser = Checked()
    parser.feed(page)
    return parser


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return made_up_run(tmp_path / "one")


def test_a_page_needs_nothing_else(run_dir: Path):
    found = checked(write_run_page(run_dir).read_text())
    assert "script" not in found.tags
    assert all(address.startswith(("#", "data:")) for address in found.addresses)


def test_what_a_run_holds_is_text_and_no_markup(run_dir: Path):
    report = run_dir / "report.md"
    report.write_text("# report\n\n> remark <script>alert(1)</script>\n")
    page = write_run_page(run_dir).read_text()
    assert "remark <script>" in checked(page).text
    assert "<b>good</b>" not in page
    assert "script" not in checked(page).tags
    assert 'it was <b>good</b> & "fine"' in checked(page).text


def test_the_scores_of_the_page_are_those_of_the_file(run_dir: Path):
    text = checked(write_run_page(run_dir).read_text()).text
    for name, value in json.loads((run_dir / "scores.json").read_text())["test"].items():
        assert f"{value:.4f}" in text, name
    assert "always median" in text
    assert "selected: 2" in text  # the epoch with the least validation MAE


def test_a_small_loss_beside_a_large_one_gets_a_logarithmic_axis(run_dir: Path):
    assert "Logarithmic" in checked(write_run_page(run_dir).read_text()).text


def test_figures_lie_beside_the_page_as_files_of_their_own(run_dir: Path):
    write_run_page(run_dir)
    figures = sorted((run_dir / "figures").glob("*.svg"))
    assert len(figures) > 5
    for figure in figures:
        assert figure.read_text().startswith("<svg xmlns=")


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path):
    folder = made_up_run(tmp_path / "begun", epochs=1)
    for name in ("scores.json", "predictions.csv", "facts.json", "report.md"):
        (folder / name).unlink()
    text = checked(write_run_page(folder).read_text()).text
    assert "not finished" in text


def test_a_run_without_any_epoch_has_a_page(tmp_path: Path):
    folder = made_up_run(tmp_path / "new", epochs=0)
    (folder / "log.jsonl").write_text("")
    assert write_run_page(folder).is_file()


def test_values_that_are_no_numbers_leave_gaps():
    chart = line_chart("x", [Series("a", [1, 2, 3, 4], [1.0, float("nan"), 2.0, 3.0])], "epoch")
    assert "nan" not in chart.svg
    assert chart.svg.count("<polyline") == 1


def test_axes_have_round_ticks_within_their_range():
    axis = linear_axis([0.713, 0.942], 0, 100)
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert 2 <= len(axis.ticks) <= 7
    assert whole_axis(1, 20, 0, 100).ticks[0] == 1
    assert logarithmic_axis([1, 50], 0, 100, (1, 10, 50)).tick_labels() == ("1", "10", "50")
    assert linear_axis([2.0, 2.0], 0, 100).place(2.0) == pytest.approx(50)


def test_generated_labels_are_shown_by_epoch_and_by_case(run_dir: Path):
    texts = [f"words of {number}" for number in range(6)]

    def records_of(met: np.ndarray) -> list[dict[str, str]]:
        return [{"id": f"train{number}", "text": texts[number]} for number in met]

    for epoch in range(3):
        fusion = torch.linspace(-1, 1, 6)
        text = fusion + 0.1 * epoch
        text[4] = -2.5
        text[5] = torch.nan  # not met yet
        record = {"label_fusion": fusion, "label_text": text, "score_text": text}
        write_sample_record(run_dir, epoch, record, records_of)
    found = checked(write_run_page(run_dir).read_text()).text
    assert "Labels of fusion" in found
    assert "Labels of text" in found
    assert "epoch 3" in found
    cases = found.partition("whose views disagree most")[2]
    assert cases.index("train4") < cases.index("train0")  # the one that is farthest apart
    assert "words of 4" in cases
    assert "train5" not in cases


def test_settings_that_differ_come_first(tmp_path: Path):
    one = made_up_run(tmp_path / "a" / "run")
    other = made_up_run(tmp_path / "b" / "run", "batch_size=64", off=0.3)
    records = read_runs([one, other])
    assert different_settings(records) == [("batch_size", ["32", "64"])]
    assert run_names(records) == ["a/run", "b/run"]
    page = comparison_page(records)
    assert page.index("batch_size") < page.index("Samples on which the runs disagree most")


def test_compare_says_in_the_terminal_what_differs(tmp_path: Path, capsys):
    one = made_up_run(tmp_path / "a")
    other = made_up_run(tmp_path / "b", "seed=7", off=0.3)
    compare([one, other], tmp_path / "page.html")
    said = capsys.readouterr().out
    assert "| seed | 1111 | 7 |" in said
    mae = json.loads((one / "scores.json").read_text())["test"]["MAE"]
    interval = re.search(rf"{mae:.4f} \[([\d.]+), ([\d.]+)\]", said)
    assert interval
    assert float(interval[1]) < mae < float(interval[2])
    assert (tmp_path / "page.html").is_file()


def test_runs_of_other_data_are_not_compared(tmp_path: Path):
    one, other = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b")
    table = pd.read_csv(other / "predictions.csv")
    table.loc[3, "label"] += 1
    table.to_csv(other / "predictions.csv", index=False)
    with pytest.raises(Refused, match="clip3 has label"):
        shared_answers(read_runs([one, other]))


def test_only_samples_that_all_have_scored_are_compared(tmp_path: Path):
    one, other = made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b")
    table = pd.read_csv(other / "predictions.csv").iloc[::-1].iloc[:30]
    table.to_csv(other / "predictions.csv", index=False)
    shared = shared_answers(read_runs([one, other]))
    assert shared is not None
    assert len(shared.ids) == 30
    assert np.abs(shared.apart).max() < 1e-9  # the same answers, whatever their order


@pytest.mark.parametrize("words", [["nowhere", "neither"], ["one"], ["a", "b", "epochs=3"]])
def test_what_cannot_be_compared_is_refused(words: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert not (tmp_path / "compare.html").exists()


def test_a_spoilt_file_is_named(tmp_path: Path):
    folder = made_up_run(tmp_path / "a")
    (folder / "scores.json").write_text('{"test": {"MAE": "good"}}')
    with pytest.raises(Refused, match=r"scores\.json: test/MAE"):
        read_run(folder)


def test_a_copied_run_gives_the_same_page(run_dir: Path, tmp_path: Path):
    before = write_run_page(run_dir).read_text()
    copy = tmp_path / "elsewhere"
    shutil.copytree(run_dir, copy)
    assert write_run_page(copy).read_text() == before
