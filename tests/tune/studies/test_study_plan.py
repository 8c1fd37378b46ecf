"""What a study is: files, ready-made ones and command lines, and what they must not say."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from core.command import Refused
from core.environment.credentials import VARIABLE
from launch.command_line import read
from launch.config import recipe_names
from launch.run_directory import find_run
from tune.studies.plan import Words, file_name, make_study, read_file, read_seeds, ready_names
from tune.studies.pool import threads_of_each
from tune.studies.study import arguments_parser, main, parse

DATA = "/data"
SETS = {
    "table_mosi": "mosi",
    "table_sims": "sims",
    "mclea": "dbp15k_zh_en",
    "meaformer": "dbp15k_zh_en",
}
TWO_ROWS = """
title = "Two"
recipe = "hscl/demo"
[settings]
epochs = 2
[[rows]]
name = "full"
[[rows]]
name = "text alone"
[rows.changes]
"options.modalities" = ["text"]
"""


def study_of(*words: str):
    return parse(read(arguments_parser(), list(words)))


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ready_names())
def test_every_run_of_a_ready_study_can_be_set_up(name: str):
    study = make_study(name, Words(data=(DATA,), sets=(SETS.get(name, "demo"),)))
    runs = list(study.runs())
    assert len(runs) == len(study.rows) * len(study.seeds) * len(study.values())
    assert len({one.folder for one in runs}) == len(runs)
    settings = {str(replace(one.run(), run_dir="")) for one in runs}
    assert len(settings) == len(runs)  # rows that train alike would say nothing
    assert study.question


def test_there_are_the_studies_that_papers_print():
    assert {"hscl_ablation", "cenet_ablation", "self_mm_ablation", "tfr_net_ablation"} <= set(
        ready_names()
    )
    assert {"tate", "mclea", "meaformer", "robustness", "table_mosi", "table_sims"} <= set(
        ready_names()
    )


def test_tables_have_every_model_of_their_data_set():
    for name in ("table_mosi", "table_sims"):
        rows = {row.recipe.partition("/")[0] for row in read_file_of(name).rows}
        there = {
            recipe.partition("/")[0]
            for recipe in recipe_names()
            if recipe.endswith(f"/{SETS[name]}")
        }
        assert there - rows <= {"tate"}, name  # which answers with classes


def read_file_of(name: str):
    from tune.studies.plan import READY

    return read_file(READY / f"{name}.toml")


def test_a_file_and_the_command_line_go_together(tmp_path: Path):
    study = study_of(written(tmp_path, TWO_ROWS), f"data={DATA}", "seeds=1..3", "batch_size=8")
    assert study.seeds == (1, 2, 3)
    assert study.baseline == "full"
    assert study.folder.name == "own"
    first, second = list(study.runs())[:2]
    run = second.run()
    assert (run.epochs, run.batch_size, run.seed) == (2, 8, 1)
    assert run.options.modalities == ("text",)
    assert first.run().options.modalities == ("text", "audio", "vision")


def test_the_command_line_wins_over_the_files_settings_and_a_row_over_both(tmp_path: Path):
    words = ["epochs=7", "options.modalities=text,audio"]
    study = study_of(written(tmp_path, TWO_ROWS), f"data={DATA}", *words)
    full, alone = [one.run() for one in list(study.runs())[:2]]
    assert full.epochs == 7
    assert full.options.modalities == ("text", "audio")
    assert alone.options.modalities == ("text",)


def test_models_by_name_find_their_recipes(small_shards: Path):
    study = study_of("hscl,self_mm", f"data={small_shards}", "seeds=5")
    assert [one.recipe for one in study.runs()] == ["hscl/demo", "self_mm/demo"]
    study = study_of("hscl/mosi", f"data={small_shards}", "seeds=5")
    assert [one.recipe for one in study.runs()] == ["hscl/mosi"]


def test_every_row_is_trained_under_each_value(tmp_path: Path):
    study = study_of(written(tmp_path, TWO_ROWS), f"data={DATA}", "seeds=1", "vary.batch_size=8,16")
    runs = list(study.runs())
    assert [(one.row, one.run().batch_size) for one in runs] == [
        ("full", 8),
        ("full", 16),
        ("text alone", 8),
        ("text alone", 16),
    ]


def test_a_run_of_a_study_is_the_run_that_its_words_name(tmp_path: Path):
    study = study_of(written(tmp_path, TWO_ROWS), f"data={DATA}", "seeds=4")
    one = next(study.runs())
    assert one.words()[0] == "hscl/demo"
    run, folder = find_run(one.run())
    assert folder == one.folder
    assert run.seed == 4


@pytest.mark.parametrize(("text", "seeds"), [("3..5", (3, 4, 5)), ("7", (7,)), ("1,9", (1, 9))])
def test_seeds_are_ranges_or_lists(text: str, seeds: tuple[int, ...]):
    assert read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "5..3", "-1", "1..b"])
def test_other_seeds_are_refused(text: str):
    with pytest.raises(Refused, match="seeds="):
        read_seeds(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('seed = "x"\n', "no such entry; did you mean 'seeds'"),
        ('[[row]]\nname = "x"\n', "own.toml"),
        ("= 3", "no TOML"),
        ("test = 3\n", "test: "),
    ],
)
def test_a_file_that_says_something_else_is_named(tmp_path: Path, change: str, said: str):
    path = written(tmp_path, change + TWO_ROWS)
    with pytest.raises(Refused, match=r"own\.toml") as refused:
        study_of(path, f"data={DATA}")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hscl_ablatoin", "data=x"], "did you mean 'hscl_ablation'"),
        (["hscl_ablation"], "no data"),
        (["hscl_ablation", "data=x"], "which recipes are for"),
        (["hscl_ablation", "data=x", "set=demo", "baseline=ful"], "did you mean 'full'"),
        (["hscl_ablation", "data=x", "set=demo", "seed=3"], "write seeds="),
        (["hscl_ablation", "data=x", "set=demo", "epochs=no"], "row 'full': epochs"),
        (["hscl_ablation", "data=x", "set=demo", "rows=fulll"], "did you mean 'full'"),
        (["hscl_ablation", "data=x", "set=demo", "seeds=1,1"], "each seed once"),
        (["hscl_ablation", "data=x", "set=demo", "test=t"], "permutation or wilcoxon"),
        (["hscl_ablation", "data=x", "set=demo", "workers=-1"], "workers=-1"),
        (["nowhere/own.toml", "data=x"], "there is no file"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(words: list[str], said: str, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_names_of_rows_become_names_of_folders():
    assert file_name("M, T (A/V)") == "M-T-A-V"
    assert file_name("//") == "row"


def test_two_rows_of_one_folder_are_refused(tmp_path: Path):
    text = TWO_ROWS.replace('"text alone"', '"full "')
    with pytest.raises(Refused, match="rename one"):
        study_of(written(tmp_path, text), "data=x")


def test_credentials_of_the_data_are_told_to_nobody(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv(VARIABLE, "")  # and set back afterwards
    words = ["hscl/demo", "data=https://me:geheim@host.example/data?sig=heimlich", "seeds=1"]
    study = study_of(*words)
    assert study.data == ("https://host.example/data",)
    assert main([*words, "--plan"]) == 0
    said = capsys.readouterr().out + json.dumps(study.as_json())
    assert "geheim" not in said
    assert "heimlich" not in said
    assert "geheim" in os.environ[VARIABLE]  # which the processes of the runs inherit


def test_the_plan_is_printed_as_commands(tmp_path: Path, capsys):
    path = written(tmp_path, TWO_ROWS)
    assert main([path, f"data={DATA}", "seeds=1,2", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("concord train hscl/demo epochs=2 data=/data seed=1 run_dir=")


def test_the_users_number_of_threads_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("CONCORD_THREADS", raising=False)
    assert threads_of_each(4) == 3
    monkeypatch.setenv("CONCORD_THREADS", "3")  # chosen by this project, for another process
    monkeypatch.setattr("tune.studies.pool.available_cores", lambda: 8.0)
    assert threads_of_each(4) == 2


def test_the_ready_studies_are_listed_with_their_questions(capsys):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ready_names())
