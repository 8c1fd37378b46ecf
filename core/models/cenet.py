"""CENet with external memory: sound and video enter inside the text encoder, each representation
after reading from a learnt memory (CENet: Wang et al., IEEE TMM 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.affine import Affine, Mix
from core.encoders.attention import Attention
from core.encoders.inputs import (
    MODALITIES,
    InputConfig,
    Inputs,
    groups,
    in_order,
)
from core.encoders.text import TextConfig, TextEncoder, decayed
from core.model import DataSpec, Model, Sentiment
from core.models.cenet_layers import (
    Codes,
    ExternalMemory,
    Look,
    Perceptron,
    entropy_of,
    look_at_codes,
    look_at_frames,
)
from core.names import refusal


@dataclass(frozen=True)
class Output(Sentiment):
    # modality -> (2,), the summed entropy of what existing frames read from their memory, and their
    # number
    entropy: dict[str, Tensor]


class CENet(Model[Utterances, Output]):
    """Text hidden states attend to sound and video before one encoder layer, and the layers behind
    it go on.

    Differences from the released code: padding takes no part in the attention, and the memory
    module is an addition. Besides text it takes any number of modalities by their names.
    With ``frame_mask=False`` padding takes part as in a file whose sequences are as long as the
    data's longest. Frames become the index of their nearest k-means centre of train frames
    ("codes"), or go through two layers ("mlp", as in MMSA). A sample without text keeps what sound
    and video put into its first place.
    """

    task = "sentiment"
    entropy: Tensor

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[str, ...] = MODALITIES  # text, and any fields of frames by name
        front: Literal["codes", "mlp"] = "codes"
        # the encoder layer before which sound and video come in; 0 is the first
        layer: NonNegativeInt = 1
        # ablation: False leaves sound and video out, and only the text's memory stays
        enhance: bool = True
        scale: NonNegativeFloat = 8.0  # of attention scores; 0: one over the root of the width
        # which read from a memory; empty: plain CENet. Of other names than these three only those
        # named here
        memory: tuple[str, ...] = MODALITIES
        # "replace": what is read takes the place of the representation
        memory_mode: Literal["residual", "replace"] = "residual"
        slots: PositiveInt = 64  # of each memory
        gate: float = 0.1  # of what is read, at the start, for "residual"
        dropout: Probability = 0.1
        # the mean squared error of the released code instead of the absolute one
        squared: bool = False
        # parity: False lets padding take part, up to the data's longest, as the released files are
        # padded: as a fixed random word with codes, as a frame of zeros with mlp
        frame_mask: bool = True
        # parity with MMSA: the text's embedding tables stay as they are
        freeze_embeddings: bool = False
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        if "text" not in config.modalities:
            raise ValueError(
                "cenet works inside the text encoder; options.modalities must hold text"
            )
        known = dict.fromkeys([*MODALITIES, *config.modalities])
        refused = refusal("options.memory", config.memory, known, "the model reads")
        if refused:
            raise ValueError(refused)
        self.config = config
        others = [m for m in in_order(config.modalities) if m != "text"]
        if not config.enhance:
            others = []
        self.inputs = Inputs(data, config.inputs, ("text", *others))
        self.longest = {m: data.max_length.get(m, 0) for m in others}
        self.text = TextEncoder(config.text, data)
        if config.layer >= len(self.text.layers):
            raise ValueError(
                f"layer={config.layer}, but the text encoder has {len(self.text.layers)} layers"
            )
        if config.freeze_embeddings:
            self.text.backbone.embeddings.requires_grad_(False)
        self._make_enhancement(others, data)
        self._make_memories(others)
        width = self.text.width
        self.predict = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Dropout(config.dropout),
            nn.Linear(width, data.num_outputs),
        )
        self.register_buffer("entropy", torch.zeros(len(self.memories), 2), persistent=False)

    def _make_enhancement(self, others: list[str], data: DataSpec) -> None:
        """What brings sound and video into the text encoder."""
        config, width = self.config, self.text.width
        self.fronts = nn.ModuleDict({m: _front(m, width, config, data) for m in others})
        self.attend = nn.ModuleDict()
        for m in others:
            self.attend[m] = Attention(
                width, 1, out=False, scale=config.scale or None, layer=Affine
            )
        self.mix = Mix(len(others) * width, width) if others else None
        for layer in (*self.attend.modules(), self.mix):
            if isinstance(layer, nn.Linear):  # as the encoder's own layers are
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def _make_memories(self, others: list[str]) -> None:
        config = self.config
        gate = None if config.memory_mode == "replace" else config.gate
        self.memories = nn.ModuleDict()
        for m in ("text", *others):
            if m in config.memory:
                self.memories[m] = ExternalMemory(self.text.width, config.slots, gate)

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        entropy: dict[str, Tensor] = {}

        def change(hidden: Tensor) -> Tensor:
            return self._enhance(hidden, frames, mask, entropy)

        hidden, _ = self.text(
            frames["text"], mask["text"], change, self.config.layer, first_only=True
        )
        return Output(score=self.predict(hidden[:, 0]).squeeze(-1).float(), entropy=entropy)

    def _enhance(
        self,
        hidden: Tensor,
        frames: dict[str, Tensor],
        mask: dict[str, Tensor],
        entropy: dict[str, Tensor],
    ) -> Tensor:
        """(B, T, width) text states with sound and video in them; ``entropy`` is filled in."""
        text_mask = mask["text"]
        if hidden.shape[1] != text_mask.shape[1]:
            text_mask = _with_summary(text_mask)
        if "text" in self.memories:
            hidden, share = self.memories["text"](hidden)
            entropy["text"] = torch.stack([(entropy_of(share) * text_mask).sum(), text_mask.sum()])
        if self.mix is None:
            return hidden
        # what is left are small products, whose scores are scaled up: no place for half precision
        with torch.autocast(hidden.device.type, enabled=False):
            if hidden.dtype in (torch.float16, torch.bfloat16):
                hidden = hidden.float()
            looks = {m: self._look(m, hidden, frames[m], mask[m]) for m in self.fronts}
            mixed, enhanced = self.mix([look.values for look in looks.values()])
            enhanced = hidden + enhanced
            for look, values in zip(looks.values(), mixed, strict=True):
                enhanced = enhanced + look.read @ values
        for m, look in looks.items():
            if look.entropy is not None:
                entropy[m] = look.entropy
        return enhanced

    def _look(self, m: str, hidden: Tensor, frames: Tensor, mask: Tensor) -> Look:
        """What the text finds in a modality."""
        memory = self.memories[m] if m in self.memories else None
        places = 0 if self.config.frame_mask else max(self.longest[m], mask.shape[1])
        look: Any = look_at_codes if self.config.front == "codes" else look_at_frames
        return look(self.fronts[m], self.attend[m], memory, hidden, frames, mask, places)

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        if self.training and output.entropy:
            self.entropy += torch.stack([output.entropy[m] for m in self.memories])
        return {"task": batch.mean(batch.errors(output.score, self.config.squared))}

    def report(self) -> dict[str, float]:
        """Mean entropy of the reads of this epoch by memory, in nats; log(slots) means evenly
        spread."""
        numbers = {}
        for m, (total, reads) in zip(self.memories, self.entropy.tolist(), strict=True):
            numbers[f"{m}_memory_entropy"] = total / max(reads, 1.0)
        return numbers

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.entropy.zero_()

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        decay, no_decay = decayed(self.text.trained())
        return groups(self, text=decay, text_no_decay=no_decay)


def _front(modality: str, width: int, config: CENet.Config, data: DataSpec) -> nn.Module:
    if config.front == "mlp":
        return Perceptron(data.features[modality], width)
    if modality not in data.codebooks:
        raise ValueError(
            f"cenet needs a codebook of {modality}; make it with: python -m data_shards.codebook DIR, "
            "or use options.front=mlp"
        )
    if not config.inputs.standardise:
        raise ValueError(
            "the codebooks are of standardised frames; leave options.inputs.standardise=true"
        )
    centres = torch.as_tensor(data.codebooks[modality], dtype=torch.float32)
    return Codes(centres, width, config.frame_mask)


def _with_summary(mask: Tensor) -> Tensor:
    """The mask with the summary in front that text features get."""
    return torch.cat([mask.any(1, keepdim=True), mask], dim=1)
