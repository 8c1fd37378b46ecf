"""Every sentiment model reads encoders' frames as it reads features: scores, their gradients, and
whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import SENTIMENT, small_options
from tiny_media_models import save_vit, save_wav2vec2

from core.batch import Utterances
from core.building import build_model
from core.encoders.backbones.media_encoders import EncoderConfig
from core.encoders.inputs import InputConfig
from core.model import DataSpec

SIDE, WORDS = 16, 12
MODALITIES = ("text", "audio", "vision")
NEEDS_CODEBOOKS = "cenet"  # of train frames, which encoders change while they train

SPEC = DataSpec(
    task="sentiment",
    features={"text": 0, "audio": 1, "vision": 3 * SIDE * SIDE},
    max_length={"text": 8, "audio": 6000, "vision": 4},
    unimodal_labels=MODALITIES,
    num_train=6,
    vocab_size=WORDS,
    unknown_id=1,
    media={"audio": "sound", "vision": "pictures"},
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> InputConfig:
    folder: Path = tmp_path_factory.mktemp("encoders")
    return InputConfig(
        audio=EncoderConfig(source=str(save_wav2vec2(folder / "audio"))),
        vision=EncoderConfig(source=str(save_vit(folder / "vision"))),
    )


def batch() -> Utterances:
    """Six samples; the last two lack sound or pictures."""
    generator = torch.Generator().manual_seed(5)
    lengths = {
        "text": torch.tensor([8, 3, 5, 2, 6, 4]),
        "audio": torch.tensor([6000, 2000, 3500, 1700, 4000, 0]),
        "vision": torch.tensor([4, 1, 3, 2, 0, 2]),
    }
    mask = {m: torch.arange(SPEC.max_length[m]) < length[:, None] for m, length in lengths.items()}
    pictures = torch.randint(0, 256, (6, 4, 3 * SIDE * SIDE), generator=generator)
    frames = {
        "text": torch.randint(2, WORDS, (6, 8), generator=generator) * mask["text"],
        "audio": 0.1 * torch.randn((6, 6000, 1), generator=generator) * mask["audio"][..., None],
        "vision": (pictures * mask["vision"][..., None]).to(torch.uint8),
    }
    label = torch.linspace(-2, 2, 6)
    return Utterances(
        index=torch.arange(6),
        weight=torch.ones(6),
        loss_scale=1 / 6,
        label=label,
        frames=frames,
        mask=mask,
        present=mask,
        unimodal_labels=dict.fromkeys(MODALITIES, label),
    )


@pytest.mark.parametrize("name", [name for name in SENTIMENT if name != NEEDS_CODEBOOKS])
def test_a_model_scores_and_trains_on_top_of_encoders(name: str, inputs: InputConfig):
    torch.manual_seed(2)
    model: Any = build_model(name, small_options(name, inputs=inputs), SPEC).eval()
    whole = batch()
    with torch.no_grad():
        score = model(whole).score
        order = torch.tensor([3, 5, 0, 4, 2, 1])
        shuffled = model(whole.map(lambda tensor: tensor[order])).score
    assert score.shape == (6,)
    torch.testing.assert_close(shuffled, score[order], rtol=1e-3, atol=1e-4)
    model(whole).score.square().sum().backward()
    groups = model.param_groups()
    for role in ("audio", "vision"):
        encoder = model.media_encoders[role]
        grouped = {id(parameter) for parameter in groups[f"{role}_encoder"]}
        assert grouped == {id(p) for p in encoder.parameters() if p.requires_grad}
        weights = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert sum(float(grad.abs().sum()) for grad in weights) > 0
