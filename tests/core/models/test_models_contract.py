"""What every sentiment model promises, whatever its paper."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import number_dropouts, sample_masks
from core.model import DataSpec, GlobalBatchRows, Model
from core.models import MODELS

SENTIMENT = sorted(name for name, kind in MODELS.items() if kind.task == "sentiment")
MakeUtterances = Callable[..., Utterances]

pytestmark = pytest.mark.parametrize("name", SENTIMENT)


SMALL: dict[str, dict[str, Any]] = {  # the rest is quick at its default size
    "tate": {"width": 60},
    "tfr_net": {"width": 12, "heads": 2, "layers": 2, "cross_layers": 1, "gru_layers": 1},
}


def build(name: str, data: DataSpec) -> Model[Any, Any]:
    torch.manual_seed(1)
    return MODELS[name](replace(MODELS[name].Config(), **SMALL.get(name, {})), data)


def still(model: nn.Module) -> nn.Module:
    """The model without dropout, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def losses_of(model: Model[Any, Any], parts: list[Utterances]) -> dict[str, Tensor]:
    """Losses of a global batch in ``parts``, as the training loop puts them together."""
    counts = [model.loss_denominators(part) for part in parts]
    total = {key: torch.stack([count[key] for count in counts]).sum(0) for key in counts[0]}
    parts = [replace(part, loss_denominators=total) for part in parts]
    outputs = [model(part) for part in parts]
    losses: dict[str, Tensor] = {}
    for part, output in zip(parts, outputs, strict=True):
        for key, value in model.losses(output, part).items():
            losses[key] = losses.get(key, torch.zeros(())) + value
    rows = [model.global_batch_rows(output) for output in outputs]
    target = torch.cat([part.target for part in parts])
    weight = torch.cat([part.weight for part in parts])
    whole = GlobalBatchRows.concatenate(rows)
    return losses | model.global_batch_losses(whole, target, weight)


def remember(model: Model[Any, Any], batch: Utterances) -> None:
    with torch.no_grad():
        records = model.memory_bank_rows(model(batch), batch)
        if records:
            model.update_memory_bank(records)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.reshape(()) for value in losses.values()]).sum()


def gradients(
    model: Model[Any, Any], parts: list[Utterances]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model.zero_grad()
    losses = losses_of(model, parts)
    total(losses).backward()
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return {key: value.detach() for key, value in losses.items()}, found


def dropped(batch: Utterances) -> Utterances:
    """Every third frame dropped."""
    present = {m: mask & (torch.arange(mask.shape[1]) % 3 != 1) for m, mask in batch.mask.items()}
    return replace(batch, present=present)


def padded(batch: Utterances, by: int) -> Utterances:
    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros((x.shape[0], by, *x.shape[2:]))], dim=1)

    fields = ("frames", "mask", "present")
    return replace(
        batch, **{f: {m: longer(x) for m, x in getattr(batch, f).items()} for f in fields}
    )


def rows(batch: Utterances, chosen: Any) -> Utterances:
    return batch.map(lambda x: x[chosen])


def warm(name: str, data: DataSpec, batch: Utterances) -> Model[Any, Any]:
    """A model without dropout in its third epoch, which has seen the batch twice: every loss is awake."""
    model = build(name, data)
    still(model).train()
    for epoch in range(3):
        model.begin_epoch(epoch)
        if epoch < 2:
            remember(model, batch)
    return model


def test_losses_at_the_default_size_are_finite_scalars(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = dropped(make_utterances())
    losses = losses_of(MODELS[name](MODELS[name].Config(), spec), [batch])
    assert losses
    for value in losses.values():
        assert value.shape == ()
        assert value.isfinite()
        assert value.dtype == torch.float32


def test_padding_does_not_matter(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = dropped(make_utterances())
    model = warm(name, spec, batch)
    torch.testing.assert_close(model(padded(batch, 3)).score, model(batch).score)
    longer, short = losses_of(model, [padded(batch, 3)]), losses_of(model, [batch])
    for key in short:
        torch.testing.assert_close(longer[key], short[key])


def test_what_lies_in_padding_does_not_matter(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = build(name, spec).eval()
    junk = {
        m: torch.where(_like(batch.mask[m], x), x, torch.ones_like(x) * 7)
        for m, x in batch.frames.items()
    }
    torch.testing.assert_close(model(replace(batch, frames=junk)).score, model(batch).score)


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask if x.ndim == 2 else mask[..., None]


def test_dropped_frames_are_out_of_sight(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Scores do not depend on what a dropped frame held, but do on whether it was dropped."""
    batch = make_utterances()
    hidden = dropped(batch)
    model = build(name, spec).eval()
    junk = {
        m: torch.where(_like(hidden.present[m], x), x, torch.ones_like(x) * 7)
        for m, x in batch.frames.items()
    }
    torch.testing.assert_close(model(replace(hidden, frames=junk)).score, model(hidden).score)
    assert not torch.allclose(model(hidden).score, model(batch).score)


def test_sample_order_and_company_do_not_matter(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = build(name, spec).eval()
    score = model(batch).score
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(rows(batch, order)).score, score[order])
    torch.testing.assert_close(model(rows(batch, slice(2, 3))).score, score[2:3])


def test_evaluation_leaves_no_trace_and_is_deterministic(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = build(name, spec).eval()
    before = copy.deepcopy(model.state_dict())
    first = model(batch).score
    model.losses(model(batch), replace(batch, loss_denominators=model.loss_denominators(batch)))
    torch.testing.assert_close(model(batch).score, first, rtol=0, atol=0)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_every_parameter_gets_a_gradient_and_belongs_to_one_group(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = dropped(make_utterances(7))  # an odd number: signs of errors cannot cancel in a bias
    model = warm(name, spec, batch)
    _, found = gradients(model, [batch])
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.ndim > 0, f"{key} is a scalar"
            assert key in found, f"{key} gets no gradient"
            assert found[key].isfinite().all(), f"{key} gets a gradient that is not finite"
            # the softmax does not change when all its keys move alike, so key biases see rounding only
            assert key.endswith("key.bias") or found[key].any(), f"{key} gets a zero gradient"
    grouped = [id(p) for group in model.param_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_saving_and_loading_gives_the_same_output(
    name: str, spec: DataSpec, make_utterances: MakeUtterances, tmp_path: Any
) -> None:
    batch = make_utterances()
    model = warm(name, spec, batch).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(2)
    other = type(model)(replace(MODELS[name].Config(), **SMALL.get(name, {})), spec)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(other.eval()(batch).score, model(batch).score, rtol=0, atol=0)


def test_eight_samples_are_learnt_by_heart(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(seed=5)
    model = build(name, spec)
    still(model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(300):
        if step % 25 == 0:
            model.begin_epoch(step // 25)
        optimizer.zero_grad()
        total(losses_of(model, [batch])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        remember(model, batch)
        if step % 10 == 9:
            error = (model.eval()(batch).score - batch.label).abs().mean()
            model.train()
            if error < 0.1:
                return
    raise AssertionError(f"mean error is still {error:.3f}")


def test_bfloat16_runs(name: str, spec: DataSpec, make_utterances: MakeUtterances) -> None:
    batch = dropped(make_utterances())
    model = warm(name, spec, batch)
    exact = model(batch).score
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        losses = losses_of(model, [batch])
    torch.testing.assert_close(output.score.float(), exact, rtol=0.1, atol=0.1)
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "missing",
    [("text",), ("audio",), ("vision",), ("audio", "vision"), ("text", "audio", "vision")],
)
@pytest.mark.parametrize("length", [0, 6])
def test_modalities_that_nobody_has_are_survived(
    name: str,
    spec: DataSpec,
    make_utterances: MakeUtterances,
    missing: tuple[str, ...],
    length: int,
) -> None:
    """In every sample, also where the batch is not even padded; gradients exist for all parameters and are finite."""
    batch = make_utterances()
    for m in missing:
        gone = {f: getattr(batch, f)[m][:, :length] for f in ("frames", "mask", "present")}
        gone = {f: torch.zeros_like(x) for f, x in gone.items()}
        batch = replace(batch, **{f: getattr(batch, f) | {m: x} for f, x in gone.items()})
    model = warm(name, spec, batch)
    losses, found = gradients(model, [batch])
    assert all(value.isfinite() for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert set(found) == {key for key, p in model.named_parameters() if p.requires_grad}


def test_a_sample_without_a_modality_does_not_disturb_others(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    model = build(name, spec).eval()
    score = model(batch).score
    lacking = {m: mask.clone() for m, mask in batch.mask.items()}
    for row, m in enumerate(lacking):
        lacking[m][row] = False
    found = model(replace(batch, mask=lacking, present=lacking)).score
    torch.testing.assert_close(found[3:], score[3:])
    assert found.isfinite().all()


def test_a_batch_of_one_trains(name: str, spec: DataSpec, make_utterances: MakeUtterances) -> None:
    batch = dropped(make_utterances(1))
    losses, found = gradients(warm(name, spec, batch), [batch])
    assert all(value.isfinite() for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_a_row_of_weight_zero_changes_nothing(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = dropped(make_utterances())
    model = warm(name, spec, batch)
    filler = replace(
        rows(dropped(make_utterances(1, seed=9)), slice(None)), loss_scale=batch.loss_scale
    )
    both = [batch.map(lambda x: x), replace(filler, weight=torch.zeros(1))]
    found, wanted = gradients(model, [_joined(*both)]), gradients(model, [batch])
    _assert_same(found, wanted)


def _joined(left: Utterances, right: Utterances) -> Utterances:
    dicts = {
        f: {m: torch.cat([x, getattr(right, f)[m]]) for m, x in getattr(left, f).items()}
        for f in ("frames", "mask", "present")
    }
    plain = {
        f: torch.cat([getattr(left, f), getattr(right, f)]) for f in ("index", "weight", "label")
    }
    return replace(left, **dicts, **plain)


def test_a_batch_in_two_parts_is_the_same_batch(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = dropped(make_utterances())
    model = warm(name, spec, batch)
    found = gradients(model, [rows(batch, slice(0, 5)), rows(batch, slice(5, 8))])
    _assert_same(found, gradients(model, [batch]))


def test_dropout_does_not_depend_on_how_a_batch_is_split(
    name: str, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    """Also where attention, text encoders and recurrent layers drop."""
    batch = dropped(make_utterances())
    model = number_dropouts(build(name, spec)).train()

    def score(part: Utterances) -> Tensor:
        with sample_masks(seed=7, step=3, index=part.index):
            return model(part).score

    whole = score(batch)
    torch.testing.assert_close(
        torch.cat([score(rows(batch, slice(0, 5))), score(rows(batch, slice(5, 8)))]), whole
    )
    torch.testing.assert_close(score(padded(batch, 3)), whole)
    assert not torch.allclose(model.eval()(batch).score, whole)


def _assert_same(found: tuple[dict, dict], wanted: tuple[dict, dict]) -> None:
    for left, right in zip(found, wanted, strict=True):
        assert left.keys() == right.keys()
        for key, value in right.items():
            torch.testing.assert_close(
                left[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
