"""MISA (Hazarika et al., ACM MM 2020, arXiv:2005.03545): what modalities share, and what each has
to itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from core.batch import Utterances
from core.encoders.inputs import (
    MODALITIES,
    InputConfig,
    Inputs,
    Modality,
    groups,
    has_frames,
    in_order,
)
from core.encoders.sequence import masked_mean
from core.encoders.text import TextConfig, TextEncoder, decayed
from core.losses.gather_rows import gather_by_name
from core.losses.subspaces import central_moment_discrepancy, soft_orthogonality
from core.model import DataSpec, GlobalBatchRows, Model, Sentiment
from core.models.disentangled.misa_layers import (
    Fusion,
    FusionOptions,
    Parts,
    Subspaces,
    UtteranceEncoder,
    on_text_clock,
)

FUSION_ORDER = ("text", "vision", "audio")
MOMENTS = 5  # of the discrepancy: the mean, and central moments 2 to 5


@dataclass(frozen=True)
class Output(Sentiment):
    parts: Parts
    given: dict[str, Tensor]  # modality -> (B,) bool, True where the sample has it
    guesses: Tensor | None  # (B, modalities, modalities) logits of which modality a part is of
    index: Tensor  # (B,) int64


class MISA(Model[Utterances, Output]):
    """Each modality becomes a shared and a private part; a Transformer layer fuses all of them.

    Shared parts are drawn together, private ones held apart, and both together rebuild the
    modality. Sizes and weights are those of MMSA's published row on MOSI.

    Differences from the released code: sound and video are read over their own lengths (parity:
    ``clock=text``, where MMSA packs them by the number of tokens, and so never sees most frames of
    unaligned data); the statistics that draw parts together and hold them apart are those of the
    whole global batch; features are standardised. The adversarial variant
    (``similar=adversarial``) runs, where MMSA's stops at an undefined name. The second
    discriminator, computed there and never used, is left out, and so are the authors' orthogonal
    start of recurrent weights and their freezing of BERT's lower layers. A modality that a sample
    lacks has no part in any loss, and the fusion does not look at its parts.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config(FusionOptions):
        modalities: tuple[Modality, ...] = MODALITIES
        difference: NonNegativeFloat = 0.3  # weight of holding parts apart
        similarity: NonNegativeFloat = 0.8  # weight of drawing shared parts together
        reconstruction: NonNegativeFloat = 0.8  # weight of rebuilding
        # draw together by moments, or by a discriminator that is to be misled
        similar: Literal["cmd", "adversarial"] = "cmd"
        reverse: NonNegativeFloat = 1.0  # strength of the reversed gradient where adversarial
        squared: bool = True  # the squared error of a score
        # whose length sound and video are read over: parity: "text", that of the token ids
        clock: Literal["own", "text"] = "own"
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        chosen = in_order(config.modalities)
        self.modalities = [m for m in FUSION_ORDER if m in chosen]
        if config.clock == "text" and "text" not in chosen:
            raise ValueError("misa with clock=text reads by the text; options.modalities lacks it")
        self.text = TextEncoder(config.text, data) if "text" in chosen else None
        self.encoders = nn.ModuleDict()
        widths: dict[str, int] = {}
        for m in self.modalities:
            if self.text is not None and m == "text":
                widths[m] = self.text.width
            else:
                self.encoders[m] = UtteranceEncoder(data.features[m])
                widths[m] = 4 * data.features[m]
        self.subspaces = Subspaces(widths, config.width, rebuilds=config.reconstruction > 0)
        self.fuse = Fusion(len(widths), config, data.num_outputs)
        self.pairs = list(combinations(self.modalities, 2))
        draws_together = config.similarity > 0 and len(self.pairs) > 0
        self.compares_moments = draws_together and config.similar == "cmd"
        self.discriminator: nn.Sequential | None = None
        if draws_together and config.similar == "adversarial":
            self.discriminator = nn.Sequential(
                nn.Linear(config.width, config.width),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(config.width, len(widths)),
            )

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        given = {m: has_frames(mask[m]) for m in self.modalities}
        vectors = {}
        for m, encoder in self.encoders.items():
            values, clock = frames[m], mask[m]
            if self.config.clock == "text":
                values, clock = on_text_clock(values, clock, mask["text"])
            vectors[m] = encoder(values, clock)
        if self.text is not None:
            vectors["text"] = masked_mean(*self.text(frames["text"], mask["text"]))
        parts = self.subspaces(vectors, given)
        guesses = None
        if self.discriminator is not None:
            shared = torch.stack(list(parts.shared.values()), dim=1)  # (B, modalities, width)
            guesses = self.discriminator(reversed_gradient(shared, self.config.reverse)).float()
        score = self.fuse(parts, given).float()  # (B, outputs)
        return Output(score.squeeze(1), parts, given, guesses, batch.index)

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        error = batch.errors(output.score, self.config.squared)
        losses = {"task": batch.mean(error)}
        if self.config.reconstruction:
            apart = {}
            for m, rebuilt in output.parts.rebuilt.items():
                apart[m] = (rebuilt.float() - output.parts.projected[m].float()).square().mean(1)
            rebuilding = _mean_over_given(apart, output.given)
            losses["reconstruction"] = self.config.reconstruction * batch.mean(rebuilding)
        if output.guesses is not None:
            surprise = {}
            for number, m in enumerate(self.modalities):
                itself = torch.full_like(batch.index, number)
                surprise[m] = F.cross_entropy(output.guesses[:, number], itself, reduction="none")
            confusion = _mean_over_given(surprise, output.given)
            losses["similarity"] = self.config.similarity * batch.mean(confusion)
        return losses

    @property
    def has_global_batch_losses(self) -> bool:
        return self.config.difference > 0 or self.compares_moments

    def global_batch_rows(self, output: Output) -> GlobalBatchRows:
        if not self.has_global_batch_losses:
            return GlobalBatchRows()
        embeddings = {f"shared_{m}": rows.float() for m, rows in output.parts.shared.items()}
        if self.config.difference:
            for m, rows in output.parts.private.items():
                embeddings[f"private_{m}"] = rows.float()
        return GlobalBatchRows(embeddings, output.given, output.index)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """How far shared parts are apart in their moments, and how much the others correlate; over
        the samples of all ranks that have both modalities of a pair."""
        if not rows.embeddings:
            return {}
        embeddings, facts = gather_by_name(rows.embeddings, rows.present, weight)
        given = {m: fact > 0 for m, fact in facts.items()}
        losses = {}
        if self.config.difference:
            losses["difference"] = self.config.difference * self._difference(embeddings, given)
        if self.compares_moments:
            terms = []
            for m, other in self.pairs:
                left, right = embeddings[f"shared_{m}"], embeddings[f"shared_{other}"]
                kept = given[m] & given[other]
                if int(kept.sum()) < 2:
                    terms.append((left + right).sum() * 0)
                    continue
                discrepancy = central_moment_discrepancy(left[kept], right[kept], MOMENTS)
                terms.append(discrepancy.to(left.dtype))
            losses["similarity"] = self.config.similarity * torch.stack(terms).mean()
        return losses

    def _difference(self, embeddings: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Tensor:
        """Correlations between both parts of a modality, and between private parts, summed."""
        terms = []
        for m in self.modalities:
            left, right = embeddings[f"private_{m}"], embeddings[f"shared_{m}"]
            terms.append(_orthogonality_where(given[m], left, right))
        for m, other in self.pairs:
            left, right = embeddings[f"private_{m}"], embeddings[f"private_{other}"]
            terms.append(_orthogonality_where(given[m] & given[other], left, right))
        return torch.stack(terms).sum()

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        decay, no_decay = decayed(self.text.trained() if self.text is not None else [])
        return groups(self, text=decay, text_no_decay=no_decay)


def reversed_gradient(x: Tensor, strength: float) -> Tensor:
    """``x`` as it is; its gradient comes back with the other sign, times ``strength``."""
    return x.detach() - strength * (x - x.detach())


def _mean_over_given(values: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Tensor:
    """(B,) mean of modalities' (B,) values over those that a sample has; zero if it has none."""
    total = torch.stack([value * given[m] for m, value in values.items()]).sum(0)
    count = torch.stack([given[m] for m in values]).sum(0)
    return total / count.clamp(min=1)


def _orthogonality_where(kept: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Of the rows (n, D) that are kept; zero where fewer than two are."""
    if int(kept.sum()) < 2:
        return (left + right).sum() * 0
    return soft_orthogonality(left[kept], right[kept])
