"""MulT: golden values of the released codes and of the readings here.

The released attention rounds to float32, so what it gives differs from these by up to 1.5e-7.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from golden import TO_1E_7, fill, fill_encoder, float64, wave
from torch import Tensor

from core.batch import Utterances
from core.encoders.cross_attention import Encoder, keys_up_to_now
from core.encoders.text import TextConfig
from core.model import DataSpec
from core.models.cross_modal.mult import MulT

WIDTHS = {"text": 3, "audio": 2, "vision": 2}
LENGTHS = {"text": (5, 3), "audio": (6, 4), "vision": (4, 2)}
WHOLE = {m: (length[0], length[0]) for m, length in LENGTHS.items()}
NUMBERS = {
    "text_audio": 100,
    "text_vision": 200,
    "audio_text": 300,
    "audio_vision": 400,
    "vision_text": 500,
    "vision_audio": 600,
}
AS_RELEASED = {"padding": "valid", "frame_mask": False}


def golden_batch(length: dict[str, tuple[int, int]]) -> Utterances:
    frames, mask = {}, {}
    for k, (m, width) in enumerate(WIDTHS.items()):
        longest = LENGTHS[m][0]
        frames[m] = wave(k, 2, longest, width)
        mask[m] = torch.arange(longest) < torch.tensor(length[m])[:, None]
    return Utterances(
        index=torch.arange(2),
        weight=torch.ones(2),
        loss_scale=0.5,
        label=torch.zeros(2),
        frames=frames,
        mask=mask,
        present=dict(mask),
    )


def golden_model(**changes: object) -> MulT:
    data = DataSpec(
        task="sentiment",
        features=dict(WIDTHS),
        max_length={m: length[0] for m, length in LENGTHS.items()},
    )
    text = TextConfig(source="given")
    config = MulT.Config(width=4, heads=2, layers=2, kernels=(1, 3, 1), text=text, **changes)
    model = MulT(config, data).eval()
    fill([model.first[m].weight for m in WIDTHS], 0)
    fill(model.predict.parameters(), 3)
    for name, k in NUMBERS.items():
        fill_encoder(model.cross[name], k)
    for k, m in enumerate(WIDTHS):
        fill_encoder(model.own[m], 700 + 100 * k)
    return model


@torch.no_grad()
def answers(model: MulT, batch: Utterances) -> tuple[Tensor, Tensor]:
    """What is fused, and the score, before anything is rounded to float32."""
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.extend([inputs[0], output.squeeze(1)])

    hook = model.predict.register_forward_hook(keep)
    model(batch)
    hook.remove()
    return seen[0], seen[1]


def test_golden_values_without_positions_are_those_of_mmsa() -> None:
    with float64():
        model = golden_model(positions=False, **AS_RELEASED)
        fused, score = answers(model, golden_batch(WHOLE))
    of_text = [-1.24438684, 1.55287410, 1.34374031, -1.52742010]
    of_text += [-1.33806503, 0.00985701, 0.00354916, -0.59321259]
    torch.testing.assert_close(fused[0, :8], torch.tensor(of_text).double(), **TO_1E_7)
    wanted = torch.tensor([-1.73399286, -0.84047640], dtype=torch.float64)
    torch.testing.assert_close(score, wanted, **TO_1E_7)


def test_golden_values_with_positions() -> None:
    with float64():
        _, score = answers(golden_model(**AS_RELEASED), golden_batch(WHOLE))
    wanted = torch.tensor([-0.27443930, -0.93561596], dtype=torch.float64)
    torch.testing.assert_close(score, wanted, **TO_1E_7)


def test_golden_values_of_true_lengths() -> None:
    with float64():
        _, score = answers(golden_model(), golden_batch(LENGTHS))
    wanted = torch.tensor([-0.05136092, 1.61205849], dtype=torch.float64)
    torch.testing.assert_close(score, wanted, **TO_1E_7)


def test_golden_values_of_the_encoder() -> None:
    with float64(), torch.no_grad():
        encoder = Encoder(4, 2, 1, 0.0, MulT.Config()).eval()
        fill_encoder(encoder, 100)
        x, other = wave(0, 1, 3, 4), wave(1, 1, 4, 4)
        everywhere = [torch.ones(1, size, dtype=torch.bool) for size in (3, 4)]
        pairs = keys_up_to_now(3, 4, 1, x.device)
        found = encoder(x, everywhere[0], pairs, other, everywhere[1])[0, -1]
    wanted = [1.46150768, 0.47626957, -1.59386743, 1.10436925]
    torch.testing.assert_close(found, torch.tensor(wanted).double(), **TO_1E_7)


def test_padding_takes_part_up_to_the_longest_where_asked() -> None:
    """A short batch then gives the scores that it gives at the data's greatest length."""
    with float64():
        model = golden_model(**AS_RELEASED)
        whole = golden_batch(LENGTHS)
        zeroed = {m: x * whole.mask[m][..., None] for m, x in whole.frames.items()}
        short = whole.map(lambda tensor: tensor[1:])
        cut = {m: x[1:, : LENGTHS[m][1]] for m, x in zeroed.items()}
        mask = {m: x[1:, : LENGTHS[m][1]] for m, x in whole.mask.items()}
        short = Utterances(**{**vars(short), "frames": cut, "mask": mask, "present": mask})
        _, alone = answers(model, short)
        _, together = answers(model, Utterances(**{**vars(whole), "frames": zeroed}))
    torch.testing.assert_close(alone[0], together[1])


@dataclass(frozen=True)
class Chosen:
    modalities: tuple[str, ...]
    fused: int  # width


@pytest.mark.parametrize(
    "chosen", [Chosen(("text", "vision"), 8), Chosen(("text", "audio", "vision"), 24)]
)
def test_any_two_modalities_are_fused(chosen: Chosen, spec: DataSpec) -> None:
    model = MulT(MulT.Config(modalities=chosen.modalities, width=4, heads=2), spec)
    assert model.predict.first.in_features == chosen.fused
    with pytest.raises(ValueError, match="name two or three"):
        MulT(MulT.Config(modalities=("text",)), spec)
