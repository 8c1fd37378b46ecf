"""KECG's structure: which triples a pair heads, their error restated in loops, and wrong ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import losses_of

from core.batch import EntityGraph
from core.model import DataSpec
from core.models.entities.kecg import KECG, triples_of, wrong_ends

Make = Callable[..., tuple[DataSpec, EntityGraph]]


def test_a_pair_has_the_triples_that_its_entities_head(make_graph: Make) -> None:
    _, batch = make_graph()
    assert batch.triples is not None
    number, pair = triples_of(batch.links, batch.triples)
    found = sorted(zip(number.tolist(), pair.tolist(), strict=True))
    expected = []
    for one, link in enumerate(batch.links.tolist()):
        for place, (head, _, _) in enumerate(batch.triples.tolist()):
            expected += [(place, one)] * link.count(head)
    assert found == sorted(expected)
    assert expected


def test_wrong_ends_are_others_and_change_by_epoch() -> None:
    number, ends = torch.arange(500), torch.arange(500) % 20
    first, second = (wrong_ends(number, ends, 20, epoch) for epoch in (0, 1))
    assert not bool((first == ends).any())
    assert len(first.unique()) == 20
    assert bool((first != second).any())
    torch.testing.assert_close(wrong_ends(number[7:9], ends[7:9], 20, 0), first[7:9])


def test_the_translation_is_its_formula(make_graph: Make) -> None:
    data, batch = make_graph(double=True)
    assert batch.triples is not None
    torch.manual_seed(0)
    config = KECG.Config(graph_hidden=6, translation=0.5, translation_margin=2.0)
    model = KECG(config, data).double().train()
    model.begin_epoch(3)
    entity = model.knowledge.entity / model.knowledge.entity.norm(dim=1, keepdim=True)
    assert model.knowledge.relation is not None
    total = 0.0
    for link in batch.links.tolist():
        errors = []
        for place, (head, relation, tail) in enumerate(batch.triples.tolist()):
            wrong = int(wrong_ends(torch.tensor(place), torch.tensor(tail), len(entity), 3))
            start = entity[head] + model.knowledge.relation[relation]
            right_error = (start - entity[tail]).abs().sum().item()
            wrong_error = (start - entity[wrong]).abs().sum().item()
            errors += [max(0.0, right_error + 2.0 - wrong_error)] * link.count(head)
        total += sum(errors) / max(1, len(errors))
    losses = losses_of(model, [batch])
    assert losses["translation"].item() == pytest.approx(0.5 * total / len(batch))


def test_it_reads_structure_alone(make_graph: Make) -> None:
    data, _ = make_graph()
    with pytest.raises(ValueError, match="kecg reads structure alone; use options.views=graph"):
        KECG(KECG.Config(views=("graph", "relation")), data)
    bare = replace(data, num_relations=0)
    with pytest.raises(ValueError, match="use options.translation=0"):
        KECG(KECG.Config(), bare)
    assert KECG(KECG.Config(translation=0.0), bare).knowledge.relation is None
