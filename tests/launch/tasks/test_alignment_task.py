"""The alignment task: batches and ranks, proposed links, resuming, scores, seeds without labels,
predicted pairs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_folder import PAIRS, SECOND
from ranks import run_ranks
from small_models import ALIGNMENT, small_options

from core import distributed
from core.metrics.ranking import greedy_pairs
from core.models.mclea import MCLEA
from core.models.meaformer import MEAformer
from launch.align import predict
from launch.config import ConfigError, Run, load_recipe, override, recipe_names
from launch.engine.optimizer import learning_rate_factor
from launch.tasks.alignment import AlignmentTask
from launch.tasks.alignment_options import AlignmentOptions
from launch.tasks.build import build_task

CONFIGS: dict[str, Any] = {
    "mclea": small_options("mclea"),
    "meaformer": small_options("meaformer", dropout=0.0),
}
QUICK = {"iterate_from": 1, "propose_every": 1, "restart_every": 3, "commit_every": 3}


@pytest.fixture(scope="module")
def shards(graph_shards: Path) -> Path:
    return graph_shards


def run_of(shards: Path, model: str = "mclea", **options: Any) -> Run:
    return Run(
        model=model,
        options=CONFIGS[model],
        data=str(shards),
        batch_size=7,
        seed=5,
        select="MRR",
        goal="max",
        metrics="alignment",
        task_options=asdict(AlignmentOptions(**options)),
    )


def new_model(task: AlignmentTask) -> Any:
    torch.manual_seed(3)
    kind = {"mclea": MCLEA, "meaformer": MEAformer}[task.run.model]
    return kind(task.run.options, task.data)


def train(
    task: AlignmentTask, model: Any, optimizer: Any, epochs: range, stop_after: int = 1000
) -> list[float]:
    """The plain loop: gradients averaged over ranks; the losses of every step."""
    losses = []
    for epoch in epochs:
        task.begin_epoch(epoch, model)
        model.train()
        for (part,) in task.batches(epoch):
            output = model(part)
            named = model.losses(output, part) | model.global_batch_losses(
                model.global_batch_rows(output), part.target, part.weight
            )
            loss = torch.stack(list(named.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                parameter.grad = (
                    distributed.all_reduce_sum(parameter.grad) / distributed.world_size()
                )
            optimizer.step()
            task.mark_consumed()
            losses.append(loss.item())
            if len(losses) == stop_after:
                return losses
    return losses


def adam(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def whole_run(shards: Path, model_name: str) -> dict[str, Any]:
    """Six epochs with proposals, on however many ranks there are."""
    task = AlignmentTask(run_of(shards, model_name, **QUICK))
    model = new_model(task)
    losses = train(task, model, adam(model), range(6))
    return {
        "losses": losses,
        "proposed": task.proposed.tolist(),
        "scores": task.evaluate(model, "test", task.device),
    }


def whole_run_of_a_rank(shards: Path, model_name: str) -> dict[str, Any]:
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    result = whole_run(shards, model_name)
    shutdown_processes()
    return result


@pytest.mark.parametrize("model", ["mclea", "meaformer"])
def test_two_processes_give_the_losses_links_and_scores_of_one(
    shards: Path, tmp_path: Path, model: str
) -> None:
    alone = whole_run(shards, model)
    assert len(alone["proposed"]) > 3
    for found in run_ranks(2, tmp_path, whole_run_of_a_rank, shards, model):
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert found["proposed"] == alone["proposed"]
        assert found["scores"] == pytest.approx(alone["scores"], abs=1e-9)


@pytest.mark.parametrize("stop_after", [1, 3, 9, 13, 16])
def test_resuming_anywhere_equals_not_stopping(shards: Path, stop_after: int) -> None:
    run = run_of(shards, **QUICK)
    task = AlignmentTask(run)
    model = new_model(task)
    expected = train(task, model, adam(model), range(6))

    task = AlignmentTask(run)
    model = new_model(task)
    optimizer = adam(model)
    before = train(task, model, optimizer, range(6), stop_after)
    state = json.loads(json.dumps(task.state_dict()))
    epoch = state["position"][0]

    other = AlignmentTask(run)
    other.load_state_dict(state)
    assert other.proposed.tolist() == task.proposed.tolist()
    after = train(other, model, optimizer, range(epoch, 6))
    assert before + after == pytest.approx(expected, rel=1e-5)


def test_a_state_of_other_data_or_batches_is_refused(shards: Path) -> None:
    task = AlignmentTask(run_of(shards))
    state = task.state_dict()
    with pytest.raises(ValueError, match="another batch_size"):
        AlignmentTask(replace(run_of(shards), batch_size=9)).load_state_dict(state)
    with pytest.raises(ValueError, match="another data"):
        task.load_state_dict({**state, "data": "else"})


@pytest.mark.parametrize("model_name", ["mclea", "meaformer"])
def test_scoring_a_split_encodes_its_own_entities_alone_and_the_same(
    shards: Path, model_name: str
) -> None:
    task = AlignmentTask(run_of(shards, model_name))
    model = new_model(task)
    links = task.graphs.links["test"]
    everyone = task.embed(model)
    for side, rows in enumerate(task.embed_pairs(model, links)):
        assert rows.shape == (len(links), everyone.shape[1])
        torch.testing.assert_close(rows, everyone[links[:, side]])
    assert model.training


@pytest.mark.parametrize(
    "recipe", ["mclea/dbp15k_zh_en_iterative", "meaformer/dbp15k_zh_en_iterative"]
)
def test_the_rate_drops_once_when_proposals_begin(recipe: str) -> None:
    run = load_recipe(recipe)
    factors = [learning_rate_factor(run, epoch, run.epochs, epoch) for epoch in range(run.epochs)]
    drops = [epoch for epoch in range(1, run.epochs) if factors[epoch] != factors[epoch - 1]]
    assert drops == [run.task_options["iterate_from"]]
    assert (factors[0], factors[-1]) == (1, pytest.approx(0.2))


def test_every_link_comes_once_an_epoch_in_an_order_of_its_own(shards: Path) -> None:
    task = AlignmentTask(run_of(shards))
    epochs = []
    for epoch in range(2):
        parts = [part for (part,) in task.batches(epoch)]
        assert len(parts) == task.steps(epoch) == 3
        epochs.append(torch.cat([part.index for part in parts]).tolist())
        links = torch.cat([part.links for part in parts])  # type: ignore[attr-defined]
        assert torch.equal(links, task.links[torch.tensor(epochs[-1])])
        assert [part.loss_scale for part in parts] == [1 / len(part) for part in parts]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(18))
    assert epochs[0] != epochs[1]


class Fixed(torch.nn.Module):
    """A model whose embeddings are given; what it proposes is then known."""

    def __init__(self, joint: torch.Tensor):
        super().__init__()
        self.joint = joint

    def forward(self, batch: Any) -> Any:
        from core.model import Alignment

        return Alignment(self.joint, {})


def gold_embeddings(task: AlignmentTask, wrong: int = 0) -> torch.Tensor:
    """Partners have equal rows, except for the last ``wrong`` test links."""
    torch.manual_seed(0)
    joint = torch.randn(task.graphs.num_entities, 16)
    for split, links in task.graphs.links.items():
        links = links[: len(links) - wrong] if split == "test" else links
        joint[links[:, 1]] = joint[links[:, 0]]
    return torch.nn.functional.normalize(joint, dim=1)


def test_only_links_that_survive_probation_are_committed(shards: Path) -> None:
    task = AlignmentTask(
        run_of(shards, iterate_from=1, propose_every=2, restart_every=6, commit_every=6)
    )
    gold, spoilt = Fixed(gold_embeddings(task)), Fixed(gold_embeddings(task, wrong=5))
    hidden = len(task.graphs.links["test"]) + len(task.graphs.links["valid"])
    seen = []
    for epoch, model in enumerate([gold, gold, gold, gold, spoilt, gold, gold, gold]):
        task.begin_epoch(epoch, model)
        seen.append(
            (len(task.candidates) if task.candidates is not None else 0, len(task.proposed))
        )
    survivors = hidden - 5
    assert seen[:4] == [(0, 0), (0, 0), (hidden, 0), (hidden, 0)]
    assert survivors <= seen[4][0] <= hidden - 1  # chance may pair a spoilt entity with its partner
    assert seen[6] == (0, seen[4][0])
    assert seen[7] == seen[6]
    assert len(task.links) == 18 + seen[6][1]
    for side in (0, 1):
        assert not torch.isin(task.open_entities(side), task.links).any()
        assert len(task.open_entities(side)) == PAIRS - len(task.links)


def test_candidates_that_all_fail_are_not_replaced_before_the_next_window(shards: Path) -> None:
    task = AlignmentTask(
        run_of(shards, iterate_from=1, propose_every=1, restart_every=5, commit_every=5)
    )
    gold = Fixed(gold_embeddings(task))
    other = torch.roll(
        gold.joint, 1, 0
    )  # every entity looks like another one: no pair of before is found again
    for epoch, model in enumerate([gold, gold, gold, Fixed(other), gold, gold]):
        task.begin_epoch(epoch, model)
    assert len(task.proposed) == 0


def test_links_given_keep_their_numbers_when_others_are_proposed(shards: Path) -> None:
    task = AlignmentTask(run_of(shards, **QUICK))
    before = task.links.clone()
    for epoch in range(4):
        task.begin_epoch(epoch, Fixed(gold_embeddings(task)))
    assert len(task.links) == PAIRS
    assert torch.equal(task.links[: len(before)], before)
    remark = task._remarks()[0]
    assert "proposed 22 links" in remark
    assert "100.0% are right" in remark


def test_validation_ranks_its_links_among_all_entities_without_a_training_link(
    shards: Path,
) -> None:
    task = AlignmentTask(run_of(shards))
    links, graphs = task.graphs.links["valid"], task.graphs
    open_right = task.open_entities(1)
    rival = open_right[~torch.isin(open_right, links[:, 1])][0]
    joint = gold_embeddings(task)
    joint[rival] = joint[
        links[0, 0]
    ]  # as near as the partner, and no partner of any validation link
    joint[graphs.links["train"][0, 1]] = joint[links[1, 0]]  # has a training link: no candidate
    scores = task.evaluate(Fixed(joint), "valid", task.device)  # type: ignore[arg-type]
    assert scores["Hits@1"] == scores["all/r2l/Hits@1"] == 1
    assert scores["all/Hits@1"] == pytest.approx(1 - 1 / len(links))
    assert scores["all/MR"] == pytest.approx(1 + 0.5 / len(links))
    assert not any(
        name.startswith("all/") for name in task.evaluate(Fixed(joint), "test", task.device)
    )  # type: ignore[arg-type]


def test_scores_of_a_perfect_model_are_perfect_and_its_files_complete(
    shards: Path, tmp_path: Path
) -> None:
    task = AlignmentTask(run_of(shards))
    final = task.final(Fixed(gold_embeddings(task)), "test", task.device, tmp_path)  # type: ignore[arg-type]
    assert final.scores["Hits@1"] == final.scores["csls/r2l/MRR"] == 1
    assert task.objective(final.scores) == -1
    assert (tmp_path / final.plots[0][1]).stat().st_size > 1000
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert rows[0] == "left,right,rank,rank_right_to_left,predicted,similarity"
    assert len(rows) == 21
    for row in rows[1:]:
        left, right, rank, _, predicted, _ = row.split(",")
        assert (int(right), predicted, float(rank)) == (int(left) + SECOND, right, 1.0)


@pytest.mark.parametrize("view", ["chars", "image"])
def test_the_most_alike_names_or_images_replace_gold_links(shards: Path, view: str) -> None:
    task = AlignmentTask(run_of(shards, seeds=view, num_seeds=15))
    ids = [[int(entity) for entity in task.graphs.ids(link)] for link in task.seed_links]
    assert len(ids) == 15
    assert all(
        right == left + SECOND for left, right in ids
    )  # names of the folder are equal, images nearly
    assert "Unsupervised" in task._remarks()[0]


def test_greedy_pairs_are_those_of_sorting_everything() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.normal(size=(30, 3)), rng.normal(size=(24, 3))
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    scores, expected, used = left @ right.T, [], (set(), set())  # type: ignore[var-annotated]
    for cell in np.argsort(-scores, axis=None):
        i, j = divmod(int(cell), 24)
        if i not in used[0] and j not in used[1] and len(expected) < 11:
            expected.append([i, j])
            used[0].add(i), used[1].add(j)
    assert greedy_pairs(torch.from_numpy(left), torch.from_numpy(right), 11).tolist() == expected
    assert len(greedy_pairs(torch.from_numpy(left), torch.from_numpy(right), 99)) == 24
    assert len(greedy_pairs(torch.ones(3, 2), torch.ones(4, 2), 2)) == 2  # nothing but ties


def test_an_assignment_pairs_everyone_where_mutual_neighbours_cannot() -> None:
    left = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    right = torch.tensor([[1.0, 0.02], [0.5, 0.5], [0.0, 1.0]])
    mutual, _ = predict(left, right, "mutual", 0)
    assert mutual.tolist() == [[0, 0], [2, 2]]
    pairs, cosines = predict(left, right, "assignment", 0)
    assert pairs.tolist() == [[0, 0], [1, 1], [2, 2]]
    expected = torch.nn.functional.cosine_similarity(left, right)
    torch.testing.assert_close(cosines, expected)
    assert predict(left, right, "assignment", 1)[0].tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_micro_batch": 3}, "max_micro_batch"),
        ({"task_options": {"seed": "links"}}, "task_options has no 'seed'"),
        ({"task_options": {"seeds": "stars"}}, r"task_options.seeds='stars'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    shards: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AlignmentTask(replace(run_of(shards), **changes))


def test_a_wrong_score_or_split_is_answered_with_those_there_are(shards: Path) -> None:
    run = replace(run_of(shards), metrics="alignment")
    with pytest.raises(
        ConfigError, match=r"select='MAE' is no score of metrics=alignment; there are Hits@1"
    ):
        build_task(replace(run, select="MAE"))
    task = AlignmentTask(run)
    with pytest.raises(ValueError, match="no links 'dev'; it has train, valid, test"):
        task.evaluate(new_model(task), "dev", task.device)


def test_every_recipe_of_alignment_can_be_loaded_and_changed() -> None:
    names = [name for name in recipe_names() if name.split("/")[0] in ALIGNMENT]
    assert len(names) >= 30
    for name in names:
        run = override(load_recipe(name), ["options.views=graph", "task_options.csls=5"])
        assert tuple(run.options.views) == ("graph",)
        assert run.task_options["csls"] == 5
