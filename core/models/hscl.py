"""HSCL (Chen, Wang and Hao, MMM 2024): supervised contrast of regression at the unimodal and the
bimodal level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.attention import Attention, largest_heads
from core.encoders.inputs import (
    MODALITIES,
    InputConfig,
    Inputs,
    Modality,
    groups,
    has_frames,
    in_order,
)
from core.encoders.sequence import SummaryTransformer
from core.encoders.text import TextConfig, TextEncoder
from core.losses.supcon import SupCon
from core.losses.supcr import Denominator, SupCR
from core.losses.supcr_distances import SupCRByDistance
from core.model import DataSpec, GlobalBatchRows, Model, Sentiment


@dataclass(frozen=True)
class Output(Sentiment):
    # "text", "audio", "vision", "text_audio", "text_vision" -> (B, projection)
    projected: dict[str, Tensor]
    # modality -> (B,) bool, True where the sample has it
    has_modality: dict[str, Tensor]
    index: Tensor  # (B,) int64


class HSCL(Model[Utterances, Output]):
    """Text attends to sound and to vision; embeddings are ordered by label between views and
    between fusions.

    Differences from the released code, each undone by a field where it bears a "parity" note: its
    denominator, its residual, its random summary vectors and its unmasked text padding are errors
    that the paper does not have. Beyond the paper: a missing modality takes no part in the contrast
    of its sample; without text the fused vector is the mean of the linearly mapped summaries of
    sound and vision, and their two views are contrasted; with text alone it is the text's summary.
    Classes are 0 or 1 apart in the contrast, and label vectors by the sum of absolute differences.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES
        unimodal: bool = True  # contrast and similarity between text and audio, text and vision
        bimodal: bool = True  # contrast between the two fusions
        # ablations: "supcon" draws equal labels together, "simclr" uses no labels
        contrast: Literal["supcr", "supcon", "simclr"] = "supcr"
        temperature: PositiveFloat = 0.5
        alpha: NonNegativeFloat = 0.1  # of the similarity within the unimodal level
        omega1: NonNegativeFloat = 0.01  # of the unimodal level
        omega2: NonNegativeFloat = 0.1  # of the bimodal level
        layers: PositiveInt = 3  # of the audio and vision encoders
        audio_hidden: PositiveInt = 32  # width of their feed-forward parts
        vision_hidden: PositiveInt = 64
        # 0: the most up to 5 that divide the width into heads of 4 or more
        audio_heads: NonNegativeInt = 0
        vision_heads: NonNegativeInt = 0
        # at most; the largest number up to it that divides the text's width
        fusion_heads: PositiveInt = 12
        # at the start, of what text takes from sound and video; near 0 the text begins alone
        fusion_gain: NonNegativeFloat = 1.0
        # of what is contrasted; paper: "linear", the released code: "relu"
        projection: Literal["relu", "linear"] = "relu"
        projection_width: PositiveInt = 128
        hidden: PositiveInt = 128  # of the predictor
        dropout: Probability = 0.1
        cls: Literal["learnt", "random"] = (
            "learnt"  # parity: "random", a new vector in every forward
        )
        denominator: Denominator = "ik"  # parity: "jk"
        # parity: "text", around the cross-attention
        residual: Literal["previous", "text"] = "previous"
        # parity: False lets padding take part in the text's self-attention
        text_mask: bool = True
        similarity: Literal["squared", "l2"] = "squared"  # parity: "l2"; alpha was tuned with it
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

        @model_validator(mode="before")
        @classmethod
        def _read_old_width(cls, given: Any) -> Any:
            """A number for ``projection`` is what runs of before call the width."""
            values = getattr(given, "kwargs", given) or {}  # in code they come as arguments
            if not isinstance(values, dict):  # refused by what reads it next
                return given
            width = values.get("projection")
            if not isinstance(width, int):
                return given
            return {**values, "projection": "relu", "projection_width": width}

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        self.others = [m for m in self.modalities if m != "text"]
        self.encoders = nn.ModuleDict({m: _frame_encoder(m, config, data) for m in self.others})
        self._make_fusion(data)
        self._make_heads(data)
        self._initialise()
        self.draw = _contrast_loss(config, data)

    def _make_fusion(self, data: DataSpec) -> None:
        """What makes one vector of the summaries, and which views are contrasted."""
        config = self.config
        self.fuse = nn.ModuleDict()
        if self.text is not None:
            self.fused_width = self.text.width
            self.fused_views = [f"text_{m}" for m in self.others]
            self.contrasted: list[tuple[str, str]] = [("text", m) for m in self.others]
            heads = largest_heads(self.fused_width, config.fusion_heads)
            for m in self.others:
                self.fuse[m] = Fusion(self.fused_width, data.features[m], heads, config)
        else:
            self.fused_width = config.projection_width
            self.fused_views = []
            self.contrasted = [("audio", "vision")] if len(self.others) == 2 else []
            for m in self.others:
                self.fuse[m] = nn.Linear(data.features[m], self.fused_width)
        self.contrast_unimodal = config.unimodal and len(self.contrasted) > 0
        self.contrast_bimodal = config.bimodal and len(self.fused_views) == 2

    def _make_heads(self, data: DataSpec) -> None:
        """A projection for each view that is contrasted, and the predictor."""
        config = self.config
        widths: dict[str, int] = {}
        if self.contrast_unimodal:
            for m in [m for pair in self.contrasted for m in pair]:
                widths[m] = self.fused_width if m == "text" else data.features[m]
        if self.contrast_bimodal:
            widths |= dict.fromkeys(self.fused_views, self.fused_width)
        self.project = nn.ModuleDict()
        for view, width in widths.items():
            layers: list[nn.Module] = [
                nn.Dropout(config.dropout),
                nn.Linear(width, config.projection_width),
            ]
            if config.projection == "relu":
                layers.append(nn.ReLU())
            self.project[view] = nn.Sequential(*layers)
        self.predict = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(self.fused_width, config.hidden),
            nn.Tanh(),
            nn.Linear(config.hidden, config.hidden),
            nn.Tanh(),
            nn.Linear(config.hidden, data.num_outputs),
        )

    def _initialise(self) -> None:
        for name, module in self.named_children():
            if name != "text":
                for parameter in module.parameters():
                    if parameter.ndim > 1:
                        nn.init.xavier_normal_(parameter)
        for fusion in self.fuse.values():
            if isinstance(fusion, Fusion):
                out = fusion.other.out.get_parameter("weight")
                nn.init.xavier_normal_(out, gain=self.config.fusion_gain)

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        encoded, keys = {}, {}
        for m in self.others:
            encoded[m], keys[m] = self.encoders[m](frames[m], mask[m])  # (B, 1 + T, d_m)
        if self.text is not None:
            encoded["text"], keys["text"] = self.text(frames["text"], mask["text"])  # (B, T, width)
        summary = {m: x[:, 0] for m, x in encoded.items()}
        if self.text is None:
            mapped = [self.fuse[m](summary[m]) for m in self.others]
            fused = torch.stack(mapped).mean(0)  # (B, width)
        elif self.others:
            for m in self.others:
                view = self.fuse[m](encoded["text"], keys["text"], encoded[m], keys[m])
                summary[f"text_{m}"] = view
            fused = torch.stack([summary[view] for view in self.fused_views]).mean(0)
        else:
            fused = summary["text"]
        return Output(
            score=self.predict(fused).squeeze(-1).float(),
            projected={view: head(summary[view]).float() for view, head in self.project.items()},
            has_modality={m: has_frames(mask[m]) for m in self.modalities},
            index=batch.index,
        )

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        losses = {"task": batch.mean(batch.errors(output.score))}
        if self.contrast_unimodal:
            distances = [self._distance(output, *pair) for pair in self.contrasted]
            distance = torch.stack(distances).sum(0)  # (B,)
            losses["similarity"] = self.config.omega1 * self.config.alpha * batch.mean(distance)
        return losses

    def _distance(self, output: Output, left: str, right: str) -> Tensor:
        """(B,) how far two views of a sample lie apart; zero where it lacks one of them."""
        difference = output.projected[left] - output.projected[right]
        if self.config.similarity == "squared":
            distance = (difference**2).sum(1)
        else:
            distance = torch.linalg.vector_norm(difference, dim=1)
        return distance * output.has_modality[left] * output.has_modality[right]

    @property
    def has_global_batch_losses(self) -> bool:
        return self.contrast_unimodal or self.contrast_bimodal

    def global_batch_rows(self, output: Output) -> GlobalBatchRows:
        return GlobalBatchRows(output.projected, output.has_modality, output.index)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        pairs = list(self.contrasted) if self.contrast_unimodal else []
        if self.contrast_bimodal:
            left, right = self.fused_views
            pairs.append((left, right))
        sets = [self._compared(rows, *pair, target, weight) for pair in pairs]
        draw = self.draw
        terms = draw.of_sets(sets) if isinstance(draw, SupCR) else [draw(*one) for one in sets]
        losses = {}
        if self.contrast_unimodal:
            unimodal = torch.stack(list(terms[: len(self.contrasted)]))
            losses["unimodal"] = self.config.omega1 * unimodal.sum()
        if self.contrast_bimodal:
            losses["bimodal"] = self.config.omega2 * terms[-1]
        return losses

    def _compared(
        self, rows: GlobalBatchRows, left: str, right: str, target: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Two views to contrast, as 2B rows with the labels repeated, and their weights."""
        if self.config.contrast == "simclr":
            # by number: only the other view of the same sample is positive
            assert rows.index is not None
            target = rows.index
        for view in (left, right):
            # a fusion stands for the modality that text looks at
            weight = weight * rows.present[view.removeprefix("text_")]
        both = torch.cat([rows.embeddings[left], rows.embeddings[right]])
        return both, torch.cat([target, target]), weight.repeat(2)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Sound and video are groups of their own: their encoders, and what lets the text look at
        them."""
        named = {"text": self.text.trained() if self.text is not None else []}
        for m in self.others:
            fuse = self.fuse[m]
            reader = fuse.other if isinstance(fuse, Fusion) else fuse
            named[m] = [*self.encoders[m].parameters(), *reader.parameters()]
        return groups(self, **named)


class Fusion(nn.Module):
    """Text looks at itself, then at another modality; the summary's place of the result."""

    def __init__(self, width: int, other_width: int, heads: int, config: HSCL.Config):
        super().__init__()
        self.residual_from_text = config.residual == "text"
        self.mask_text = config.text_mask
        self.itself = Attention(width, heads, dropout=config.dropout)
        self.other = Attention(width, heads, key_width=other_width, dropout=config.dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, text: Tensor, text_mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        """(B, width) from text (B, T, width) and the other modality (B, S, other_width)."""
        first = text[:, :1]  # only the first position is read in the end, so only it asks
        itself = self.itself(first, text, text_mask if self.mask_text else None)
        hidden = self.norms[0](first + self.dropout(itself))
        residual = first if self.residual_from_text else hidden
        crossed = self.other(hidden, other, other_mask)
        fused = self.norms[1](residual + self.dropout(crossed))
        return self.norms[2](fused + self.dropout(self.feed(fused))).squeeze(1)


def _frame_encoder(modality: str, config: HSCL.Config, data: DataSpec) -> SummaryTransformer:
    width = data.features[modality]
    if modality == "audio":
        heads, hidden, scale = config.audio_heads, config.audio_hidden, 1.0
    else:
        heads, hidden, scale = config.vision_heads, config.vision_hidden, 0.2
    return SummaryTransformer(
        width,
        heads or largest_heads(width, 5, narrowest=4),
        hidden,
        config.layers,
        config.dropout,
        scale=scale,
        learnt=config.cls == "learnt",
    )


def _contrast_loss(config: HSCL.Config, data: DataSpec) -> nn.Module:
    resolution = data.label_resolution
    if config.contrast == "simclr":
        return SupCon(config.temperature)  # sample numbers are no labels on a grid
    if data.num_classes:
        return _contrast_of_classes(config)
    if data.target_names:
        return _contrast_of_vectors(config, resolution)
    if config.contrast == "supcr":
        return SupCR(config.temperature, resolution=resolution, denominator=config.denominator)
    return SupCon(config.temperature, resolution=resolution)


def _contrast_of_classes(config: HSCL.Config) -> nn.Module:
    """Any two classes are equally far apart."""
    if config.contrast == "supcon":
        return SupCon(config.temperature)
    _refuse_released_denominator(config)
    return SupCRByDistance(config.temperature, "classes")


def _contrast_of_vectors(config: HSCL.Config, resolution: float | None) -> nn.Module:
    """Of several scores, or of labels that are 1 or 0."""
    if config.contrast == "supcon":
        raise ValueError(
            "options.contrast=supcon draws equal labels together, and labels that are vectors are "
            "seldom equal; use options.contrast=supcr or simclr"
        )
    _refuse_released_denominator(config)
    return SupCRByDistance(config.temperature, "vectors", resolution=resolution)


def _refuse_released_denominator(config: HSCL.Config) -> None:
    if config.denominator == "jk":
        raise ValueError(
            "options.denominator=jk restates the released code, which knows scores only; use "
            "options.denominator=ik for classes and several targets"
        )
