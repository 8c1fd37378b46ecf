"""Training steps do not come to ask for more operators unnoticed: on a GPU each is a launch.

The table beside this file says how many they ask for. Where a change is meant to need more, write
the table anew: RENEW_OPERATOR_COUNTS=1 python -m pytest tests/core/kernels/test_operator_counts.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import Contract
from operator_counts import OperatorCounter, as_on_a_gpu, count_step, count_training_step

from core.batch import EntityGraph, Utterances
from core.dropout import SampleDropout, number_dropouts, sample_masks
from core.encoders.attention import TransformerLayer
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models import MODELS
from launch.config import load_recipe

TABLE = Path(__file__).parent / "operator_counts.json"
LARGEST_GROWTH = 1.2
RENEWS = bool(os.environ.get("RENEW_OPERATOR_COUNTS"))


@pytest.fixture
def contract(
    name: str,
    spec: DataSpec,
    make_utterances: Callable[..., Utterances],
    make_graph: Callable[..., tuple[DataSpec, EntityGraph]],
) -> Contract:
    if MODELS[name].task == "alignment":
        return Contract(name, make_graph()[0], lambda: make_graph()[1])
    return Contract(name, spec, make_utterances)


def in_training(contract: Contract, batch: Any) -> Any:
    """The model in its third epoch, all its dropouts awake."""
    model = number_dropouts(contract.warm(batch))
    for module in model.modules():
        if isinstance(module, SampleDropout):
            module.p = 0.1
    return model.train()


def compare(counter: OperatorCounter, key: str) -> None:
    """Fails where a count has grown by more than a fifth, or has shrunk so much that the table says
    nothing any more."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if RENEWS:
        table[key] = counter.total
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert key in table, f"{key} is not in {TABLE.name}; {__doc__}"
    most = counter.counts.most_common(12)
    assert counter.total <= LARGEST_GROWTH * table[key], f"{__doc__}\nMost of them: {most}"
    assert counter.total >= table[key] / LARGEST_GROWTH, f"far fewer than the table says; {__doc__}"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_step_asks_for_no_more_operators_than_it_did(contract: Contract) -> None:
    batch = contract.make()
    model = in_training(contract, batch)
    compare(count_step(model, batch), f"{contract.name} on a CPU")
    with as_on_a_gpu():
        compare(count_step(model, batch), f"{contract.name} on a GPU")


@pytest.mark.parametrize(
    ("name", "precision", "most"),
    [
        ("hscl", "fp32", 1400),
        ("hscl", "bf16", 1800),
        ("self_mm", "fp32", 1000),
        ("self_mm", "bf16", 1000),
    ],
)
def test_a_step_with_an_encoder_of_twelve_layers_is_within_its_limit(
    spec: DataSpec, make_utterances: Callable[..., Utterances], name: str, precision: str, most: int
) -> None:
    """BERT-base's layers, narrow ones: how many operators there are does not depend on widths."""
    torch.manual_seed(1)
    text = TextConfig(source="small", width=24, layers=12, heads=2)
    options = replace(load_recipe(f"{name}/mosi").options, text=text)
    model = MODELS[name](options, spec).train()
    model.begin_epoch(1)
    with as_on_a_gpu():
        # without human labels of single modalities, as MOSI
        batch = make_utterances(unimodal_labels={})
        counter = count_training_step(model, batch, precision)
    compare(counter, f"{name} in {precision}, a whole step with twelve layers")
    assert counter.total <= most


def test_dropout_and_attention_are_one_operator_each_way() -> None:
    layer = number_dropouts(TransformerLayer(8, 2, 16, 0.1)).train()
    x = torch.randn(3, 5, 8, requires_grad=True)
    mask = torch.ones(3, 5, dtype=torch.bool)
    with as_on_a_gpu(), sample_masks(1, 2, torch.arange(3)), OperatorCounter() as counter:
        layer(x, mask).sum().backward()
    assert counter.counts["concord::dropout"] == 3 * 2
    assert counter.counts["concord::attention"] == 1
    assert counter.counts["concord::attention_backward"] == 1
    assert counter.counts["_softmax"] == counter.counts["bmm"] == counter.counts["zeros"] == 0


def test_views_and_memory_are_no_work() -> None:
    x = torch.ones(3)
    with OperatorCounter() as counter:
        (x + 1).view(3, 1).t().mul_(2)
        torch.empty(3)
    assert counter.counts == {"add": 1, "mul_": 1}
