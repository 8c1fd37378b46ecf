"""Markdown tables, as reports and benchmarks write them."""

from __future__ import annotations

import pytest

from launch.reports.tables import markdown_table, score_table


def test_a_table_has_a_line_for_its_header_a_rule_and_a_line_for_each_row():
    assert markdown_table(["model", "seeds"], [["hscl", 3], ["tate", 1]]).splitlines() == [
        "| model | seeds |",
        "|---|---|",
        "| hscl | 3 |",
        "| tate | 1 |",
    ]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a row has 1 cells under a header of 2"):
        markdown_table(["model", "seeds"], [["hscl"]])


def test_scores_are_rounded_and_left_blank_where_a_row_lacks_them():
    rows = {"valid": {"MAE": 0.12345, "Corr": 0.5}, "test": {"MAE": 1.0}}
    assert score_table("split", rows).splitlines()[2:] == [
        "| valid | 0.1235 | 0.5000 |",
        "| test | 1.0000 |  |",
    ]
    assert score_table("split", rows, ["Corr"]).splitlines()[0] == "| split | Corr |"
