"""MMIM (Han et al., EMNLP 2021, arXiv:2109.00412): fusion that keeps as much mutual information as
it can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.inputs import (
    MODALITIES,
    InputConfig,
    Inputs,
    Modality,
    groups,
    has_frames,
    in_order,
)
from core.encoders.sequence import BiLSTM
from core.encoders.text import TextConfig, TextEncoder, decayed
from core.losses.gather_rows import gather_by_name
from core.model import DataSpec, GlobalBatchRows, Model, Sentiment
from core.models.disentangled.mutual_information import (
    Candidates,
    ConditionalDensity,
    Density,
    FixedCode,
    group_entropy,
    predictive_coding,
)
from core.rows import at_least_float32, unit_rows

NO_GROUP = -1


@dataclass(frozen=True)
class Output(Sentiment):
    vectors: dict[str, Tensor]  # modality -> (B, width of it), of length one
    predicted: dict[str, Tensor]  # modality -> the same of the fused vector
    codes: dict[str, Tensor]  # pair -> (B, code), what its entropy is taken of
    fit: dict[str, Tensor]  # pair -> (B,) log density, which trains the density
    bound: dict[str, Tensor]  # pair -> (B,) the same, which trains all but the density
    given: dict[str, Tensor]  # modality -> (B,) bool, True where the sample has it
    index: Tensor  # (B,) int64


class MMIM(Model[Utterances, Output]):
    """The fused vector predicts its inputs by contrast, and text predicts sound and video by a
    density.

    Differences from the released code: the log density has its determinant (parity:
    ``density=released``, whose first stage is best served by a variance without bound), and the
    logarithm of its variance passes the tanh that the settings name and the code leaves out.
    ``density=full`` leaves it out too, and its bound has no end: vectors that shrink gain by all
    their numbers, and the entropy that should pay for it is of a code of a fourth of them, with
    ``ridge`` below it. A fused vector chooses among inputs, as the paper has it (parity:
    ``candidates=predictions``); the density and all the rest learn in one pass over the data, each
    by its own loss, with the gradients of the released two stages; covariances have ``ridge``
    added, where few rows gave -inf and nan. The code that entropies are of is a fixed random map,
    which is what it amounts to there, since neither stage trains it. Contrast and entropies see the
    whole global batch;
    remembered rows are the newest ones, also across epochs, and take part from the first step on.
    Of classes, each is a group for the entropies; where a label is a vector, all samples are one.
    Features are standardised. A sample without a modality takes no part in the terms of it. The
    authors save the epoch whose test error is least; here validation chooses.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES
        hidden: PositiveInt = 16  # of the LSTMs over sound and video, each way
        out: PositiveInt = 16  # width of their vectors
        width: PositiveInt = 128  # of the fused vector
        dropout: Probability = 0.1  # before the fusion
        alpha: NonNegativeFloat = 0.1  # weight of the predictive coding
        beta: NonNegativeFloat = 0.1  # weight of the lower bound between modalities
        memory: NonNegativeInt = 32  # remembered rows that entropies are taken over too
        ridge: NonNegativeFloat = 1e-4  # added to the diagonal of covariances; parity: 0
        with_va: bool = False  # a bound between video and sound, too
        # parity: "released", without its determinant; "full" has no bound on the log variance
        density: Density = "bounded"
        # what a row is told from; parity: "predictions"
        candidates: Candidates = "inputs"
        squared: bool = False  # the squared error of a score in the place of the absolute one
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        self.encoders = nn.ModuleDict()
        widths = dict.fromkeys(self.modalities, config.out)
        for m in self.modalities:
            if self.text is not None and m == "text":
                widths[m] = self.text.width
            else:
                self.encoders[m] = FrameEncoder(data.features[m], config.hidden, config.out)
        self.fuse = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(sum(widths.values()), config.width),
            nn.Tanh(),
            nn.Linear(config.width, config.width),
            nn.Tanh(),
        )
        self.predict = nn.Linear(config.width, data.num_outputs)
        self.recall = nn.ModuleDict()  # a modality's vector from the fused one
        if config.alpha:
            for m, width in widths.items():
                self.recall[m] = nn.Linear(config.width, width)
        self.num_groups = data.num_classes or (1 if data.target_names else 2)
        self.are_classes = data.num_classes > 0
        self._make_bounds(widths)
        self._initialise()

    def _make_bounds(self, widths: Mapping[str, int]) -> None:
        """A density, a code and remembered rows of each pair: name -> what is given, what is
        predicted."""
        pairs = [("text", "vision"), ("text", "audio")]
        if self.config.with_va:
            pairs.append(("vision", "audio"))
        self.pairs: dict[str, tuple[str, str]] = {}
        self.densities = nn.ModuleDict()
        self.codes = nn.ModuleDict()
        for x, y in pairs:
            if not self.config.beta or x not in widths or y not in widths:
                continue
            name = f"{x}_{y}"
            self.pairs[name] = (x, y)
            self.densities[name] = ConditionalDensity(widths[x], widths[y], self.config.density)
            code = FixedCode(widths[y])
            self.codes[name] = code
            rows = torch.zeros(self.config.memory, code.width)
            self.register_buffer(f"memory_{name}", rows)
            group = torch.full((self.config.memory,), NO_GROUP)
            self.register_buffer(f"memory_group_{name}", group)

    def _initialise(self) -> None:
        for name, module in self.named_children():
            if name != "text":
                for parameter in module.parameters():
                    if parameter.ndim > 1:
                        nn.init.xavier_normal_(parameter)

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        given = {m: has_frames(mask[m]) for m in self.modalities}
        vectors = {}
        for m in self.modalities:
            if m in self.encoders:
                encoded = self.encoders[m](frames[m], mask[m])
                vectors[m] = encoded * given[m][:, None]
            elif self.text is not None:
                hidden, _ = self.text(frames[m], mask[m])
                vectors[m] = hidden[:, 0]
        fused = self.fuse(torch.cat(list(vectors.values()), dim=1))
        codes, fit, bound = {}, {}, {}
        for name, (x, y) in self.pairs.items():
            codes[name] = at_least_float32(self.codes[name](vectors[y]))
            fit[name], bound[name] = self.densities[name](vectors[x], vectors[y])
        score = self.predict(fused).float()  # (B, classes or 1)
        return Output(
            score=score.squeeze(1),
            vectors={m: unit_rows(vectors[m]) for m in self.recall},
            predicted={m: unit_rows(layer(fused)) for m, layer in self.recall.items()},
            codes=codes,
            fit=fit,
            bound=bound,
            given=given,
            index=batch.index,
        )

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        error = batch.errors(output.score, self.config.squared)
        losses = {"task": batch.mean(error)}
        if self.pairs:
            fit, bound = torch.zeros_like(error), torch.zeros_like(error)
            for name, (x, y) in self.pairs.items():
                has_both = output.given[x] & output.given[y]
                fit = fit + output.fit[name] * has_both
                bound = bound + output.bound[name] * has_both
            losses["likelihood"] = -batch.mean(fit)
            losses["bound"] = -self.config.beta * batch.mean(bound)
        return losses

    @property
    def has_global_batch_losses(self) -> bool:
        return self.config.alpha > 0 or len(self.pairs) > 0

    def global_batch_rows(self, output: Output) -> GlobalBatchRows:
        embeddings = {}
        for m, predicted in output.predicted.items():
            embeddings[f"vector_{m}"] = output.vectors[m]
            embeddings[f"predicted_{m}"] = predicted
        for name, code in output.codes.items():
            embeddings[f"code_{name}"] = code
        return GlobalBatchRows(embeddings, output.given, output.index)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """The contrast of fused vectors with their inputs, and the entropies of what is predicted;
        over the samples of all ranks."""
        if not rows.embeddings:
            return {}
        facts = {**rows.present, "group": self._group(target)}
        embeddings, known = gather_by_name(rows.embeddings, facts, weight)
        losses = {}
        if self.recall:
            terms = []
            for m in self.recall:
                kept = known[m] > 0
                vectors, predicted = embeddings[f"vector_{m}"], embeddings[f"predicted_{m}"]
                term = predictive_coding(vectors[kept], predicted[kept], self.config.candidates)
                terms.append(term)
            losses["cpc"] = self.config.alpha * torch.stack(terms).sum()
        if self.pairs:
            entropies = [self._entropy(name, embeddings, known) for name in self.pairs]
            losses["entropy"] = -self.config.beta * torch.stack(entropies).sum()
        return losses

    def _entropy(
        self, pair: str, embeddings: Mapping[str, Tensor], known: Mapping[str, Tensor]
    ) -> Tensor:
        """Of this batch's codes, which gradients reach, and of the remembered ones."""
        x, y = self.pairs[pair]
        codes, group = embeddings[f"code_{pair}"], known["group"].long()
        group = torch.where((known[x] > 0) & (known[y] > 0), group, NO_GROUP)
        remembered = self.get_buffer(f"memory_{pair}").to(codes.dtype)
        codes = torch.cat([codes, remembered])
        group = torch.cat([group, self.get_buffer(f"memory_group_{pair}")])
        entropy = group_entropy(codes, group, self.num_groups, self.config.ridge)
        return entropy.to(codes.dtype)

    def _group(self, label: Tensor) -> Tensor:
        """(B,) int64: the class; of scores 0 where positive, 1 where negative; -1 where neither; of
        label vectors 0."""
        if self.are_classes:
            return label.long()
        if label.ndim == 2:
            return torch.zeros_like(label[:, 0], dtype=torch.int64)
        sign = torch.where(label < 0, 1, NO_GROUP)
        return torch.where(label > 0, 0, sign)

    def memory_bank_rows(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        if not self.training or not self.pairs or not self.config.memory:
            return {}
        rows = {"index": output.index}
        group = self._group(batch.label)
        for name, (x, y) in self.pairs.items():
            has_both = output.given[x] & output.given[y]
            rows[f"code_{name}"] = output.codes[name].detach()
            rows[f"group_{name}"] = torch.where(has_both, group, NO_GROUP)
        return rows

    def update_memory_bank(self, rows: Mapping[str, Tensor]) -> None:
        """The newest rows of a group take the places of the oldest ones."""
        for name in self.pairs:
            group = rows[f"group_{name}"]
            members = (group != NO_GROUP).nonzero().squeeze(1)
            size = self.config.memory
            if len(members) > size:  # spread over the batch, whose rows come by sample number
                spread = torch.arange(size, device=group.device) * len(members) // size
                members = members[spread]
            for part in ("", "group_"):
                buffer = self.get_buffer(f"memory_{part}{name}")
                arriving = rows[f"{part or 'code_'}{name}"][members].to(buffer.dtype)
                buffer.copy_(torch.cat([buffer, arriving])[-size:])

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The densities are the group "mmilb", as in the released code."""
        decay, no_decay = decayed(self.text.trained() if self.text is not None else [])
        return groups(self, text=decay, text_no_decay=no_decay, mmilb=self.densities.parameters())


class FrameEncoder(nn.Module):
    """What a BiLSTM over sound or video ends with both ways, mapped to (B, out)."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.both_ways = BiLSTM(width, hidden)
        self.out = nn.Linear(2 * hidden, out)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        _, ends = self.both_ways(frames, mask)
        return self.out(ends.flatten(1))
