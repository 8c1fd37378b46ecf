"""MAG-BERT (Rahman et al., ACL 2020, arXiv:1908.05787): sound and video shift the words before the
text encoder's first layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.frame_layers import pooled_to_words
from core.encoders.inputs import MODALITIES, InputConfig, Inputs, groups, in_order
from core.encoders.text import TextConfig, TextEncoder, decayed
from core.model import DataSpec, Model, Sentiment

EPSILON = 1e-6


class MAGBert(Model[Utterances, Sentiment]):
    """A multimodal adaptation gate on a BERT's embeddings, and a head on its first place.

    Besides text it takes any number of modalities by their names.

    Differences from the released code: a word without sound or video is not moved by it, where the
    released biases move [CLS], [SEP] and padding too (``bias_at_padding``); frames that are not
    aligned with the words are pooled to them; features are standardised; the head's layer is new,
    where the released one starts from BERT's pooler. As there, the biases stand inside of the gates
    (the paper has one outside). A sample without text keeps what its sound and video put into the
    first place. The authors print the greatest test accuracy of all epochs; here validation
    chooses.
    """

    task = "sentiment"
    aligned = True

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[str, ...] = MODALITIES  # text, and any fields of frames by name
        beta: NonNegativeFloat = 1.0  # the longest shift, in lengths of the word's embedding
        dropout: Probability = 0.5  # behind the gate
        head_dropout: Probability = 0.1
        squared: bool = True  # the authors' loss; MMSA's is the absolute error
        bias_at_padding: bool = False  # parity: True
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        if "text" not in config.modalities:
            raise ValueError(
                "mag_bert works inside the text encoder; options.modalities must hold text"
            )
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.text = TextEncoder(config.text, data)
        if not len(self.text.layers):
            raise ValueError("mag_bert needs a text encoder of at least one layer")
        width = self.text.width
        others = {m: data.features[m] for m in in_order(config.modalities) if m != "text"}
        self.shift = AdaptationGate(width, others, config.beta, config.dropout)
        self.predict = nn.Sequential(
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Dropout(config.head_dropout),
            nn.Linear(width, data.num_outputs),
        )

    def forward(self, batch: Utterances) -> Sentiment:
        frames, mask = self.inputs(batch)
        with_summary = self.text.num_summaries > 0
        text_mask = mask["text"]
        if with_summary:
            has_text = text_mask.any(1, keepdim=True)
            text_mask = torch.cat([has_text, text_mask], dim=1)
        pooled, exists = {}, {}
        for m in self.shift.gates:
            pooled[m], there = pooled_to_words(frames[m], mask[m], text_mask, with_summary)
            exists[m] = torch.ones_like(there) if self.config.bias_at_padding else there

        def change(hidden: Tensor) -> Tensor:
            return self.shift(hidden, pooled, exists)

        hidden, _ = self.text(frames["text"], mask["text"], change)
        score = self.predict(hidden[:, 0]).float()  # (B, classes or 1)
        return Sentiment(score=score.squeeze(1))

    def losses(self, output: Sentiment, batch: Utterances) -> dict[str, Tensor]:
        return {"task": batch.mean(batch.errors(output.score, self.config.squared))}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        decay, no_decay = decayed(self.text.trained())
        return groups(self, text=decay, text_no_decay=no_decay)


class AdaptationGate(nn.Module):
    """Each word's vector z moved by what is seen and heard with it, by at most beta of its length.

    h is the sum over the other modalities m of ReLU(W [m; z]) * (V m), and z becomes
    LayerNorm(z + min(beta |z| / |h|, 1) h).

    Args:
        others: modality -> width of its frames.
    """

    def __init__(self, width: int, others: Mapping[str, int], beta: float, dropout: float):
        super().__init__()
        self.beta = beta
        self.gates = nn.ModuleDict()
        self.values = nn.ModuleDict()
        for m, frame_width in others.items():
            self.gates[m] = nn.Linear(frame_width + width, width)
            self.values[m] = nn.Linear(frame_width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, frames: dict[str, Tensor], exists: dict[str, Tensor]) -> Tensor:
        """(B, T, width) words.

        Args:
            frames: modality -> (B, T, D), at the places of the words.
            exists: modality -> (B, T), False at words that it does not move.
        """
        shift = torch.zeros_like(z)
        for m, gate in self.gates.items():
            opened = gate(torch.cat([frames[m], z], dim=2)).relu()
            shift = shift + opened * self.values[m](frames[m]) * exists[m][..., None]
        moved = z + self.share(z, shift) * shift
        return self.dropout(self.norm(moved))

    def share(self, z: Tensor, shift: Tensor) -> Tensor:
        """(B, T, 1): how much of its shift a word takes."""
        length = shift.norm(dim=2, keepdim=True)
        is_moved = length > 0
        longest = self.beta * z.norm(dim=2, keepdim=True)
        share = longest / (torch.where(is_moved, length, 1) + EPSILON)
        return torch.where(is_moved, share.clamp(max=1), 1)
