"""TATE (Zeng et al., SIGIR 2022, arXiv:2204.13707): a tag tells the encoder which modalities are
missing, and a teacher that saw them all shows what the encoding should have been."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.attention import Attention
from core.encoders.inputs import InputConfig, Inputs, Modality, groups, one_frame
from core.encoders.text import TextConfig, TextEncoder
from core.file_access.json_files import read_json_object
from core.file_access.regular_files import check_regular_file
from core.model import DataSpec, Model, Sentiment

# of tokens and of the tag's last three digits
ORDER: tuple[Modality, ...] = ("vision", "audio", "text")
TAG = 1 + len(ORDER)
# the two files of a teacher's folder
TEACHER_OPTIONS = "options.json"
TEACHER_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Output(Sentiment):
    # (B, L, width + 4), the joint encoder's input: L tokens of all modalities, each with the tag
    joint: Tensor
    hidden: Tensor  # (B, L, width + 4), its output
    decoded: Tensor | None  # (B, L, width + 4)
    pooled: Tensor  # (B, width + 4)
    tag: Tensor  # (B, 4)
    mask: Tensor  # (B, L) bool, True at tokens that exist, also where the frame was dropped
    teacher: Tensor | None  # (B, L, width + 4), what the teacher makes of the complete data
    squares: Tensor  # (), squared norm of the last layer


class TATE(Model[Utterances, Output]):
    """Modalities share pairwise spaces, one joint encoder reads all their tokens, a decoder gives
    back its input.

    Differences from the released code: the tag is the sample's own (it was the same for all there);
    the teacher is frozen and sees the complete data; padding is no token; losses are means over
    samples and real tokens instead of sums, with the paper's weights, which leaves the tag's 32
    times heavier; nothing is dropped out in evaluation; a score is learnt by its absolute error
    where labels are scores. A modality that a sample does not have in the first place has no
    tokens; one that was dropped keeps its places, so that they can be compared with the teacher's.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = ORDER
        width: PositiveInt = 300
        heads: PositiveInt = 4  # must divide width and width + 4
        dropout: Probability = 0.2  # of attention
        teacher: str = ""  # folder of a trained teacher; empty: none
        forward: NonNegativeFloat = 0.1  # weight of the likeness to the teacher
        backward: NonNegativeFloat = 0.1  # of giving back the input; 0: no decoder
        tag: NonNegativeFloat = 0.1  # of the tag's recovery
        norm: NonNegativeFloat = 1e-4  # of half the squared norm of the last layer
        # between tokens: symmetric divergence of their softmax, or mean squared error
        distance: Literal["kl", "mse"] = "kl"
        # parity: "constant", 0001 for all, as in the released graphs
        tag_mode: Literal["sample", "constant"] = "sample"
        # what reads sound or video alone learns in optimiser groups of its own
        own_rates: bool = False
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config, self.data = config, data
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities: list[str] = [m for m in ORDER if m in config.modalities]
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        num_others = len(self.modalities) - 1
        if config.width % max(num_others, 1):
            raise ValueError(
                f"width={config.width} does not split into the {num_others} pair spaces of a modality"
            )
        self._make_encoders(data)
        tagged_width = config.width + TAG
        self.joint = Block(tagged_width, config.heads, config.dropout)
        self.decoder = None
        if config.backward:
            self.decoder = Block(tagged_width, config.heads, config.dropout)
        self.pool = Pool(tagged_width)
        self.narrow = nn.Linear(tagged_width, config.width, bias=False)
        self.answer = Answer(config.width, data.num_outputs)
        for name, module in self.named_children():
            if name != "text":
                for parameter in module.parameters():
                    if parameter.ndim > 1:
                        nn.init.xavier_uniform_(parameter)
        # a tuple hides it: it is neither trained nor saved with the student
        self._teacher: tuple[TATE, ...] = ()

    def _make_encoders(self, data: DataSpec) -> None:
        config, num_others = self.config, len(self.modalities) - 1
        self.into = nn.ModuleDict()
        for m in self.modalities:
            in_width = data.features[m]
            if self.text is not None and m == "text":
                in_width = self.text.width
            self.into[m] = nn.Linear(in_width, config.width, bias=False)
        self.encoders = nn.ModuleDict()
        for m in self.modalities:
            self.encoders[m] = Block(config.width, config.heads, config.dropout)
        self.pairs = nn.ModuleDict()  # the space of each two modalities
        for m, other in combinations(self.modalities, 2):
            self.pairs[f"{m}_{other}"] = nn.Linear(
                config.width, config.width // num_others, bias=False
            )

    def forward(self, batch: Utterances) -> Output:
        tokens, mask, tag = self._tokens(batch)
        # existing tokens first: a token's position, to which its dropout is tied, must not depend
        # on the padding
        order = (~mask).long().argsort(dim=1, stable=True)
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        mask = mask.gather(1, order)
        tag_of_tokens = tag[:, None].expand(-1, tokens.shape[1], -1)
        joint = torch.cat([tokens, tag_of_tokens], dim=2) * mask[..., None]
        hidden = self.joint(joint, mask)
        pooled = self.pool(hidden, mask)
        answer, squares = self.answer(self.narrow(pooled))  # (B, outputs)
        decoded = self.decoder(hidden, mask) if self.decoder is not None else None
        is_taught = self.training and self.config.teacher != ""
        return Output(
            score=answer.squeeze(1) if self.data.num_classes == 0 else answer,
            joint=joint,
            hidden=hidden,
            decoded=decoded,
            pooled=pooled,
            tag=tag,
            mask=mask,
            teacher=self._teacher_tokens(batch, hidden) if is_taught else None,
            squares=squares,
        )

    def _tokens(self, batch: Utterances) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, width) of all modalities, their mask (B, L), and the tag (B, 4)."""
        frames, seen = self.inputs(batch)
        exists = {m: one_frame(batch.mask[m]) for m in self.modalities}
        if self.text is not None:
            hidden, hidden_mask = self.text(frames["text"], seen["text"])
            if hidden_mask.shape != seen["text"].shape:  # a summary in front
                has_text = exists["text"].any(1, keepdim=True)
                exists["text"] = torch.cat([has_text, exists["text"]], dim=1)
            seen["text"] = hidden_mask
            frames["text"] = hidden * hidden_mask[..., None]
        tokens = []
        for m in self.modalities:
            is_zero = frames[m].abs().sum(2) == 0  # a frame of zeros neither asks nor answers
            encoded = self.encoders[m](self.into[m](frames[m]), seen[m] & ~is_zero)
            tokens.append(self._in_pairs(m, encoded))
        mask = torch.cat([exists[m] for m in self.modalities], dim=1)
        return torch.cat(tokens, dim=1), mask, self._tag(batch)

    def _in_pairs(self, m: str, x: Tensor) -> Tensor:
        """(B, T, width): the modality in each pair space that names it, side by side."""
        spaces = [space(x) for name, space in self.pairs.items() if m in name.split("_")]
        return torch.cat(spaces, dim=2) if spaces else x

    def _tag(self, batch: Utterances) -> Tensor:
        """(B, 4): nothing missing, vision missing, audio missing, text missing."""
        columns = []
        for m in ORDER:
            if m in self.modalities:
                has_any = (batch.mask[m] & batch.present[m]).any(1)
                columns.append(~has_any)
            else:
                columns.append(torch.zeros_like(batch.index, dtype=torch.bool))
        missing = torch.stack(columns, dim=1)  # (B, 3)
        if self.config.tag_mode == "constant":
            missing = torch.zeros_like(missing)
            missing[:, -1] = True
        return torch.cat([~missing.any(1, keepdim=True), missing], dim=1).float()

    def _teacher_tokens(self, batch: Utterances, hidden: Tensor) -> Tensor:
        """What the teacher makes of the complete data, (B, L, width + 4) as ``hidden`` is."""
        teacher = self.teacher()
        if next(teacher.parameters()).device != hidden.device:
            teacher.to(hidden.device)
        with torch.no_grad():
            tokens: Tensor = teacher(replace(batch, present=batch.mask)).hidden
        if tokens.shape != hidden.shape:
            raise ValueError(
                f"the teacher in {self.config.teacher} gives tokens of shape {tuple(tokens.shape)}, the student needs "
                f"{tuple(hidden.shape)}; train the teacher with the student's width, modalities and text encoder"
            )
        return tokens

    def remarks(self) -> list[str]:
        if self.config.teacher or not self.config.forward:
            return []
        return [
            "tate trains without a teacher, so its loss 'forward' is left out; to train a teacher on complete data and "
            "then its student: deepspeed launch/distill.py RECIPE data=DIR run_dir=DIR"
        ]

    def teacher(self) -> TATE:
        """The frozen teacher, read from its folder when it is first asked for."""
        if not self._teacher:
            self._teacher = (load_teacher(Path(self.config.teacher), self.data),)
        return self._teacher[0]

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if self.config.teacher:
            self.teacher()  # a folder that does not serve is found out before the first step

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        config = self.config
        losses = {"task": batch.mean(batch.errors(output.score))}
        if output.teacher is not None:
            distance = self._distance(output.hidden, output.teacher, output.mask)
            losses["forward"] = config.forward * batch.mean(distance)
        if output.decoded is not None:
            distance = self._distance(output.decoded, output.joint, output.mask)
            losses["backward"] = config.backward * batch.mean(distance)
        if config.tag:
            recovered = output.pooled[:, -TAG:].float().sigmoid()
            error = (output.tag - recovered).abs().mean(1)  # (B,)
            losses["tag"] = config.tag * batch.mean(error)
        if config.norm:
            share = batch.mean(torch.ones_like(batch.weight))  # so that micro-batches add up to one
            losses["norm"] = config.norm * 0.5 * output.squares * share
        return losses

    def _distance(self, left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
        """(B,) mean over existing tokens of how far (B, L, D) tokens are apart."""
        left, right = left.float(), right.float()
        if self.config.distance == "kl":
            left = left.softmax(-1).clamp(1e-7, 1)
            right = right.softmax(-1).clamp(1e-7, 1)
            # KL there and back
            token = ((left - right) * (left.log() - right.log())).sum(-1)  # (B, L)
        else:
            token = (left - right).square().mean(-1)
        return (token * mask).sum(1) / mask.sum(1).clamp(min=1)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """With ``own_rates`` what reads sound or video alone has a group."""
        named = {"text": self.text.trained() if self.text is not None else []}
        if self.config.own_rates:
            for m in self.modalities:
                if m != "text":
                    named[m] = [*self.into[m].parameters(), *self.encoders[m].parameters()]
        return groups(self, **named)


class Block(nn.Module):
    """Post-norm self-attention block without positions, biases in attention, or output
    projection."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = Attention(width, heads, dropout=dropout, bias=False, out=False)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, width),
        )
        self.norm_attention = nn.LayerNorm(width, eps=1e-8)
        self.norm_feed = nn.LayerNorm(width, eps=1e-8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width); where ``mask`` is False a token neither asks nor answers and becomes a
        learnt constant."""
        mixed = self.attention(x, x, mask) * mask[..., None]
        x = self.norm_attention(mixed + x)
        return self.norm_feed(x + self.feed(x))


class Pool(nn.Module):
    """Gated additive attention over tokens to (B, width); zero where a sample has none."""

    def __init__(self, width: int):
        super().__init__()
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        gated = self.value(x) * self.gate(x).sigmoid()
        score = self.score(gated).squeeze(-1).float()  # (B, L)
        # a softmax over nothing would be NaN, so a sample without tokens keeps them until they are
        # zeroed
        hidden = ~mask & mask.any(1, keepdim=True)
        share = score.masked_fill(hidden, float("-inf")).softmax(1) * mask
        return (share[..., None] * x).sum(1)


class Answer(nn.Linear):
    """The last layer, which also tells its squared norm: only in its own forward are its weights
    sure to be there."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, out) answers, float32, and the squared norm of weights and biases, a scalar."""
        answer = super().forward(x).float()
        return answer, self.weight.square().sum() + self.bias.square().sum()


def load_teacher(folder: Path, data: DataSpec) -> TATE:
    """The frozen model whose options and weights lie in ``folder``, in evaluation mode.

    Raises:
        ValueError: the folder has no teacher, or one that this data does not fit.
    """
    missing = [name for name in (TEACHER_OPTIONS, TEACHER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"teacher={folder} has no {' and no '.join(missing)}; train one and export it there"
        )
    path, weights = folder / TEACHER_OPTIONS, folder / TEACHER_WEIGHTS
    options = {**read_json_object(path), "teacher": ""}
    check_regular_file(weights)
    try:
        config = TATE.Config(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {key}={first['input']!r:.80}: {first['msg']}") from None
    teacher = TATE(config, data)
    try:
        teacher.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"the weights in {folder} do not fit this data and its options: {error}"
        ) from None
    return teacher.requires_grad_(False).eval()
