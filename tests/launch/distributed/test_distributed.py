"""One result: every model gives the same losses and scores for any number of ranks, ZeRO stage and
micro-batch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from rank_trainings import first_steps, partitioned, stored_tensors, train_all
from ranks import run_ranks
from shard_folders import alignment_shards, sentiment_shards
from small_models import ALIGNMENT, BOTH_WAYS, SENTIMENT, small_run

from core.models import MODELS
from launch.config import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # many processes, many trainings

Case = tuple[int, int, int]  # ranks, ZeRO stage, largest micro-batch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("distributed")
    return {"sentiment": sentiment_shards(folder), "alignment": alignment_shards(folder)}


def results(
    runs: dict[str, Run], cases: dict[str, list[Case]], steps: int, folder: Path
) -> dict[tuple[str, Case], Any]:
    """What ``train_all`` gives for each run in each of its cases; one start of processes per number
    of ranks."""
    config, found = partitioned(folder), {}
    every_case = [(name, case) for name in runs for case in cases_of(name, cases[name])]
    for ranks in sorted({case[0] for _, case in every_case}):
        batch = [
            (
                (name, case),
                replace(runs[name], zero_stage=case[1], max_micro_batch=case[2], deepspeed=config),
            )
            for name, case in every_case
            if case[0] == ranks
        ]
        answers = run_ranks(
            ranks, folder / f"ranks-{ranks}", train_all, [run for _, run in batch], steps
        )
        for other in answers[1:]:
            assert [each["losses"] for each in other] == [each["losses"] for each in answers[0]]
        found |= {key: answer for (key, _), answer in zip(batch, answers[0], strict=True)}
    return found


def cases_of(name: str, cases: list[Case]) -> list[Case]:
    """The cases that ``name`` knows: graphs come whole, without micro-batches."""
    if name in BOTH_WAYS:
        return [case for case in cases if case[0] == 1 or case[1] != 2]
    if name in SENTIMENT:
        return cases
    return list(dict.fromkeys((ranks, stage, 0) for ranks, stage, _ in cases))


def compare(found: dict[tuple[str, Case], Any]) -> None:
    for (name, case), result in found.items():
        expected = found[name, (1, 0, 0)]
        what = f"{name} on {case[0]} ranks at stage {case[1]} in micro-batches of {case[2]}"
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-4), what
        assert result["norms"] == pytest.approx(expected["norms"], rel=1e-3), what
        assert result["scores"] == pytest.approx(expected["scores"], abs=1e-4), what
        assert result["rates"] == expected["rates"], what
        assert len(set(result["rates"].values())) == len(result["rates"]), what


def runs_of(data: dict[str, Path], names: list[str]) -> dict[str, Run]:
    return {name: small_run(name, data[MODELS[name].task]) for name in names}


def some_cases(number: int) -> list[Case]:
    """Every stage once, on 2 or on 3 ranks; which stage goes with what turns with the model's
    number.

    The last micro-batch of 4 is smaller than the others.
    """
    layouts = [(2, 0), (2, 2), (3, 0), (3, 2)]
    cases = [(ranks, (number + turn) % 4, micro) for turn, (ranks, micro) in enumerate(layouts)]
    return [(1, 0, 0), (1, 1 + number % 3, 4), *cases]


def all_cases() -> list[Case]:
    cases = list(itertools.product((1, 2, 3, 4), (0, 1, 2, 3), (0, 2)))
    return [*cases, (1, 2, 4), (2, 2, 4)]


def in_groups(names: list[str], size: int = 5) -> list[list[str]]:
    """Processes take longer to start than a small model to train, so several models share them."""
    return [names[first : first + size] for first in range(0, len(names), size)]


@pytest.mark.parametrize("names", in_groups(list(MODELS)), ids="-".join)
def test_every_model_gives_one_result_on_1_to_3_ranks_at_every_stage(
    names: list[str], data: dict[str, Path], tmp_path: Path
):
    cases = {name: some_cases(list(MODELS).index(name)) for name in names}
    compare(results(runs_of(data, names), cases, 10, tmp_path))


@pytest.mark.deep
@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_one_result_in_every_combination(
    name: str, data: dict[str, Path], tmp_path: Path
):
    compare(results(runs_of(data, [name]), {name: all_cases()}, 20, tmp_path))


@pytest.mark.parametrize("name", ["hscl", "mclea"])
def test_contrastive_gradients_have_the_scale_and_direction_of_one_process(
    name: str, data: dict[str, Path], tmp_path: Path
):
    """Adam's first moment after one step is the gradient times a constant; contrast outweighs all
    other losses."""
    base = small_run(name, data[MODELS[name].task], deepspeed=partitioned(tmp_path))
    base = replace(base, optim=replace(base.optim, clip=0.0))
    if name == "hscl":
        base = replace(base, options=replace(base.options, alpha=0.0, omega1=100.0, omega2=100.0))
    kinds = [
        (stage, micro)
        for stage in (0, 1, 2, 3)
        for micro in ((0,) if name in ALIGNMENT else (0, 4))
    ]
    runs = [replace(base, zero_stage=stage, max_micro_batch=micro) for stage, micro in kinds]
    run_ranks(1, tmp_path / "one", first_steps, runs[:1], tmp_path / "expected")
    expected = gradients(tmp_path / "expected/0")
    total = sum(float(gradient.square().sum()) for gradient in expected.values()) ** 0.5
    assert total > 0
    for ranks in (2, 3):
        run_ranks(
            ranks, tmp_path / f"ranks-{ranks}", first_steps, runs, tmp_path / f"found-{ranks}"
        )
        for place, kind in enumerate(kinds):
            found = gradients(tmp_path / f"found-{ranks}/{place}")
            assert found.keys() == expected.keys()
            for parameter, gradient in expected.items():
                error = float((found[parameter] - gradient).norm())
                assert error <= 1e-4 * float(gradient.norm()) + 1e-7 * total, (
                    ranks,
                    kind,
                    parameter,
                )


def gradients(run_dir: Path) -> dict[str, Any]:
    return {
        key: value for key, value in stored_tensors(run_dir).items() if key.startswith("exp_avg ")
    }


@pytest.mark.parametrize("modality", ["audio"])
def test_a_rank_without_any_audio_neither_hangs_nor_differs(
    data: dict[str, Path], tmp_path: Path, modality: str
):
    config = partitioned(tmp_path)
    runs = [
        small_run("hscl", data["sentiment"], zero_stage=stage, deepspeed=config)
        for stage in (0, 1, 2, 3)
    ]
    for name in SENTIMENT:
        if name != "hscl":
            stage: Literal[1, 2] = 1 if name in BOTH_WAYS else 2
            runs.append(small_run(name, data["sentiment"], zero_stage=stage))
    expected = run_ranks(1, tmp_path / "one", train_all, runs[3:], 4, modality)[0]
    expected = [expected[0]] * 3 + expected
    found = run_ranks(2, tmp_path / "two", train_all, runs, 4, modality)[0]
    for run, one, two in zip(runs, expected, found, strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4), run.model
        assert two["scores"] == pytest.approx(one["scores"], abs=1e-4), run.model


def test_remembering_less_and_other_precisions_train(data: dict[str, Path], tmp_path: Path):
    base = small_run("hscl", data["sentiment"], zero_stage=2)
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "recompute": {"recompute": True},
        "recompute at stage 3": {"recompute": True, "zero_stage": 3},
        "offload": {"offload": True},
        "offload at stage 3": {"offload": True, "zero_stage": 3},
        "bf16": {"precision": "bf16"},
        "bf16 without ZeRO": {"precision": "bf16", "zero_stage": 0},
        "bf16 at stage 3": {"precision": "bf16", "zero_stage": 3, "max_micro_batch": 4},
    }
    runs = [replace(base, **changes) for changes in kinds.values()]
    plain, *others = run_ranks(2, tmp_path / "ranks", train_all, runs, 6)[0]
    for (kind, changes), found in zip(list(kinds.items())[1:], others, strict=True):
        tolerance = 0.05 if "precision" in changes else 1e-5
        assert found["losses"] == pytest.approx(plain["losses"], rel=tolerance), kind
        assert found["rates"] == plain["rates"], kind
