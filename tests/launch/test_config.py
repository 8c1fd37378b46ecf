"""Recipes, key=value changes, and the JSON that is saved with a run."""

from __future__ import annotations

import json

import pytest

from core.models import MODELS
from launch.config import (
    ConfigError,
    from_dict,
    load_recipe,
    override,
    recipe_functions,
    recipe_names,
    to_dict,
)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_json(name: str):
    run = load_recipe(name)
    assert run.recipe == name
    assert from_dict(json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_how_to_run_it(name: str):
    docstring = recipe_functions()[name].__doc__ or ""
    assert f"launch/train.py {name}" in docstring


def test_every_model_has_a_demo_recipe():
    sentiment = {name for name, model in MODELS.items() if model.task == "sentiment"}
    assert {f"{name}/demo" for name in sentiment} <= set(recipe_names())


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("batch_size=64", ["batch_size"], 64),
        ("optim.groups.main.lr=2e-5", ["optim", "groups", "main", "lr"], 2e-5),
        ("options.temperature=0.25", ["options", "temperature"], 0.25),
        ("options.modalities=text,audio", ["options", "modalities"], ("text", "audio")),
        ("options.modalities=text", ["options", "modalities"], ("text",)),
        ("options.bimodal=false", ["options", "bimodal"], False),
        ("data=s3://bucket/a", ["data"], "s3://bucket/a"),
        ("missing.rate=0.3", ["missing", "rate"], 0.3),
    ],
)
def test_a_change_sets_its_value(change: str, path: list[str], value: object):
    tree = to_dict(override(load_recipe("hscl/demo"), [change]))
    for key in path:
        tree = tree[key]
    assert tree == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batchsize=3", "did you mean 'batch_size'"),
        ("options.temprature=3", "did you mean 'temperature'"),
        ("optim.groups.mian.lr=3", "did you mean 'main'"),
        ("batch_size.x=3", "there is no 'x'"),
        ("batch_size", "written key=value"),
        ("batch_size=many", "batch_size='many'"),
        ("precision=fp8", "precision='fp8'"),
        ("options.temperature=warm", "options.temperature='warm'"),
        ("missing.rate=2", "missing.rate=2: .*less than or equal to 1"),
        ("epochs=0", "epochs=0: .*greater than 0"),
        ("batch_size=0", "batch_size=0: .*greater than"),
        ("optim.groups.main.lr=0", "optim.groups.main.lr=0: .*greater than 0"),
        ("optim.warmup=1.5", "optim.warmup=1.5: .*less than or equal to 1"),
        ("optim.betas=0.9,1", "optim.betas.1=1: .*less than 1"),
        ("keep=0", "keep=0: .*greater than"),
        ("lr=1", "did you mean 'optim.groups.main.lr'"),
        ("temperature=1", "did you mean 'options.temperature'"),
        ("dropout=1", "did you mean 'options.dropout'"),
        ("rate=0.1", "did you mean 'missing.rate'"),
        ("options.lr=1", "did you mean 'optim.groups.main.lr'"),
        ('task_options={"a": 1}', "a sentiment run has none"),
        ("model=hcsl", "did you mean 'hscl'"),
    ],
)
def test_a_change_that_cannot_be_is_refused_with_what_to_write(change: str, message: str):
    with pytest.raises(ConfigError, match=message):
        override(load_recipe("hscl/demo"), [change])


def test_a_wrong_recipe_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'hscl/mosi'"):
        load_recipe("hscl/moosi")
