"""Domains, settings and configurations of a search, without Ray running."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from searches import a_search, anything, ended

from launch.config import ConfigError, leaves, load_recipe, recipe_names, to_dict
from tune.cluster import capacity
from tune.journal import WORST
from tune.sampling.domain import Around, Choice, Range, read_domain
from tune.sampling.spaces import DEFAULT_SPACE, SPACES, SYMBOLS, default_space
from tune.sampling.suggest import Suggester, default_point
from tune.settings import load_search, read_search, same_search, write_search

KNOWN = ["hscl/demo", "data=shards"]


# domains ---------------------------------------------------------------------------------------


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
        *(
            "uniform(2, 1)",
            "uniform(1, 1)",
            "uniform(1)",
            "uniform(a, b)",
            "loguniform(0, 1)",
            "randint(0.5, 2)",
        ),
        *(
            "quniform(0, 1, 0.3)",
            "choice()",
            "choice(1, 1)",
            "gaussian(0, 1)",
            "3",
            "uniform(low=0, high=1)",
            "uniform(",
        ),
        *(
            "uniform(True, 2)",
            "choice(f(1))",
            "__import__('os').system('true')",
            "choice(__import__('os'))",
            "",
        ),
    ],
)
def test_what_is_no_domain_is_refused_with_the_forms_that_there_are(text: str):
    with pytest.raises(ConfigError, match=r"uniform\(a, b\)|range"):
        read_domain("key", text)


# settings --------------------------------------------------------------------------------------


def test_every_default_space_belongs_to_fields_of_a_recipe():
    fields: dict[str, set[str]] = {}
    for name in recipe_names():
        run = load_recipe(name)
        fields.setdefault(run.model, set()).update(leaves(to_dict(run)))
    for model in set(SPACES) & set(fields):
        missing = set(SPACES[model]) - fields[model]
        assert not missing, f"{model}: {missing}"
        assert set(SYMBOLS.get(model, {}).values()) <= fields[model]


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_has_something_to_search(recipe: str):
    assert read_search([recipe, "data=shards"]).spaces


def test_a_model_without_a_space_of_its_own_is_searched_for_what_most_models_have():
    assert default_space("a new model") == DEFAULT_SPACE
    assert "optim.groups.main.lr" in DEFAULT_SPACE


def test_the_default_space_is_searched_as_far_as_the_recipe_has_it():
    search = read_search(["mclea/dbp15k_zh_en", "data=shards"])
    assert search.changes == {"data": str(Path("shards").absolute())}
    assert set(search.spaces) == set(SPACES["mclea"])
    assert (search.trials, search.scheduler) == (32, "asha")
    known = leaves(to_dict(load_recipe("hscl/demo")))
    assert set(read_search(KNOWN).spaces) == {key for key in SPACES["hscl"] if key in known}


@pytest.mark.parametrize(
    "recipe", ["hscl/demo", "hscl/mosi", "hscl/mosi_utterance", "mclea/dbp15k_zh_en"]
)
def test_a_default_space_holds_the_recipe_itself(recipe: str):
    search = read_search([recipe, "data=shards"])
    assert default_point(search, search.domains()) is not None
    rate = Around(10).of(0.002)
    assert (rate.low, rate.high, rate.log) == (0.0002, 0.02, True)


def test_a_setting_is_searched_by_the_name_in_the_paper_or_by_its_last_part():
    search = read_search(
        [*KNOWN, "space=none", "space.tau=uniform(0.1, 1)", "space.omega2=choice(0.1, 0.2)"]
    )
    assert search.spaces == {
        "options.temperature": "uniform(0.1, 1)",
        "options.omega2": "choice(0.1, 0.2)",
    }


def test_a_value_that_is_given_is_not_searched():
    search = read_search([*KNOWN, "options.alpha=0.5", "space.omega1=none"])
    assert "options.alpha" not in search.spaces
    assert "options.omega1" not in search.spaces
    assert search.run().options.alpha == 0.5
    with pytest.raises(ConfigError, match="both set and searched"):
        read_search([*KNOWN, "options.alpha=0.5", "space.alpha=uniform(0, 1)"])


@pytest.mark.parametrize(
    ("words", "message"),
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
        (["gpus=-2"], "gpus=-2: at least -1"),
        (["concurrent=-1"], "concurrent=-1: at least 0"),
        (["interval=-1"], "interval=-1: at least 0"),
        (["retries=-1"], "retries=-1: at least 0"),
        (["reduction=1"], "reduction=1: at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        read_search([*KNOWN, *words])


def test_a_search_without_data_says_how_to_make_some():
    with pytest.raises(ConfigError, match="data_shards.convert"):
        read_search(["hscl/demo"])


def test_a_grid_is_searched_whole_unless_told_otherwise(tmp_path: Path):
    words = [
        *KNOWN,
        "space=none",
        "search=grid",
        "space.alpha=choice(0.1, 0.2)",
        "space.options.layers=randint(1, 3)",
    ]
    search = read_search(words)
    assert (search.trials, search.scheduler) == (6, "none")
    suggester = Suggester(search, anything)
    points = [suggester.point(number, []) for number in range(1, 8)]
    assert points[-1] is None
    assert {(p["options.alpha"], p["options.layers"]) for p in points[:-1] if p} == {
        (alpha, layers) for alpha in (0.1, 0.2) for layers in (1, 2, 3)
    }


def test_a_search_is_kept_and_found_again_where_its_folder_is(tmp_path: Path):
    search = read_search([*KNOWN, f"run_dir={tmp_path / 'a'}", "trials=5"])
    write_search(search)
    with pytest.raises(ConfigError, match="--resume "):
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
def test_as_many_trials_run_at_once_as_fit(
    tmp_path: Path, there: dict, changes: dict, concurrent: int
):
    assert capacity(a_search(tmp_path, **changes), there).concurrent == concurrent


@pytest.mark.parametrize(
    ("there", "changes", "threads"),
    [
        ({"CPU": 2.0}, {}, 1),
        ({"CPU": 2.0}, {"concurrent": 1}, 2),
        ({"CPU": 2.0}, {"concurrent": 1, "processes": 2}, 1),
        ({"CPU": 16.0}, {"trials": 4}, 4),
        ({"CPU": 16.0}, {"trials": 4, "cpus": 8}, 8),
        ({"CPU": 2.0}, {"cpus": 0.5}, 1),
        ({"CPU": 64.0}, {"concurrent": 1, "address": "auto"}, 1),  # which may be many machines
    ],
)
def test_trials_at_once_divide_the_cores(tmp_path: Path, there: dict, changes: dict, threads: int):
    assert capacity(a_search(tmp_path, **changes), there).threads == threads


def test_a_trial_that_does_not_fit_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cpus=0.5"):
        capacity(a_search(tmp_path, processes=3), {"CPU": 2.0})


# configurations --------------------------------------------------------------------------------


def test_the_first_trial_is_the_recipe_where_the_space_holds_it(tmp_path: Path):
    search = a_search(tmp_path)
    assert Suggester(search, anything).point(1, []) == {"options.alpha": 0.1, "options.layers": 1}
    outside = replace(search, spaces={"options.alpha": "uniform(0.5, 1.0)"})
    assert default_point(outside, outside.domains()) is None


@pytest.mark.parametrize("kind", ["optuna", "random"])
def test_a_configuration_follows_from_seed_number_and_the_trials_before(tmp_path: Path, kind: str):
    search = a_search(tmp_path, search=kind)
    before = [ended(n, [0.1 * n], **Suggester(search, anything).point(n, [])) for n in range(1, 8)]
    points = [Suggester(search, anything).point(8, before) for _ in range(2)]
    assert points[0] == points[1]
    assert points[0] != Suggester(search, anything).point(9, before)
    other = replace(search, changes={**search.changes, "seed": 7})
    assert points[0] != Suggester(other, anything).point(8, before)


def test_a_random_configuration_does_not_depend_on_other_trials(tmp_path: Path):
    suggester = Suggester(a_search(tmp_path, search="random"), anything)
    assert suggester.point(5, []) == suggester.point(
        5, [ended(1, [0.3], **{"options.alpha": 0.1, "options.layers": 1})]
    )


def test_optuna_learns_from_the_trials_before(tmp_path: Path):
    """After trials in which small alphas were better, more than half of what it draws is small."""
    search = a_search(tmp_path, spaces={"options.alpha": "uniform(0.0, 1.0)"}, trials=30)
    suggester = Suggester(search, anything)
    before = [ended(n, [n / 25], **{"options.alpha": n / 25}) for n in range(1, 25)]
    drawn = [suggester.point(number, before)["options.alpha"] for number in range(25, 45)]
    assert sum(value < 0.4 for value in drawn) > 14


def test_a_trial_that_runs_or_diverged_keeps_others_away_and_one_that_failed_does_not_count(
    tmp_path: Path,
):
    suggester = Suggester(a_search(tmp_path), anything)
    point = {"options.alpha": 0.5, "options.layers": 2}
    assert suggester.frozen(ended(1, [], "running", **point)).value is None
    assert suggester.frozen(ended(1, [0.3], "diverged", **point)).value == WORST
    assert suggester.frozen(ended(1, [0.3, 0.2], "stopped", **point)).value == 0.2
    before = [ended(n, [n / 9], **point) for n in range(1, 9)]
    failed = [*before, ended(9, [], "failed", **{"options.alpha": 0.9, "options.layers": 1})]
    assert suggester.point(10, before) == suggester.point(10, failed)


def test_a_configuration_that_cannot_be_trained_is_drawn_again(tmp_path: Path):
    suggester = Suggester(
        a_search(tmp_path), lambda point: "" if point["options.layers"] == 2 else "not two layers"
    )
    assert {suggester.point(number, [])["options.layers"] for number in range(2, 12)} == {2}
    suggester = Suggester(a_search(tmp_path), lambda point: "never")
    with pytest.raises(ConfigError, match="the last: never"):
        suggester.point(2, [])
