"""What every registered model promises, whatever its paper.

What is about frames, their padding and missing modalities is in ``test_sentiment_contract.py``:
entities have none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from contracts import (
    Contract,
    assert_same,
    build,
    dropped,
    gradients,
    has_learnt,
    losses_of,
    padded,
    prediction,
    remember,
    rows,
    still,
    told_apart,
    total,
    with_junk,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.batch import Batch, EntityGraph, Utterances
from core.command import Refused
from core.dropout import number_dropouts, sample_masks
from core.model import DataSpec
from core.models import MODELS
from core.sketch import sketch

every_model = pytest.mark.parametrize("name", sorted(MODELS))
WITH_DROPOUT = [
    name
    for name, model in sorted(MODELS.items())
    if any("drop" in field.name for field in fields(model.Config))
]


@pytest.fixture
def contract(
    name: str,
    spec: DataSpec,
    make_utterances: Callable[..., Utterances],
    make_graph: Callable[..., tuple[DataSpec, EntityGraph]],
) -> Contract:
    if MODELS[name].task == "alignment":
        return Contract(
            name,
            make_graph()[0],
            lambda size=8, seed=0: make_graph(pairs=size, seed=seed)[1],
        )
    return Contract(
        name, spec, lambda size=8, seed=0: dropped(make_utterances(size=size, seed=seed))
    )


@every_model
def test_a_sketch_has_the_same_tensors_without_their_memory(contract: Contract) -> None:
    """Loading compares it with what is stored, before memory is taken. A constructor that looks
    at numbers makes their tensors with device="cpu"."""
    state = torch.get_rng_state()
    drawn = sketch(lambda: build(contract.name, contract.data), 10**4, "config.json")
    assert drawn is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert {parameter.device.type for parameter in drawn.parameters()} == {"meta"}
    real = build(contract.name, contract.data)
    shapes, expected = (
        {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
        for model in (drawn, real)
    )
    assert shapes == expected
    with pytest.raises(Refused, match="config.json describes a model of more than 64 parameters"):
        sketch(lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)), 0, "config.json")


@every_model
def test_losses_at_the_default_size_are_finite_scalars(contract: Contract) -> None:
    model = MODELS[contract.name](MODELS[contract.name].Config(), contract.data)
    losses = losses_of(model, [contract.make()])
    assert losses
    for value in losses.values():
        assert value.shape == ()
        assert value.isfinite()
        assert value.dtype == torch.float32


@every_model
def test_what_is_absent_does_not_matter(contract: Contract) -> None:
    """Neither padding nor dropped frames; nor the features of a view that an entity lacks."""
    batch = contract.make()
    model = contract.build().eval()
    torch.testing.assert_close(prediction(model, with_junk(batch)), prediction(model, batch))


@every_model
def test_sample_order_and_company_do_not_matter(contract: Contract) -> None:
    batch = contract.make()
    model = contract.build().eval()
    whole = prediction(model, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(prediction(model, rows(batch, order)), whole[order])
    torch.testing.assert_close(prediction(model, rows(batch, slice(2, 3))), whole[2:3])


@every_model
def test_evaluation_leaves_no_trace_and_is_deterministic(contract: Contract) -> None:
    batch = contract.make()
    model = contract.build().eval()
    before = copy.deepcopy(model.state_dict())
    first = prediction(model, batch)
    losses_of(model, [batch])
    torch.testing.assert_close(prediction(model, batch), first, rtol=0, atol=0)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


@every_model
def test_every_parameter_gets_a_gradient_and_belongs_to_one_group(contract: Contract) -> None:
    batch = contract.make(7)  # an odd number: signs of errors cannot cancel in a bias
    model = contract.warm(batch)
    _, found = gradients(model, [batch])
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.ndim > 0, f"{key} is a scalar"
            assert key in found, f"{key} gets no gradient"
            assert found[key].isfinite().all(), f"{key} gets a gradient that is not finite"
            # the softmax does not change when all its keys move alike, so key biases see rounding
            # only
            assert key.endswith("key.bias") or found[key].any(), f"{key} gets a zero gradient"
    grouped = [id(p) for group in model.param_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@every_model
def test_saving_and_loading_gives_the_same_output(contract: Contract, tmp_path: Any) -> None:
    batch = contract.make()
    model = contract.warm(batch).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(2)
    other = build(contract.name, contract.data)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    loaded = prediction(other.eval(), batch)
    torch.testing.assert_close(loaded, prediction(model, batch), rtol=0, atol=0)


@every_model
def test_eight_samples_are_learnt_by_heart(
    contract: Contract, make_utterances: Callable[..., Utterances]
) -> None:
    seeds = iter(range(5, 50))
    batch: Batch = contract.make(seed=next(seeds))
    while not told_apart(batch):
        batch = contract.make(seed=next(seeds))
    if isinstance(batch, Utterances):
        batch = make_utterances(seed=5)  # with all their frames
    model = contract.build()
    still(model).train()
    assert not has_learnt(model, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(300):
        if step % 25 == 0:
            model.begin_epoch(step // 25)
        optimizer.zero_grad()
        total(losses_of(model, [batch])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        remember(model, batch)
        if step % 10 == 9 and has_learnt(model, batch):
            return
    raise AssertionError("the samples are not learnt")


@every_model
def test_bfloat16_runs(contract: Contract) -> None:
    batch = contract.make()
    model = contract.warm(batch)
    exact = prediction(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = prediction(model, batch)
        losses = losses_of(model, [batch])
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_a_batch_of_one_trains(contract: Contract) -> None:
    batch = contract.make(1)
    losses, found = gradients(contract.warm(batch), [batch])
    assert found
    assert all(value.isfinite() for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in found.values())


@every_model
def test_a_row_of_weight_zero_changes_nothing(contract: Contract) -> None:
    longer = contract.make(9)
    longer = replace(longer, weight=(torch.arange(9) < 8).float(), loss_scale=1 / 8)
    batch = rows(longer, slice(0, 8))
    model = contract.warm(batch)
    assert_same(gradients(model, [longer]), gradients(model, [batch]))


@every_model
def test_a_batch_in_two_parts_is_the_same_batch(contract: Contract) -> None:
    batch = contract.make()
    model = contract.warm(batch)
    found = gradients(model, [rows(batch, slice(0, 5)), rows(batch, slice(5, 8))])
    assert_same(found, gradients(model, [batch]))


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_does_not_depend_on_how_a_batch_is_split(contract: Contract) -> None:
    """Also where attention, text encoders and recurrent layers drop."""
    batch = contract.make()
    model = number_dropouts(contract.build()).train()

    def trained(part: Batch) -> Tensor:
        with sample_masks(seed=7, step=3, index=part.index):
            return prediction(model, part)

    whole = trained(batch)
    parts = [trained(rows(batch, slice(0, 5))), trained(rows(batch, slice(5, 8)))]
    torch.testing.assert_close(torch.cat(parts), whole)
    if isinstance(batch, Utterances):
        torch.testing.assert_close(trained(padded(batch, 3)), whole)
    assert not torch.allclose(prediction(model.eval(), batch), whole)
