"""What a search is and what it decides, without Ray running: spaces, configurations, the journal, rungs, the report."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.config import ConfigError, load_recipe, override, recipe_names, to_dict
from launch.train import parse
from tune.asha import Rungs
from tune.cluster import capacity
from tune.domain import Around, Choice, Range, read_domain
from tune.drawings import importance, position
from tune.journal import WORST, Journal, Record
from tune.report import best_changes, write_best, write_confirmed, write_report
from tune.settings import Search, load_search, read_search, same_search, write_search
from tune.source import Source, default_point
from tune.spaces import SPACES, SYMBOLS
from tune.words import leaves

KNOWN = ["hscl/demo", "data=shards"]
FREE = {"options.alpha": "uniform(0.0, 1.0)", "options.layers": "choice(1, 2, 3)"}


def a_search(folder: Path, **changes: Any) -> Search:
    search = Search("hscl/demo", {"data": "shards", "epochs": 9}, dict(FREE), str(folder), trials=8, confirm=2)
    return replace(search, **changes)


def anything(changes: dict[str, Any]) -> str:
    return ""


def ended(number: int, badness: list[float], state: str = "finished", **changes: Any) -> Record:
    history = {
        epoch: {"time": 60.0 * number + epoch, "badness": value, "scores": {"MAE": value, "Corr": 1 - value}}
        for epoch, value in enumerate(badness, 1)
    }
    return Record(number, changes, history, state, started=60.0 * number, ended=60.0 * number + 30)


# domains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("uniform(-1, 2.5)", Range(-1, 2.5)),
        ("loguniform(1e-5, 1e-2)", Range(1e-5, 1e-2, log=True)),
        ("randint(1, 4)", Range(1, 4, whole=True)),
        ("lograndint(16, 256)", Range(16, 256, log=True, whole=True)),
        ("quniform(0, 0.5, 0.1)", Range(0, 0.5, step=0.1)),
        ("choice(16, 32)", Choice((16, 32))),
        ("choice(adam, 'adamw', true, null)", Choice(("adam", "adamw", True, None))),
        ("choice((5, 2.0), [1, -1])", Choice(([5, 2.0], [1, -1]))),
        (" none ", None),
    ],
)
def test_a_domain_is_read_as_written(text: str, domain: Any):
    assert read_domain("key", text) == domain
    assert domain is None or read_domain("key", str(domain)) == domain


@pytest.mark.parametrize(
    "text",
    [
        *("uniform(2, 1)", "uniform(1, 1)", "uniform(1)", "uniform(a, b)", "loguniform(0, 1)", "randint(0.5, 2)"),
        *(
            "quniform(0, 1, 0.3)",
            "choice()",
            "choice(1, 1)",
            "gaussian(0, 1)",
            "3",
            "uniform(low=0, high=1)",
            "uniform(",
        ),
        *("uniform(True, 2)", "choice(f(1))", "__import__('os').system('true')", "choice(__import__('os'))", ""),
    ],
)
def test_what_is_no_domain_is_refused_with_the_forms_that_there_are(text: str):
    with pytest.raises(ConfigError, match=r"uniform\(a, b\)|range"):
        read_domain("key", text)


# settings ----------------------------------------------------------------------------------------------------------


def test_every_default_space_belongs_to_fields_of_a_recipe():
    fields: dict[str, set[str]] = {}
    for name in recipe_names():
        run = load_recipe(name)
        fields.setdefault(run.model, set()).update(leaves(to_dict(run)))
    for model in set(SPACES) & set(fields):
        missing = set(SPACES[model]) - fields[model]
        assert not missing, f"{model}: {missing}"
        assert set(SYMBOLS.get(model, {}).values()) <= fields[model]


def test_the_default_space_is_searched_as_far_as_the_recipe_has_it():
    search = read_search(["mclea/dbp15k_zh_en", "data=shards"])
    assert search.changes == {"data": str(Path("shards").absolute())}
    assert set(search.spaces) == set(SPACES["mclea"])
    assert (search.trials, search.scheduler) == (32, "asha")
    known = leaves(to_dict(load_recipe("hscl/demo")))
    assert set(read_search(KNOWN).spaces) == {key for key in SPACES["hscl"] if key in known}


@pytest.mark.parametrize("recipe", ["hscl/demo", "hscl/mosi", "hscl/mosi_utterance", "mclea/dbp15k_zh_en"])
def test_a_default_space_holds_the_recipe_itself(recipe: str):
    search = read_search([recipe, "data=shards"])
    assert default_point(search, search.domains()) is not None
    rate = Around(10).of(0.002)
    assert (rate.low, rate.high, rate.log) == (0.0002, 0.02, True)


def test_a_setting_is_searched_by_the_name_in_the_paper_or_by_its_last_part():
    search = read_search([*KNOWN, "space=none", "space.tau=uniform(0.1, 1)", "space.omega2=choice(0.1, 0.2)"])
    assert search.spaces == {"options.temperature": "uniform(0.1, 1)", "options.omega2": "choice(0.1, 0.2)"}


def test_a_value_that_is_given_is_not_searched():
    search = read_search([*KNOWN, "options.alpha=0.5", "space.omega1=none"])
    assert "options.alpha" not in search.spaces
    assert "options.omega1" not in search.spaces
    assert search.run().options.alpha == 0.5
    with pytest.raises(ConfigError, match="both set and searched"):
        read_search([*KNOWN, "options.alpha=0.5", "space.alpha=uniform(0, 1)"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["space.temprature=uniform(0, 1)"], "did you mean 'temperature'"),
        (["optoins.alpha=1"], "did you mean 'options'"),
        (["trails=3"], "no option 'trails'"),
        (["trials=many"], "trials=many"),
        (["trials=0"], "trials=0: at least 1"),
        (["search=bayes"], "search=bayes"),
        (["scheduler=asha", "search=pbt"], "leave out scheduler=asha"),
        (["search=grid"], "search=grid needs lists"),
        (["grace=99"], "more than the recipe's epochs"),
        (["space=none"], "nothing to search"),
        (["space.data=choice(a, b)"], "both set and searched"),
        (["space.run_dir=choice(a, b)"], "cannot be searched"),
        (["space.seed=choice(1, 2)"], "confirm=0"),
        (["space.layers=choice(1, 2)"], "could be options.layers"),
        (["cpus=0"], "needs some part of a CPU"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(words: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        read_search([*KNOWN, *words])


def test_a_search_without_data_says_how_to_make_some():
    with pytest.raises(ConfigError, match="data_shards.convert"):
        read_search(["hscl/demo"])


def test_a_grid_is_searched_whole_unless_told_otherwise(tmp_path: Path):
    words = [*KNOWN, "space=none", "search=grid", "space.alpha=choice(0.1, 0.2)", "space.options.layers=randint(1, 3)"]
    search = read_search(words)
    assert (search.trials, search.scheduler) == (6, "none")
    source = Source(search, anything)
    points = [source.point(number, []) for number in range(1, 8)]
    assert points[-1] is None
    assert {(p["options.alpha"], p["options.layers"]) for p in points[:-1] if p} == {
        (alpha, layers) for alpha in (0.1, 0.2) for layers in (1, 2, 3)
    }


def test_a_search_is_kept_and_found_again_where_its_folder_is(tmp_path: Path):
    search = read_search([*KNOWN, f"run_dir={tmp_path / 'a'}", "trials=5"])
    write_search(search)
    with pytest.raises(ConfigError, match="resume="):
        write_search(search)
    (tmp_path / "a").rename(tmp_path / "b")
    again = load_search(tmp_path / "b")
    assert again == replace(search, run_dir=str(tmp_path / "b"))
    same_search(again, [*KNOWN, "trials=5"])
    with pytest.raises(ConfigError, match="trials"):
        same_search(again, [*KNOWN, "trials=6"])


@pytest.mark.parametrize(
    ("there", "changes", "concurrent"),
    [
        ({"CPU": 2.0}, {}, 2),
        ({"CPU": 2.0}, {"processes": 2}, 1),
        ({"CPU": 2.0}, {"processes": 2, "cpus": 0.5}, 2),
        ({"CPU": 16.0, "GPU": 3.0}, {"processes": 2}, 1),
        ({"CPU": 16.0, "GPU": 3.0}, {"gpus": 0.5}, 6),
        ({"CPU": 16.0, "GPU": 3.0}, {"gpus": 0}, 8),  # as many as there are trials
        ({"CPU": 16.0}, {"concurrent": 3}, 3),
    ],
)
def test_as_many_trials_run_at_once_as_fit(tmp_path: Path, there: dict, changes: dict, concurrent: int):
    assert capacity(a_search(tmp_path, **changes), there).concurrent == concurrent


def test_a_trial_that_does_not_fit_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cpus=0.5"):
        capacity(a_search(tmp_path, processes=3), {"CPU": 2.0})


# configurations ----------------------------------------------------------------------------------------------------


def test_the_first_trial_is_the_recipe_where_the_space_holds_it(tmp_path: Path):
    search = a_search(tmp_path)
    assert Source(search, anything).point(1, []) == {"options.alpha": 0.1, "options.layers": 1}
    outside = replace(search, spaces={"options.alpha": "uniform(0.5, 1.0)"})
    assert default_point(outside, outside.domains()) is None


@pytest.mark.parametrize("kind", ["optuna", "random"])
def test_a_configuration_follows_from_seed_number_and_the_trials_before(tmp_path: Path, kind: str):
    search = a_search(tmp_path, search=kind)
    before = [ended(n, [0.1 * n], **Source(search, anything).point(n, [])) for n in range(1, 8)]
    points = [Source(search, anything).point(8, before) for _ in range(2)]
    assert points[0] == points[1]
    assert points[0] != Source(search, anything).point(9, before)
    other = replace(search, changes={**search.changes, "seed": 7})
    assert points[0] != Source(other, anything).point(8, before)


def test_a_random_configuration_does_not_depend_on_other_trials(tmp_path: Path):
    source = Source(a_search(tmp_path, search="random"), anything)
    assert source.point(5, []) == source.point(5, [ended(1, [0.3], **{"options.alpha": 0.1, "options.layers": 1})])


def test_optuna_learns_from_the_trials_before(tmp_path: Path):
    """After trials in which small alphas were better, more than half of what it draws is small."""
    search = a_search(tmp_path, spaces={"options.alpha": "uniform(0.0, 1.0)"}, trials=30)
    source = Source(search, anything)
    before = [ended(n, [n / 25], **{"options.alpha": n / 25}) for n in range(1, 25)]
    drawn = [source.point(number, before)["options.alpha"] for number in range(25, 45)]
    assert sum(value < 0.4 for value in drawn) > 14


def test_a_trial_that_runs_or_diverged_keeps_others_away_and_one_that_failed_does_not_count(tmp_path: Path):
    source = Source(a_search(tmp_path), anything)
    point = {"options.alpha": 0.5, "options.layers": 2}
    assert source.frozen(ended(1, [], "running", **point)).value is None
    assert source.frozen(ended(1, [0.3], "diverged", **point)).value == WORST
    assert source.frozen(ended(1, [0.3, 0.2], "stopped", **point)).value == 0.2
    before = [ended(n, [n / 9], **point) for n in range(1, 9)]
    failed = [*before, ended(9, [], "failed", **{"options.alpha": 0.9, "options.layers": 1})]
    assert source.point(10, before) == source.point(10, failed)


def test_a_configuration_that_cannot_be_trained_is_drawn_again(tmp_path: Path):
    source = Source(a_search(tmp_path), lambda point: "" if point["options.layers"] == 2 else "not two layers")
    assert {source.point(number, [])["options.layers"] for number in range(2, 12)} == {2}
    source = Source(a_search(tmp_path), lambda point: "never")
    with pytest.raises(ConfigError, match="the last: never"):
        source.point(2, [])


# the journal -------------------------------------------------------------------------------------------------------


def test_a_journal_is_read_back_as_it_was_written(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write("session")
        journal.write("start", 1, changes={"options.layers": 2})
        journal.write("epoch", 1, epoch=1, badness=0.5, scores={"MAE": 0.5})
        journal.write("epoch", 1, epoch=2, badness=0.7, scores={"MAE": 0.7})
        journal.write("start", 2, changes={})
        journal.write("epoch", 2, epoch=1, badness=0.4, scores={"MAE": 0.4})
        journal.write("end", 2, state="diverged", reason="nan")
    with Journal(path) as again:
        assert again.records == journal.records
        assert again.sessions == 1
        assert [record.number for record in again.unfinished()] == [1]
        assert (again.records[1].best, again.records[1].best_epoch) == (0.5, 1)
        assert again.ranking() == []  # one runs, the other diverged


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_a_line_that_was_cut_off_counts_as_not_written_and_spoils_nothing_after_it(tmp_path: Path, cut: int):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write("start", 1, changes={})
        journal.write("end", 1, state="finished", reason="")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert journal.records[1].state == "running"
        journal.write("start", 2, changes={})
    with Journal(path) as journal:
        assert sorted(journal.records) == [1, 2]
        assert journal.records[1].state == "running"


def test_trials_are_ranked_by_their_best_epoch_and_the_earlier_of_equals_comes_first(tmp_path: Path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.records = {
            1: ended(1, [0.9, 0.3, 0.8]),
            2: ended(2, [0.3], "stopped"),
            3: ended(3, [0.1], "diverged"),
            4: ended(4, [0.2]),
            5: ended(5, [], "failed"),
        }
        assert [record.number for record in journal.ranking()] == [4, 1, 2]
        assert journal.ranking()[1].scores["MAE"] == 0.3


# rungs -------------------------------------------------------------------------------------------------------------


def reports(rungs: Rungs, name: str, values: list[float]) -> tuple[int, str]:
    """Let a trial report; (its epochs, the last decision)."""
    trial = SimpleNamespace(trial_id=name)
    rungs.on_trial_add(None, trial)
    action, best, epoch = "CONTINUE", math.inf, 0
    for epoch, value in enumerate(values, 1):
        best = min(best, value)
        action = rungs.on_trial_result(None, trial, {"epoch": epoch, "best": best, "badness": value})
        if action == "STOP":
            break
    return epoch, action


def new_rungs(journal: Journal) -> Rungs:
    rungs = Rungs(journal, epochs=9, grace=1, reduction=3)
    rungs.set_search_properties("best", "min")
    return rungs


TRIALS = [[0.9, 0.8, 0.5, 0.4], [0.7, 0.75, 0.6], [0.5, 0.45, 0.3, 0.2], [0.95], [0.6], [0.49, 0.48, 0.47]]


def test_rungs_are_the_same_after_a_restart(tmp_path: Path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        first = new_rungs(journal)
        for number, values in enumerate(TRIALS, 1):
            epochs, action = reports(first, f"trial {number}", values)
            journal.records[number] = ended(number, values[:epochs], "stopped" if action == "STOP" else "finished")
        assert {record.state for record in journal.trials()} == {"stopped", "finished"}
        again = new_rungs(journal)
        assert again.rungs() == first.rungs()
        assert [milestone for milestone, _ in again.rungs()] == [9, 3, 1]
        newcomer = [0.65, 0.6, 0.5]
        assert reports(again, "new", newcomer) == reports(first, "new", newcomer) == (1, "STOP")
    with Journal(tmp_path / "empty.jsonl") as journal:
        assert reports(new_rungs(journal), "new", newcomer)[1] == "CONTINUE"


def test_a_trial_that_is_to_go_on_leaves_its_place_on_the_rungs_until_it_reports_again(tmp_path: Path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.records = {1: ended(1, [0.5, 0.4, 0.3]), 2: ended(2, [0.9], "running")}
        rungs = new_rungs(journal)
        assert [list(scores) for _, scores in rungs.rungs()] == [[], ["trial 1"], ["trial 1"]]
        assert reports(rungs, "x", [0.9, 0.8]) == (1, "STOP")


def test_a_trial_that_failed_takes_no_place_on_the_rungs(tmp_path: Path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        rungs = new_rungs(journal)
        trial = SimpleNamespace(trial_id="bad")
        rungs.on_trial_add(None, trial)
        rungs.on_trial_complete(None, trial, {"epoch": 1, "best": WORST, "state": "diverged"})
        assert all(not scores for _, scores in rungs.rungs())


# the report --------------------------------------------------------------------------------------------------------


def a_journal(search: Search) -> Journal:
    journal = Journal(search.folder / "journal.jsonl")
    source = Source(search, anything)
    for number in range(1, 8):
        point = source.point(number, journal.trials())
        assert point is not None
        value = 0.5 + (point["options.alpha"] - 0.3) ** 2
        journal.records[number] = ended(
            number, [value + 0.2, value], "stopped" if number % 3 == 0 else "finished", **point
        )
    journal.records[8] = replace(ended(8, [], "diverged", **point), reason="loss became nan | in epoch 0")
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
    assert table[0].startswith("trial,state,epochs,best_epoch,valid_MAE,valid_Corr,options.alpha,options.layers")
    text = (tmp_path / "report.md").read_text()
    assert "| 8 | diverged | 0 | loss became nan / in epoch 0 |" in text
    for name in ("history.png", "parallel.png", "slices.png", "importance.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).stat().st_size > 5000


def test_a_search_without_a_usable_trial_has_a_report_that_says_so(tmp_path: Path):
    search = a_search(tmp_path)
    with Journal(tmp_path / "journal.jsonl") as journal, Journal(tmp_path / "confirm.jsonl") as confirmation:
        journal.records = {1: replace(ended(1, [], "failed"), reason="out of memory")}
        write_report(search, journal, confirmation)
    text = (tmp_path / "report.md").read_text()
    assert "No trial came to a normal end" in text
    assert "out of memory" in text


def test_importance_finds_the_setting_that_matters(tmp_path: Path):
    search = a_search(tmp_path, search="random")
    source = Source(search, anything)
    points = [source.point(number, []) for number in range(2, 40)]
    records = [ended(n, [p["options.alpha"]], **p) for n, p in enumerate(points, 1) if p]
    shares = importance(search.domains(), records)
    assert math.isclose(sum(shares.values()), 1.0, rel_tol=1e-6)
    assert shares["options.alpha"] > 0.9
    assert importance(search.domains(), records[:2]) == {}
    assert importance(search.domains(), [ended(r.number, [1.0], **r.changes) for r in records]) == {}


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
    assert override(load_recipe("hscl/demo"), [f"{k}={json.dumps(v)}" for k, v in changes.items()]).epochs == 9
