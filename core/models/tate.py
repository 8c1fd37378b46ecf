"""TATE (Zeng et al., SIGIR 2022, arXiv:2204.13707): a tag tells the encoder which modalities are missing, and a teacher
that saw them all shows what the encoding should have been."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from core.batch import Utterances
from core.encoders.attention import Attention
from core.encoders.inputs import InputConfig, Inputs, groups, one_frame
from core.encoders.text import TextConfig, TextEncoder
from core.losses.labels import task_loss
from core.model import DataSpec, Model, Sentiment

ORDER = ("vision", "audio", "text")  # of tokens and of the tag's last three digits
TAG = 1 + len(ORDER)
TEACHER_OPTIONS, TEACHER_WEIGHTS = (
    "options.json",
    "weights.safetensors",
)  # the two files of a teacher's folder


@dataclass(frozen=True)
class Output(Sentiment):
    joint: Tensor  # (B, L, width + 4), the joint encoder's input: L tokens of all modalities, each with the tag
    hidden: Tensor  # (B, L, width + 4), its output
    decoded: Tensor | None  # (B, L, width + 4)
    pooled: Tensor  # (B, width + 4)
    tag: Tensor  # (B, 4)
    mask: Tensor  # (B, L) bool, True at tokens that exist, also where the frame was dropped
    teacher: Tensor | None  # (B, L, width + 4), what the teacher makes of the complete data
    squares: Tensor  # (), squared norm of the last layer


class TATE(Model[Utterances, Output]):
    """Modalities share pairwise spaces, one joint encoder reads all their tokens, a decoder gives back its input.

    Differences from the released code: the tag is the sample's own (it was the same for all there); the teacher is
    frozen and sees the complete data; padding is no token; losses are means over samples and real tokens instead of
    sums, with the paper's weights, which leaves the tag's 32 times heavier; nothing is dropped out in evaluation; a
    score is learnt by its absolute error where labels are scores. A modality that a sample does not have in the first
    place has no tokens; one that was dropped keeps its places, so that they can be compared with the teacher's.
    """

    task = "sentiment"

    @dataclass(frozen=True)
    class Config:
        modalities: tuple[str, ...] = ORDER
        width: int = 300
        heads: int = 4  # must divide width and width + 4
        dropout: float = 0.2  # of attention
        teacher: str = ""  # folder of a trained teacher; empty: none
        forward: float = 0.1  # weight of the likeness to the teacher
        backward: float = 0.1  # of giving back the input; 0: no decoder
        tag: float = 0.1  # of the tag's recovery
        norm: float = 1e-4  # of half the squared norm of the last layer
        distance: str = "kl"  # between tokens: symmetric divergence of their softmax; or "mse"
        tag_mode: str = "sample"  # parity: "constant", 0001 for all, as in the released graphs
        own_rates: bool = (
            False  # what reads sound or video alone learns in optimiser groups of its own
        )
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        for name, allowed in (("distance", ("kl", "mse")), ("tag_mode", ("sample", "constant"))):
            if getattr(config, name) not in allowed:
                raise ValueError(
                    f"tate has no {name}={getattr(config, name)!r}; choose from: {', '.join(allowed)}"
                )
        self.config, self.data = config, data
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = mods = [m for m in ORDER if m in config.modalities]
        self.text = TextEncoder(config.text, data) if "text" in mods else None
        source = {m: data.features[m] for m in mods}
        if self.text is not None:
            source["text"] = self.text.width
        d, wide = config.width, config.width + TAG
        if d % max(len(mods) - 1, 1):
            raise ValueError(
                f"width={d} does not split into the {len(mods) - 1} pair spaces of a modality"
            )
        self.into = nn.ModuleDict({m: nn.Linear(source[m], d, bias=False) for m in mods})
        self.encoders = nn.ModuleDict({m: Block(d, config.heads, config.dropout) for m in mods})
        self.pairs = nn.ModuleDict(
            {
                f"{m}_{n}": nn.Linear(d, d // (len(mods) - 1), bias=False)
                for m, n in combinations(mods, 2)
            }
        )
        self.joint = Block(wide, config.heads, config.dropout)
        self.decoder = Block(wide, config.heads, config.dropout) if config.backward else None
        self.pool = Pool(wide)
        self.narrow = nn.Linear(wide, d, bias=False)
        self.answer = Answer(d, data.num_classes or 1)
        own = [module for name, module in self.named_children() if name != "text"]
        for parameter in (p for module in own for p in module.parameters() if p.ndim > 1):
            nn.init.xavier_uniform_(parameter)
        self._teacher: tuple[
            TATE, ...
        ] = ()  # a tuple hides it: it is neither trained nor saved with the student

    def forward(self, batch: Utterances) -> Output:
        tokens, mask, tag = self._tokens(batch)
        # existing tokens first: a token's place, to which its dropout is tied, must not depend on the padding before it
        order = (~mask).long().argsort(dim=1, stable=True)
        tokens, mask = tokens.gather(1, order[..., None].expand_as(tokens)), mask.gather(1, order)
        joint = (
            torch.cat([tokens, tag[:, None].expand(-1, tokens.shape[1], -1)], dim=2)
            * mask[..., None]
        )
        hidden = self.joint(joint, mask)
        pooled = self.pool(hidden, mask)
        answer, squares = self.answer(self.narrow(pooled))  # (B, classes or 1)
        return Output(
            score=answer.squeeze(1) if self.data.num_classes == 0 else answer,
            joint=joint,
            hidden=hidden,
            decoded=self.decoder(hidden, mask) if self.decoder is not None else None,
            pooled=pooled,
            tag=tag,
            mask=mask,
            teacher=self._shown(batch, hidden) if self.training and self.config.teacher else None,
            squares=squares,
        )

    def _tokens(self, batch: Utterances) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, width) of all modalities, their mask (B, L), and the tag (B, 4)."""
        frames, seen = self.inputs(batch)
        exists = {m: one_frame(batch.mask[m]) for m in self.modalities}
        if self.text is not None:
            frames["text"], reached = self.text(frames["text"], seen["text"])
            if reached.shape != seen["text"].shape:  # a summary place in front
                exists["text"] = torch.cat(
                    [exists["text"].any(1, keepdim=True), exists["text"]], dim=1
                )
            seen["text"] = reached
            frames["text"] = frames["text"] * reached[..., None]
        encoded = {}
        for m in self.modalities:
            zero = frames[m].abs().sum(2) == 0  # a frame of zeros neither asks nor answers
            encoded[m] = self.encoders[m](self.into[m](frames[m]), seen[m] & ~zero)
        tokens = torch.cat([self._in_pairs(m, x) for m, x in encoded.items()], dim=1)
        return tokens, torch.cat([exists[m] for m in self.modalities], dim=1), self._tag(batch)

    def _in_pairs(self, m: str, x: Tensor) -> Tensor:
        """(B, T, width): the modality in each pair space that names it, side by side."""
        spaces = [space(x) for name, space in self.pairs.items() if m in name.split("_")]
        return torch.cat(spaces, dim=2) if spaces else x

    def _tag(self, batch: Utterances) -> Tensor:
        """(B, 4): nothing missing, vision missing, audio missing, text missing."""
        missing = torch.stack(
            [
                ~(batch.mask[m] & batch.present[m]).any(1)
                if m in self.modalities
                else torch.zeros_like(batch.index) > 0
                for m in ORDER
            ],
            dim=1,
        )
        if self.config.tag_mode == "constant":
            missing = torch.zeros_like(missing)
            missing[:, -1] = True
        return torch.cat([~missing.any(1, keepdim=True), missing], dim=1).float()

    def _shown(self, batch: Utterances, hidden: Tensor) -> Tensor:
        teacher = self.teacher()
        if next(teacher.parameters()).device != hidden.device:
            teacher.to(hidden.device)
        with torch.no_grad():
            shown = teacher(replace(batch, present=batch.mask)).hidden
        if shown.shape != hidden.shape:
            raise ValueError(
                f"the teacher in {self.config.teacher} gives tokens of shape {tuple(shown.shape)}, the student needs "
                f"{tuple(hidden.shape)}; train the teacher with the student's width, modalities and text encoder"
            )
        return shown

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
        config, apart = self.config, self._apart
        losses = {"task": batch.mean(task_loss(output.score, batch.label))}
        if output.teacher is not None:
            losses["forward"] = config.forward * batch.mean(
                apart(output.hidden, output.teacher, output.mask)
            )
        if output.decoded is not None:
            losses["backward"] = config.backward * batch.mean(
                apart(output.decoded, output.joint, output.mask)
            )
        if config.tag:
            recovered = (
                (output.tag - output.pooled[:, -TAG:].float().sigmoid()).abs().mean(1)
            )  # (B,)
            losses["tag"] = config.tag * batch.mean(recovered)
        if config.norm:
            losses["norm"] = (
                config.norm * 0.5 * output.squares * batch.mean(torch.ones_like(batch.weight))
            )
        return losses

    def _apart(self, left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
        """(B,) mean over existing tokens of how far (B, L, D) tokens are apart."""
        left, right = left.float(), right.float()
        if self.config.distance == "kl":
            left, right = left.softmax(-1).clamp(1e-7, 1), right.softmax(-1).clamp(1e-7, 1)
            token = ((left - right) * (left.log() - right.log())).sum(
                -1
            )  # KL there and back, (B, L)
        else:
            token = (left - right).square().mean(-1)
        return (token * mask).sum(1) / mask.sum(1).clamp(min=1)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        own = {}
        for m in self.modalities if self.config.own_rates else []:
            if m != "text":
                own[m] = [*self.into[m].parameters(), *self.encoders[m].parameters()]
        return groups(self, text=self.text.trained() if self.text is not None else [], **own)


class Block(nn.Module):
    """Post-norm self-attention block without positions, biases in attention, or output projection."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = Attention(width, heads, dropout=dropout, bias=False, out=False)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.norm_attention, self.norm_feed = (
            nn.LayerNorm(width, eps=1e-8),
            nn.LayerNorm(width, eps=1e-8),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width); where ``mask`` is False a token neither asks nor answers and becomes a learnt constant."""
        mixed = self.attention(x, x, mask) * mask[..., None]
        x = self.norm_attention(mixed + x)
        return self.norm_feed(x + self.feed(x))


class Pool(nn.Module):
    """Gated additive attention over tokens to (B, width); zero where a sample has none."""

    def __init__(self, width: int):
        super().__init__()
        self.value, self.gate = (
            nn.Linear(width, width, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        score = self.score(self.value(x) * self.gate(x).sigmoid()).squeeze(-1).float()  # (B, L)
        some = mask.any(1, keepdim=True)
        share = score.masked_fill(~mask & some, float("-inf")).softmax(1) * mask
        return (share[..., None] * x).sum(1)


class Answer(nn.Linear):
    """The last layer, which also tells its squared norm: only in its own forward are its weights sure to be there."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, out) answers, float32, and the squared norm of weights and biases, a scalar."""
        return super().forward(x).float(), self.weight.square().sum() + self.bias.square().sum()


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
    options = json.loads((folder / TEACHER_OPTIONS).read_text(encoding="utf-8"))
    options |= {
        "text": TextConfig(**options["text"]),
        "inputs": InputConfig(**options["inputs"]),
        "teacher": "",
    }
    teacher = TATE(TATE.Config(**options), data)
    try:
        teacher.load_state_dict(load_file(folder / TEACHER_WEIGHTS))
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit this data and its options: {error}"
        ) from None
    return teacher.requires_grad_(False).eval()
