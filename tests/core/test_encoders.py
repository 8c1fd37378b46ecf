"""Inputs, the text encoder and the sequence encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers.masking_utils import bidirectional_mask_function

from core.batch import Utterances
from core.dropout import number_dropouts, sample_masks
from core.encoders.attention import Attention
from core.encoders.backbones import registered_attention
from core.encoders.inputs import InputConfig, Inputs, groups
from core.encoders.sequence import (
    BiGRU,
    LSTMEncoder,
    SummaryTransformer,
    masked_max,
    masked_mean,
    sinusoids,
)
from core.encoders.text import TextConfig, TextEncoder
from core.model import DataSpec

MakeUtterances = Callable[..., Utterances]


def test_inputs_standardise_clip_and_hide(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    spec = replace(spec, moments={"audio": ([1.0, 2.0, 0.0, 0.0, 5.0], [2.0, 1.0, 0.1, 1.0, 0.0])})
    batch = make_utterances(3)
    present = batch.mask["audio"].clone()
    present[0, 1] = False
    present[2] = False
    inputs = Inputs(spec, InputConfig(clip=4.0))
    batch = replace(batch, present=batch.present | {"audio": present})
    frames, mask = inputs(batch)
    raw, kept = batch.frames["audio"].double().numpy(), (batch.mask["audio"] & present).numpy()
    scaled = np.stack(
        [(raw[..., 0] - 1) / 2, raw[..., 1] - 2, raw[..., 2] / 0.1, raw[..., 3], 0 * raw[..., 4]],
        -1,
    )
    np.testing.assert_allclose(
        frames["audio"], scaled.clip(-4, 4) * kept[..., None], rtol=1e-4, atol=1e-5
    )
    assert not mask["audio"][2].any()  # nothing left of it: absent
    assert torch.equal(mask["audio"][:2], batch.mask["audio"][:2])
    torch.testing.assert_close(frames["vision"], batch.frames["vision"])
    full = scaled.clip(-4, 4) * batch.mask["audio"].numpy()[..., None]
    np.testing.assert_allclose(inputs.complete(batch)["audio"], full, rtol=1e-4, atol=1e-5)


def test_inputs_put_the_unknown_token_for_dropped_ones(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(3)
    present = batch.mask["text"].clone()
    present[:, 1] = False
    batch = replace(batch, present=batch.present | {"text": present})
    for settings, unknown in ((InputConfig(), spec.unknown_id), (InputConfig(unknown_id=9), 9)):
        frames, mask = Inputs(spec, settings)(batch)
        assert frames["text"][:, 1].eq(unknown).all()
        assert torch.equal(mask["text"], batch.mask["text"])
    with pytest.raises(ValueError, match="unknown_id 100 is outside the vocabulary of 60"):
        Inputs(spec, InputConfig(unknown_id=100))


def test_inputs_refuse_moments_that_do_not_fit(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="audio has 5 features, but moments of 2"):
        Inputs(replace(spec, moments={"audio": ([0.0, 0.0], [1.0, 1.0])}))
    with pytest.raises(ValueError, match="moments of audio are not finite"):
        Inputs(replace(spec, moments={"audio": ([float("nan")] * 5, [1.0] * 5)}))


def test_groups_leave_out_what_is_empty_or_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias.requires_grad_(False)
    found = groups(model, first=model[0].parameters(), none=[])
    assert {name: len(parameters) for name, parameters in found.items()} == {"first": 2, "main": 1}


@pytest.mark.parametrize("text", [0, 7])
def test_small_text_encoder_reads_ids_and_features(
    text: int, spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    spec = replace(spec, features=spec.features | {"text": text})
    batch = make_utterances(4, text=text)
    encoder = TextEncoder(TextConfig(width=16, layers=2, heads=2), spec).eval()
    mask = batch.mask["text"].clone()
    mask[1] = False
    hidden, reached = encoder(batch.frames["text"], mask)
    extra = 1 if text else 0  # features get a summary place in front
    assert hidden.shape == (4, mask.shape[1] + extra, encoder.width) == (*reached.shape, 16)
    assert torch.equal(reached.sum(1), mask.sum(1) + extra * mask.any(1))
    assert not hidden[1].any()
    assert hidden.isfinite().all()
    assert encoder.trained() == []


def test_given_features_stay_as_they_are(spec: DataSpec, make_utterances: MakeUtterances) -> None:
    batch = make_utterances(4, text=7)
    encoder = TextEncoder(
        TextConfig(source="given"), replace(spec, features=spec.features | {"text": 7})
    )
    hidden, _ = encoder(batch.frames["text"], batch.mask["text"])
    assert torch.equal(hidden, batch.frames["text"])
    assert encoder.width == 7


def test_text_settings_that_do_not_fit_the_data_are_refused(spec: DataSpec) -> None:
    features = replace(spec, features=spec.features | {"text": 7})
    with pytest.raises(ValueError, match="the data has token ids; use text.source=small"):
        TextEncoder(TextConfig(source="given"), spec)
    with pytest.raises(
        ValueError, match="reads token ids, but the data has text features of width 7"
    ):
        TextEncoder(TextConfig(source="bert-base-uncased"), features)
    with pytest.raises(ValueError, match="vocab_size 0"):
        TextEncoder(TextConfig(), replace(spec, vocab_size=0))
    with pytest.raises(ValueError, match="text.heads=5 does not divide text.width=64"):
        TextEncoder(TextConfig(heads=5), spec)


def test_hidden_states_can_be_changed_before_a_layer(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(3)
    encoder = TextEncoder(TextConfig(width=16, layers=2, heads=2), spec).eval()
    seen = []

    def change(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        return hidden * 0

    plain, _ = encoder(batch.frames["text"], batch.mask["text"])
    changed, _ = encoder(batch.frames["text"], batch.mask["text"], change, 1)
    after, _ = encoder(batch.frames["text"], batch.mask["text"])
    assert len(seen) == 1
    assert not torch.allclose(plain, changed)
    assert torch.equal(plain, after)  # the hook is gone
    torch.testing.assert_close(
        changed[:, 0], changed[:, 1]
    )  # all places alike: the change took place


def test_a_pretrained_encoder_gives_what_transformers_gives(
    spec: DataSpec, make_utterances: MakeUtterances, minilm: Path
) -> None:
    from transformers import AutoModel

    batch = make_utterances(3)
    spec = replace(spec, vocab_size=30522)
    encoder = TextEncoder(TextConfig(source=str(minilm)), spec).eval()
    mask = batch.mask["text"].clone()
    mask[2] = False
    hidden, _ = encoder(batch.frames["text"], mask)
    reference = AutoModel.from_pretrained(
        str(minilm), attn_implementation="eager", dtype=torch.float32
    ).eval()
    wanted = reference(input_ids=batch.frames["text"], attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(hidden[:2][mask[:2]], wanted[:2][mask[:2]], rtol=1e-4, atol=1e-4)
    assert not hidden[2].any()
    assert len(encoder.trained()) == len(list(encoder.parameters())) > 0
    with pytest.raises(
        ValueError, match="vocabulary of 30522 tokens, the data's tokenizer one of 21128"
    ):
        TextEncoder(TextConfig(source=str(minilm)), replace(spec, vocab_size=21128))
    with pytest.raises(ValueError, match="sentences of 600 tokens"):
        TextEncoder(TextConfig(source=str(minilm)), replace(spec, max_length={"text": 600}))
    with pytest.warns(UserWarning, match="does not say which vocabulary"):
        TextEncoder(TextConfig(source=str(minilm)), replace(spec, vocab_size=0))


def test_a_frozen_encoder_neither_learns_nor_drops(
    spec: DataSpec, make_utterances: MakeUtterances, minilm: Path
) -> None:
    batch = make_utterances(3)
    encoder = TextEncoder(
        TextConfig(source=str(minilm), frozen=True), replace(spec, vocab_size=30522)
    ).train()
    first, _ = encoder(batch.frames["text"], batch.mask["text"])
    second, _ = encoder(batch.frames["text"], batch.mask["text"])
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert encoder.trained() == []
    touched, _ = encoder(
        batch.frames["text"], batch.mask["text"], lambda x: x + nn.Parameter(torch.ones(384)), 1
    )
    assert touched.requires_grad  # what is put into it learns


def test_dropout_inside_the_text_encoder_belongs_to_the_sample(
    spec: DataSpec, make_utterances: MakeUtterances
) -> None:
    batch = make_utterances(6)
    encoder = number_dropouts(TextEncoder(TextConfig(dropout=0.3), spec)).train()
    with sample_masks(1, 5, batch.index):
        whole, _ = encoder(batch.frames["text"], batch.mask["text"])
    with sample_masks(1, 5, batch.index[4:]):
        part, _ = encoder(batch.frames["text"][4:], batch.mask["text"][4:])
    torch.testing.assert_close(part, whole[4:])
    with sample_masks(1, 6, batch.index):
        other, _ = encoder(batch.frames["text"], batch.mask["text"])
    assert not torch.allclose(whole, other)


def test_attention_matches_torch() -> None:
    torch.manual_seed(0)
    mine, theirs = (
        Attention(12, 3, key_width=7),
        nn.MultiheadAttention(12, 3, kdim=7, vdim=7, batch_first=True),
    )
    with torch.no_grad():
        theirs.q_proj_weight.copy_(mine.query.weight)
        theirs.k_proj_weight.copy_(mine.key.weight)
        theirs.v_proj_weight.copy_(mine.value.weight)
        theirs.in_proj_bias.copy_(torch.cat([mine.query.bias, mine.key.bias, mine.value.bias]))
        theirs.out_proj.load_state_dict(mine.out.state_dict())
    x, source = torch.randn(4, 5, 12), torch.randn(4, 6, 7)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    wanted, _ = theirs(x, source, source, key_padding_mask=~mask)
    torch.testing.assert_close(mine(x, source, mask), wanted, rtol=1e-4, atol=1e-5)
    mask[2] = False
    assert not mine(x, source, mask)[2].any()


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
def test_attention_with_and_without_dropout_agree(dropout: float) -> None:
    """1e-9 takes the way with dropout, and drops nothing."""
    torch.manual_seed(0)
    layer, x = Attention(8, 2, dropout=dropout, scale=8.0), torch.randn(3, 5, 8)
    mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    torch.testing.assert_close(layer.train()(x, x, mask), layer.eval()(x, x, mask))


def test_sinusoids_have_an_odd_width_too() -> None:
    found = sinusoids(4, 5, torch.device("cpu"))
    rates = 10000.0 ** (-2 * np.arange(3) / 5)
    wanted = np.stack([f(np.arange(4)[:, None] * rates) for f in (np.sin, np.cos)], 2).reshape(
        4, 6
    )[:, :5]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_recurrent_encoders_see_each_sequence_alone(make_utterances: MakeUtterances) -> None:
    """As if every sequence were run by itself at its true length."""
    torch.manual_seed(0)
    batch = make_utterances(5)
    frames, mask = batch.frames["vision"], batch.mask["vision"].clone()
    mask[3] = False
    last, both = LSTMEncoder(20, 6), BiGRU(20, 4, 3)
    ends, states = last(frames, mask), both(frames, mask)
    assert not ends[3].any()
    assert not states[3].any()
    for row in (0, 1, 2, 4):
        alone = frames[row : row + 1, : int(mask[row].sum())]
        torch.testing.assert_close(ends[row], last.lstm(alone)[1][0][0, 0])
        torch.testing.assert_close(states[row][mask[row]], both.gru(alone)[0][0])
        assert not states[row][~mask[row]].any()


def test_pooling_over_nothing_is_zero() -> None:
    frames = torch.tensor([[[1.0], [5.0], [9.0]], [[-2.0], [-4.0], [0.0]], [[3.0], [3.0], [3.0]]])
    mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    assert masked_mean(frames, mask).flatten().tolist() == [3.0, -3.0, 0.0]
    assert masked_max(frames, mask).flatten().tolist() == [5.0, -2.0, 0.0]


def test_a_summary_exists_also_for_no_frames() -> None:
    torch.manual_seed(0)
    layer = SummaryTransformer(6, 2, 8, 1, 0.0)
    x, mask = layer(torch.zeros(2, 3, 6), torch.zeros(2, 3, dtype=torch.bool))
    assert mask.tolist() == [[True, False, False, False]] * 2
    assert x[:, 0].isfinite().all()


def test_a_mask_of_the_text_is_not_looked_at_on_a_gpu() -> None:
    sizes = {"batch_size": 2, "q_length": 5, "kv_length": 5}
    asked = sizes | {"mask_function": bidirectional_mask_function, "q_offset": 0, "kv_offset": 0}
    everything = torch.ones(2, 5, dtype=torch.bool)
    skips = {"allow_is_bidirectional_skip": True, "allow_is_causal_skip": False}
    assert (
        registered_attention._mask(**asked, **skips, attention_mask=everything, device="cpu")
        is None
    )
    elsewhere = registered_attention._mask(
        **asked, **skips, attention_mask=everything.to("meta"), device="meta"
    )
    assert elsewhere.shape == (2, 1, 5, 5)
    assert elsewhere.stride(2) == 0
