"""HSCL (Chen, Wang and Hao, MMM 2024): supervised contrast of regression at the unimodal and the bimodal level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.batch import Utterances
from core.encoders.attention import Attention, largest_heads
from core.encoders.inputs import MODALITIES, InputConfig, Inputs, given, groups, refuse_classes
from core.encoders.sequence import SummaryTransformer
from core.encoders.text import TextConfig, TextEncoder
from core.losses.labels import task_loss
from core.losses.supcon import SupCon
from core.losses.supcr import SupCR
from core.model import DataSpec, Model, Sentiment


@dataclass(frozen=True)
class Output(Sentiment):
    projected: dict[
        str, Tensor
    ]  # "text", "audio", "vision", "text_audio", "text_vision" -> (B, projection)
    given: dict[str, Tensor]  # modality -> (B,) float32, 1 where the sample has it
    index: Tensor  # (B,) int64


class HSCL(Model[Utterances, Output]):
    """Text attends to sound and to vision; embeddings are ordered by label between views and between fusions.

    Differences from the released code, each undone by a field where it bears a "parity" note: its denominator, its
    residual, its random summary vectors and its unmasked text padding are errors that the paper does not have.
    Beyond the paper: a missing modality takes no part in the contrast of its sample; without text the fused vector is
    the mean of the linearly mapped summaries of sound and vision, and their two views are contrasted; with text alone
    it is the text's summary.
    """

    task = "sentiment"

    @dataclass(frozen=True)
    class Config:
        modalities: tuple[str, ...] = MODALITIES
        unimodal: bool = True  # contrast and similarity between text and audio, text and vision
        bimodal: bool = True  # contrast between the two fusions
        contrast: str = (
            "supcr"  # ablations: "supcon" draws equal labels together, "simclr" uses no labels
        )
        temperature: float = 0.5
        alpha: float = 0.1  # of the similarity within the unimodal level
        omega1: float = 0.01  # of the unimodal level
        omega2: float = 0.1  # of the bimodal level
        layers: int = 3  # of the audio and vision encoders
        audio_hidden: int = 32  # width of their feed-forward parts
        vision_hidden: int = 64
        audio_heads: int = 0  # 0: the most up to 5 that divide the width into heads of 4 or more
        vision_heads: int = 0
        fusion_heads: int = 12  # at most; the largest number up to it that divides the text's width
        fusion_gain: float = 1.0  # at the start, of what text takes from sound and video; near 0 the text begins alone
        projection: int = 128
        hidden: int = 128  # of the predictor
        dropout: float = 0.1
        cls: str = "learnt"  # parity: "random", a new vector in every forward
        denominator: str = "ik"  # parity: "jk"
        residual: str = "previous"  # parity: "text", around the cross-attention
        text_mask: bool = True  # parity: False lets padding take part in the text's self-attention
        similarity: str = "squared"  # parity: "l2"; alpha was tuned with it
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        refuse_classes(data, "hscl")
        _check(config)
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = [m for m in MODALITIES if m in config.modalities]
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        self.others = [m for m in self.modalities if m != "text"]
        self.encoders = nn.ModuleDict({m: _frames(m, config, data) for m in self.others})
        widths = {m: data.features[m] for m in self.others}
        if self.text is not None:
            width = widths["text"] = self.text.width
            fuse: dict[str, nn.Module] = {
                m: Fusion(width, widths[m], largest_heads(width, config.fusion_heads), config)
                for m in self.others
            }
            self.fused = [f"text_{m}" for m in self.others]
            self.pairs = [("text", m) for m in self.others]
        else:
            width = config.projection
            fuse = {m: nn.Linear(widths[m], width) for m in self.others}
            self.fused = []
            self.pairs = [("audio", "vision")] if len(self.others) == 2 else []
        self.fuse = nn.ModuleDict(fuse)
        views = {m: widths[m] for pair in self.pairs for m in pair} if config.unimodal else {}
        self.contrast_fused = config.bimodal and len(self.fused) == 2
        views |= dict.fromkeys(self.fused, width) if self.contrast_fused else {}
        self.project = nn.ModuleDict(
            {
                view: nn.Sequential(
                    nn.Dropout(config.dropout), nn.Linear(size, config.projection), nn.ReLU()
                )
                for view, size in views.items()
            }
        )
        self.predict = nn.Sequential(
            nn.Dropout(config.dropout),
            *(nn.Linear(width, config.hidden), nn.Tanh()),
            *(nn.Linear(config.hidden, config.hidden), nn.Tanh()),
            nn.Linear(config.hidden, 1),
        )
        own = [module for name, module in self.named_children() if name != "text"]
        for parameter in (p for module in own for p in module.parameters() if p.ndim > 1):
            nn.init.xavier_normal_(parameter)
        for fusion in self.fuse.values():
            if isinstance(fusion, Fusion):
                nn.init.xavier_normal_(
                    fusion.other.out.get_parameter("weight"), gain=config.fusion_gain
                )
        if config.contrast == "supcr":
            self.draw: nn.Module = SupCR(
                config.temperature,
                resolution=data.label_resolution,
                denominator="jk" if config.denominator == "jk" else "ik",
            )
        else:
            resolution = data.label_resolution if config.contrast == "supcon" else None
            self.draw = SupCon(config.temperature, resolution=resolution)

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        encoded, keys = {}, {}
        for m in self.others:
            encoded[m], keys[m] = self.encoders[m](frames[m], mask[m])  # (B, 1 + T, d_m)
        if self.text is not None:
            encoded["text"], keys["text"] = self.text(frames["text"], mask["text"])  # (B, T, width)
        summary = {m: x[:, 0] for m, x in encoded.items()}
        if self.text is not None and self.others:
            for m in self.others:
                summary[f"text_{m}"] = self.fuse[m](
                    encoded["text"], keys["text"], encoded[m], keys[m]
                )
            fused = torch.stack([summary[name] for name in self.fused]).mean(0)  # (B, width)
        elif self.text is not None:
            fused = summary["text"]
        else:
            fused = torch.stack([self.fuse[m](summary[m]) for m in self.others]).mean(0)
        return Output(
            score=self.predict(fused).squeeze(-1).float(),
            projected={view: head(summary[view]).float() for view, head in self.project.items()},
            given={m: given(mask[m]) for m in self.modalities},
            index=batch.index,
        )

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        losses = {"task": batch.mean(task_loss(output.score, batch.label))}
        if self.config.unimodal and self.pairs:
            distance = torch.stack([self._distance(output, pair) for pair in self.pairs]).sum(
                0
            )  # (B,)
            losses["similarity"] = self.config.omega1 * self.config.alpha * batch.mean(distance)
        return losses

    def _distance(self, output: Output, pair: tuple[str, str]) -> Tensor:
        left, right = pair
        squared = self.config.similarity == "squared"
        apart = output.projected[left] - output.projected[right]
        distance = (apart**2).sum(1) if squared else torch.linalg.vector_norm(apart, dim=1)  # (B,)
        return distance * output.given[left] * output.given[right]

    def global_batch_rows(self, output: Output) -> dict[str, Tensor]:
        """View -> (B, projection + 2) rows: the projection, whether the sample has what the view is of, its index."""
        index = output.index.float()
        return {
            view: torch.cat(
                [rows, torch.stack([output.given[view.removeprefix("text_")], index], dim=1)], dim=1
            )
            for view, rows in output.projected.items()
        }

    def global_batch_losses(
        self, embeddings: Mapping[str, Tensor], label: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        losses = {}
        if self.config.unimodal and self.pairs:
            terms = [
                self._between(embeddings[a], embeddings[b], label, weight) for a, b in self.pairs
            ]
            losses["unimodal"] = self.config.omega1 * torch.stack(terms).sum()
        if self.contrast_fused:
            left, right = (embeddings[name] for name in self.fused)
            losses["bimodal"] = self.config.omega2 * self._between(left, right, label, weight)
        return losses

    def _between(self, left: Tensor, right: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """The contrast of two views, as 2B rows with the labels repeated."""
        if self.config.contrast == "simclr":
            label = left[
                :, -1
            ].detach()  # by index: only the other view of the same sample is positive
        weight = weight * left[:, -2].detach() * right[:, -2].detach()
        return self.draw(torch.cat([left, right])[:, :-2], label.repeat(2), weight.repeat(2))

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Sound and video are groups of their own: their encoders, and what lets the text look at them."""
        own = {}
        for m in self.others:
            fuse = self.fuse[m]
            reader = fuse.other if isinstance(fuse, Fusion) else fuse
            own[m] = [*self.encoders[m].parameters(), *reader.parameters()]
        return groups(self, text=self.text.trained() if self.text is not None else [], **own)


class Fusion(nn.Module):
    """Text looks at itself, then at another modality; the summary's place of the result."""

    def __init__(self, width: int, source: int, heads: int, config: HSCL.Config):
        super().__init__()
        p = config.dropout
        self.from_text, self.text_mask = config.residual == "text", config.text_mask
        self.itself = Attention(width, heads, dropout=p)
        self.other = Attention(width, heads, source=source, dropout=p)
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(p), nn.Linear(width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(p)

    def forward(self, text: Tensor, text_mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        """(B, width) from text (B, T, width) and the other modality (B, S, source)."""
        first = text[:, :1]  # only the first place is read in the end, so only it asks
        itself = self.itself(first, text, text_mask if self.text_mask else None)
        hidden = self.norms[0](first + self.dropout(itself))
        before = first if self.from_text else hidden
        fused = self.norms[1](before + self.dropout(self.other(hidden, other, other_mask)))
        return self.norms[2](fused + self.dropout(self.feed(fused))).squeeze(1)


def _frames(modality: str, config: HSCL.Config, data: DataSpec) -> SummaryTransformer:
    width = data.features[modality]
    audio = modality == "audio"
    return SummaryTransformer(
        width,
        (config.audio_heads if audio else config.vision_heads)
        or largest_heads(width, 5, narrowest=4),
        config.audio_hidden if audio else config.vision_hidden,
        config.layers,
        config.dropout,
        scale=1.0 if audio else 0.2,
        learnt=config.cls == "learnt",
    )


def _check(config: HSCL.Config) -> None:
    choices = {
        "contrast": ("supcr", "supcon", "simclr"),
        "cls": ("learnt", "random"),
        "denominator": ("ik", "jk"),
        "residual": ("previous", "text"),
        "similarity": ("squared", "l2"),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(
                f"hscl has no {name}={getattr(config, name)!r}; choose from: {', '.join(allowed)}"
            )
