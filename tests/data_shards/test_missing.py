"""The missing-feature protocols: rates, keys, what survives, and the published masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.batch import Utterances
from core.command import Refused
from data_shards.missing import Missing, apply_missing_mask
from data_shards.shards.manifest import DataError

MakeUtterances = Callable[..., Utterances]
FRAMES = Missing(protocol="frames", rate=0.5)


def picked(batch: Utterances, order: torch.Tensor) -> Utterances:
    return batch.map(lambda x: x[order])


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[m], right[m]) for m in left)


@pytest.mark.parametrize(
    "settings", [Missing(), Missing(protocol="frames"), replace(FRAMES, train="complete")]
)
def test_nothing_to_drop_gives_the_same_batch(
    settings: Missing, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances()
    assert apply_missing_mask(batch, settings, split="train", epoch=3) is batch


@pytest.mark.parametrize("protocol", ["frames", "blocks", "modality"])
def test_draws_belong_to_the_sample(protocol: str, make_utterances: MakeUtterances) -> None:
    """Not to its place in the batch, its company, or the padding."""
    settings = replace(FRAMES, protocol=protocol)
    batch = make_utterances(16)
    whole = apply_missing_mask(batch, settings, split="valid", epoch=0)
    order = torch.tensor([5, 2, 11])
    part = apply_missing_mask(picked(batch, order), settings, split="valid", epoch=7)
    assert same(part.present, picked(whole, order).present)
    wider = {m: torch.cat([x, x.new_zeros(16, 4)], 1) for m, x in batch.mask.items()}
    padded = apply_missing_mask(
        replace(batch, mask=wider, present=wider), settings, split="valid", epoch=0
    )
    assert all(torch.equal(padded.present[m][:, : x.shape[1]], x) for m, x in whole.present.items())


def test_splits_seeds_and_modalities_draw_apart(make_utterances: MakeUtterances) -> None:
    batch = make_utterances(16)
    everywhere = {m: torch.ones(16, 20, dtype=torch.bool) for m in ("audio", "vision")}
    batch = replace(batch, mask=batch.mask | everywhere, present=batch.present | everywhere)
    found = apply_missing_mask(batch, FRAMES, split="valid", epoch=0).present
    assert not torch.equal(found["audio"], found["vision"])
    for other in (
        apply_missing_mask(batch, FRAMES, split="test", epoch=0),
        apply_missing_mask(batch, replace(FRAMES, seed=5), split="valid", epoch=0),
    ):
        assert not torch.equal(other.present["audio"], found["audio"])


def test_training_masks_stay_unless_they_are_to_be_redrawn(make_utterances: MakeUtterances) -> None:
    batch = make_utterances(16)
    first, second = (
        apply_missing_mask(batch, FRAMES, split="train", epoch=epoch).present for epoch in (0, 1)
    )
    assert same(first, second)
    again = replace(FRAMES, redraw=True)
    first, second = (
        apply_missing_mask(batch, again, split="train", epoch=epoch).present for epoch in (0, 1)
    )
    assert not same(first, second)
    first, second = (
        apply_missing_mask(batch, again, split="test", epoch=epoch).present for epoch in (0, 1)
    )
    assert same(first, second)


def test_frames_are_dropped_at_the_rate_and_a_higher_rate_drops_more(
    make_utterances: MakeUtterances,
) -> None:
    full = {m: torch.ones(400, 25, dtype=torch.bool) for m in ("text", "audio", "vision")}
    batch = make_utterances(400, mask=full, present=full)
    low = apply_missing_mask(batch, replace(FRAMES, rate=0.3), split="test", epoch=0).present
    high = apply_missing_mask(batch, replace(FRAMES, rate=0.6), split="test", epoch=0).present
    for m in full:
        inner = low[m][:, 1:-1].float().mean() if m == "text" else low[m].float().mean()
        assert abs(inner - 0.7) < 0.02
        assert not (high[m] & ~low[m]).any()


def test_ends_of_a_text_survive_even_at_rate_one(make_utterances: MakeUtterances) -> None:
    batch = make_utterances()
    for protocol in ("frames", "blocks"):
        found = apply_missing_mask(
            batch, replace(FRAMES, protocol=protocol, rate=1.0), split="test", epoch=0
        ).present
        last = batch.mask["text"].sum(1) - 1
        assert found["text"].sum(1).eq(2).all()
        assert found["text"][:, 0].all()
        assert found["text"].gather(1, last[:, None]).all()
        assert not found["audio"].any()


def test_text_features_have_no_ends_to_spare(make_utterances: MakeUtterances) -> None:
    found = apply_missing_mask(
        make_utterances(text=6), replace(FRAMES, rate=1.0), split="test", epoch=0
    ).present
    assert not found["text"].any()


def test_a_block_is_one_stretch_of_the_right_size(make_utterances: MakeUtterances) -> None:
    batch = make_utterances(32)
    found = apply_missing_mask(
        batch, replace(FRAMES, protocol="blocks", rate=0.4), split="test", epoch=0
    ).present["vision"]
    for row, mask in zip(found, batch.mask["vision"], strict=True):
        gone = np.flatnonzero((mask & ~row).numpy())
        assert len(gone) == round(0.4 * int(mask.sum()))
        assert len(gone) == 0 or gone[-1] - gone[0] + 1 == len(gone)


def test_whole_modalities_go_at_the_rate_and_never_all(make_utterances: MakeUtterances) -> None:
    batch = make_utterances(2000)
    settings = Missing(protocol="modality", rate=0.5, sets=("audio", "text+vision"))
    found = apply_missing_mask(batch, settings, split="train", epoch=0).present
    there = {m: x.any(1) for m, x in found.items()}
    assert abs((~there["audio"]).float().mean() - 0.25) < 0.03
    assert torch.equal(there["text"], there["vision"])
    assert (there["audio"] | there["text"]).all()
    alone = {m: x & (m == "audio") for m, x in batch.mask.items()}
    found = apply_missing_mask(
        replace(batch, mask=alone, present=alone), settings, split="train", epoch=0
    ).present
    assert found["audio"].any(1).all()


def test_random_training_rates_are_zero_for_half_of_the_samples(
    make_utterances: MakeUtterances,
) -> None:
    full = {m: torch.ones(2000, 40, dtype=torch.bool) for m in ("text", "audio", "vision")}
    batch = make_utterances(2000, mask=full, present=full)
    settings = Missing(protocol="frames", rate=0.2, train="random")
    share = 1 - apply_missing_mask(batch, settings, split="train", epoch=0).present[
        "audio"
    ].float().mean(1)
    assert abs((share == 0).float().mean() - 0.5) < 0.05
    assert abs(share.mean() - 0.25) < 0.03
    assert not torch.equal(
        share,
        1
        - apply_missing_mask(batch, settings, split="train", epoch=1)
        .present["audio"]
        .float()
        .mean(1),
    )
    fixed = (
        apply_missing_mask(batch, settings, split="valid", epoch=0).present["audio"].float().mean()
    )
    assert abs(fixed - 0.8) < 0.02


def test_legacy_masks_are_those_of_the_released_code(make_utterances: MakeUtterances) -> None:
    """Restated: numbers for all samples and padded places at once, kept where above the rate, ends
    of the text kept."""
    golden = [0.61217018, 0.16906975, 0.43605902, 0.76926247, 0.2953253]
    draws = np.random.RandomState(111).uniform(size=(8, 5))
    np.testing.assert_allclose(draws[0], golden, atol=1e-8)
    batch = make_utterances(8)
    lengths = {"text": 12, "audio": 15, "vision": 18}
    settings = replace(FRAMES, rng="numpy_legacy", rate=0.4, legacy_length=lengths)
    found = apply_missing_mask(batch, settings, split="valid", epoch=0).present
    for m, seed in settings.legacy_seeds.items():
        mask = batch.mask[m].numpy()
        wanted = np.random.RandomState(seed).uniform(size=(8, lengths[m]))[:, : mask.shape[1]] > 0.4
        if m == "text":
            wanted[:, 0] = True
            wanted[np.arange(8), mask.sum(1) - 1] = True
        np.testing.assert_array_equal(found[m].numpy(), wanted & mask)


def test_wrong_settings_are_refused(make_utterances: MakeUtterances) -> None:
    batch = make_utterances()
    with pytest.raises(ValueError, match="probability, got 1.5"):
        Missing(rate=1.5)
    with pytest.raises(ValueError, match="only protocol=frames"):
        Missing(protocol="blocks", rng="numpy_legacy")
    with pytest.raises(DataError, match="needs missing.legacy_length.text"):
        apply_missing_mask(batch, replace(FRAMES, rng="numpy_legacy"), split="train", epoch=0)
    with pytest.raises(Refused, match="names smell"):
        apply_missing_mask(
            batch, Missing(protocol="modality", rate=0.5, sets=("smell",)), split="train", epoch=0
        )
