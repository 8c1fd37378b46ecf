"""CENet as MMSA's repository has it, and HSCL with its released loop, restated in plain PyTorch as peers of
``benchmarks/incumbent.py``. Runs without this project.

Both train on padded batches with PyTorch's own dropout and Adam. HSCL's contrast is the released
cubic form, with the anchor in the denominator as the paper has it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CENet(nn.Module):
    """BERT whose second layer sees text with sound and video in it; padding of these takes part,
    and embeddings are not trained."""

    def __init__(self, bert: Any, widths: dict[str, int]):
        super().__init__()
        self.bert = bert
        width = bert.config.hidden_size
        self.fronts, self.attention = nn.ModuleDict(), nn.ModuleDict()
        for m, features in widths.items():
            first, second = nn.Linear(features, width), nn.Linear(width, width)
            self.fronts[m] = nn.Sequential(first, nn.ReLU(), second)
            parts = ("query", "key", "value")
            self.attention[m] = nn.ModuleDict({part: nn.Linear(width, width) for part in parts})
        self.mix = nn.Linear(2 * width, width)
        self.predict = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Dropout(0.1),
            nn.Linear(width, 1),
        )

    def forward(self, batch: dict[str, Any]) -> Tensor:
        tokens, exists = batch["text"][:, 0].long(), batch["text"][:, 1].bool()
        with torch.no_grad():
            hidden = self.bert.embeddings(input_ids=tokens)
        mask = exists[:, None, None].expand(-1, 1, tokens.shape[1], -1)
        for number, layer in enumerate(self.bert.encoder.layer):
            if number == 1:
                hidden = hidden + self.mix(
                    torch.cat([self.see(m, hidden, batch) for m in self.fronts], 2)
                )
            hidden = layer(hidden, mask)
        return self.predict(hidden[:, 0]).squeeze(1)

    def see(self, m: str, hidden: Tensor, batch: dict[str, Any]) -> Tensor:
        frames = self.fronts[m](batch[m])
        layers = self.attention[m]
        score = layers["query"](hidden) @ layers["key"](frames).transpose(1, 2)
        return (8 * score).softmax(2) @ layers["value"](frames)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return F.l1_loss(self(batch), batch["labels"]["M"].view(-1))


class FrameEncoder(nn.Module):
    """HSCL's Transformer at the width of the frames, a new vector in front in every forward."""

    def __init__(self, width: int, heads: int, hidden: int, scale: float):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.scale, self.width = scale, width
        self.dropout = nn.Dropout(0.1)

    def forward(self, frames: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        summary = torch.randn(self.width).expand(len(frames), 1, -1) * self.scale
        x = torch.cat([summary, frames], 1)
        padding = F.pad(padding, (1, 0))
        half = torch.arange((self.width + 1) // 2)
        angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-2 * half / self.width)
        positions = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, : self.width]
        x = self.dropout(math.sqrt(self.width) * x + positions)
        return self.layers(x, src_key_padding_mask=padding), padding


class Fusion(nn.Module):
    """Text looks at itself, then at the other modality."""

    def __init__(self, width: int, other: int, heads: int):
        super().__init__()
        self.itself = nn.MultiheadAttention(width, heads, 0.1, batch_first=True)
        self.other = nn.MultiheadAttention(
            width, heads, 0.1, kdim=other, vdim=other, batch_first=True
        )
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(0.1)

    def forward(self, text: Tensor, other: Tensor, padding: Tensor) -> Tensor:
        hidden = self.norms[0](text + self.dropout(self.itself(text, text, text)[0]))
        crossed = self.other(hidden, other, other, key_padding_mask=padding)[0]
        fused = self.norms[1](hidden + self.dropout(crossed))
        return self.norms[2](fused + self.dropout(self.feed(fused)))[:, 0]


class HSCL(nn.Module):
    def __init__(self, bert: Any, widths: dict[str, int]):
        super().__init__()
        self.bert = bert
        width, heads = bert.config.hidden_size, 8
        shapes = {"audio": (1, 32, 1.0), "vision": (5, 64, 0.2)}
        self.encoders = nn.ModuleDict({m: FrameEncoder(widths[m], *shapes[m]) for m in widths})
        self.fuse = nn.ModuleDict({m: Fusion(width, widths[m], heads) for m in widths})
        views = {"text": width, **widths, **{f"text_{m}": width for m in widths}}
        self.project = nn.ModuleDict()
        for view, size in views.items():
            self.project[view] = nn.Sequential(nn.Dropout(0.1), nn.Linear(size, 128), nn.ReLU())
        self.predict = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(width, 128),
            nn.Tanh(),
            nn.Linear(128, 128),
            nn.Tanh(),
            nn.Linear(128, 1),
        )

    def loss(self, batch: dict[str, Any]) -> Tensor:
        tokens, exists = batch["text"][:, 0].long(), batch["text"][:, 1].long()
        text = self.bert(input_ids=tokens, attention_mask=exists).last_hidden_state
        views, fused = {"text": text[:, 0]}, []
        for m, encoder in self.encoders.items():
            longest = int(batch[f"{m}_lengths"].max())  # padded to the batch's longest
            padding = torch.arange(longest) >= batch[f"{m}_lengths"][:, None]
            encoded, padding = encoder(batch[m][:, :longest], padding)
            views[m] = encoded[:, 0]
            views[f"text_{m}"] = self.fuse[m](text, encoded, padding)
            fused.append(views[f"text_{m}"])
        label = batch["labels"]["M"].view(-1)
        score = self.predict((fused[0] + fused[1]) / 2).squeeze(1)
        z = {view: head(views[view]) for view, head in self.project.items()}
        unimodal = sum(
            contrast(z["text"], z[m], label) + 0.1 * (z["text"] - z[m]).square().sum(1).mean()
            for m in self.encoders
        )
        bimodal = contrast(z["text_audio"], z["text_vision"], label)
        return F.l1_loss(score, label) + 0.01 * unimodal + 0.1 * bimodal


def contrast(left: Tensor, right: Tensor, label: Tensor) -> Tensor:
    """Of two views, ordered by label: over all triples of 2N rows, as released."""
    rows = F.normalize(torch.cat([left, right]))
    label = label.repeat(2)
    others = ~torch.eye(len(rows), dtype=torch.bool)
    score = (rows @ rows.T / 0.5)[others].view(len(rows), -1)  # (n, n - 1)
    score = score - score.max(1, keepdim=True).values.detach()
    distance = (label[:, None] - label).abs()[others].view(len(rows), -1)
    as_far = distance[:, None] >= distance[:, :, None]  # (n, n - 1, n - 1): k is as far as j
    total = (score.exp()[:, None] * as_far).sum(2)
    return -(score - total.log()).mean()
