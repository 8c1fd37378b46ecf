"""Training steps do not come to ask for more operators unnoticed: on a GPU each is a launch.

The table beside this file says how many they ask for. Where a change is meant to need more, write
the table anew: RENEW_OPERATOR_COUNTS=1 python -m pytest tests/core/kernels/test_operator_counts.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import Contract
from operator_counts import OperatorCounter, count_step

from core.batch import EntityGraph, Utterances
from core.dropout import number_dropouts
from core.model import DataSpec
from core.models import MODELS

TABLE = Path(__file__).parent / "operator_counts.json"
ALLOWED_GROWTH = 1.2
RENEWS = bool(os.environ.get("RENEW_OPERATOR_COUNTS"))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_training_step_asks_for_no_more_operators_than_it_did(
    name: str,
    spec: DataSpec,
    make_utterances: Callable[..., Utterances],
    make_graph: Callable[..., tuple[DataSpec, EntityGraph]],
) -> None:
    if MODELS[name].task == "alignment":
        data, batch = make_graph()
    else:
        data, batch = spec, make_utterances()
    contract = Contract(name, data, lambda: batch)
    model: Any = number_dropouts(contract.warm(batch))
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.1  # dropout is what there was most of
    counter = count_step(model, batch)
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if RENEWS:
        table[name] = counter.total
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert name in table, f"{name} is not in {TABLE.name}; {__doc__}"
    most = counter.counts.most_common(12)
    assert counter.total <= ALLOWED_GROWTH * table[name], f"{__doc__}\nMost of them: {most}"
    assert counter.total >= table[name] / 2, f"half of them is gone; {__doc__}"


def test_an_operator_that_grows_is_noticed() -> None:
    x = torch.ones(3)
    with OperatorCounter() as counter:
        (x + 1).view(3, 1).t().mul(2)
        torch.empty(3)
    assert counter.counts == {"add.Tensor": 1, "mul.Tensor": 1} or counter.total == 2
