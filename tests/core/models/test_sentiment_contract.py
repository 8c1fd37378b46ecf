"""What every sentiment model promises about frames, their padding, and modalities that are
missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts import Contract, dropped, gradients, losses_of, padded, with_junk

from core.batch import Utterances
from core.model import DataSpec
from core.models import MODELS

SENTIMENT = sorted(name for name, model in MODELS.items() if model.task == "sentiment")
MakeUtterances = Callable[..., Utterances]

pytestmark = pytest.mark.parametrize("name", SENTIMENT)


@pytest.fixture
def contract(name: str, spec: DataSpec, make_utterances: MakeUtterances) -> Contract:
    return Contract(name, spec, make_utterances)


def test_padding_does_not_matter(contract: Contract) -> None:
    batch = dropped(contract.make())
    model = contract.warm(batch)
    torch.testing.assert_close(model(padded(batch, 3)).score, model(batch).score)
    longer, short = losses_of(model, [padded(batch, 3)]), losses_of(model, [batch])
    for key in short:
        torch.testing.assert_close(longer[key], short[key])


def test_what_lies_in_padding_does_not_matter(contract: Contract) -> None:
    batch = contract.make()
    model = contract.build().eval()
    torch.testing.assert_close(model(with_junk(batch)).score, model(batch).score)


def test_dropped_frames_are_out_of_sight(contract: Contract) -> None:
    """Scores do not depend on what a dropped frame held, but do on whether it was dropped."""
    batch = contract.make()
    hidden = dropped(batch)
    model = contract.build().eval()
    torch.testing.assert_close(model(with_junk(hidden)).score, model(hidden).score)
    assert not torch.allclose(model(hidden).score, model(batch).score)


@pytest.mark.parametrize(
    "missing",
    [("text",), ("audio",), ("vision",), ("audio", "vision"), ("text", "audio", "vision")],
)
@pytest.mark.parametrize("length", [0, 6])
def test_modalities_that_nobody_has_are_survived(
    contract: Contract, missing: tuple[str, ...], length: int
) -> None:
    """In every sample, also where the batch is not even padded; gradients exist for all parameters
    and are finite."""
    batch = contract.make()
    for m in missing:
        gone = {f: getattr(batch, f)[m][:, :length] for f in ("frames", "mask", "present")}
        gone = {f: torch.zeros_like(x) for f, x in gone.items()}
        batch = replace(batch, **{f: getattr(batch, f) | {m: x} for f, x in gone.items()})
    model = contract.warm(batch)
    losses, found = gradients(model, [batch])
    assert all(value.isfinite() for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert set(found) == {key for key, p in model.named_parameters() if p.requires_grad}


def test_a_sample_without_a_modality_does_not_disturb_others(contract: Contract) -> None:
    batch = contract.make()
    model = contract.build().eval()
    score = model(batch).score
    lacking = {m: mask.clone() for m, mask in batch.mask.items()}
    for row, m in enumerate(lacking):
        lacking[m][row] = False
    found = model(replace(batch, mask=lacking, present=lacking)).score
    torch.testing.assert_close(found[3:], score[3:])
    assert found.isfinite().all()
