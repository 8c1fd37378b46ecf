"""The text encoder of every sentiment model: small, or one that others trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.dropout import Probability
from core.encoders import packed_text
from core.encoders.backbones.adaptation import Adaptation
from core.encoders.backbones.loading import architecture, encoder_of, load_backbone
from core.encoders.backbones.media_encoders import FEATURES
from core.encoders.backbones.pooling import Pool, Rule
from core.encoders.backbones.registered_attention import NAME, is_causal, make_attention_known
from core.encoders.pretrained import Source, load_config
from core.model import DataSpec

# features as they are; sound and pictures have the second word for it too
GIVEN = ("given", FEATURES)
HiddenChange = Callable[[Tensor], Tensor]  # of hidden states, (B, T, width)


@validated_dataclass(frozen=True)
class TextConfig(Adaptation):
    """Which encoder turns text into hidden states.

    ``source`` is "small": a small BERT trained from scratch, on token ids or on features; "given"
    or "features": features as they are, from an encoder run beforehand; or path or hub name of any
    transformers encoder or decoder.
    """

    source: str = "small"
    frozen: bool = False  # a pretrained encoder that is not trained
    width: PositiveInt = 64  # these four: the small one
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    dropout: Probability = 0.1
    # what sums a sentence up; auto: of decoders the last token, else the first state
    pool: Rule = "auto"


class TextEncoder(nn.Module):
    """Token ids (B, T) or features (B, T, D) to hidden states (B, T', ``width``) and their mask (B,
    T').

    The first hidden state sums the sentence up: [CLS] of the ids, or, for features through the
    small encoder, a learnt vector put in front (T' = T + 1). Any other rule of pooling puts its
    vector in front (T' = T + 1). Rows without any text give zeros.
    """

    def __init__(self, config: TextConfig, data: DataSpec):
        super().__init__()
        features = data.features["text"]
        self.pretrained = config.source not in ("small", *GIVEN)
        self.frozen = self.pretrained and (config.frozen or config.train == "none")
        self.project: nn.Linear | None = None
        self.backbone: Any = None  # a transformers model
        # while the backbone runs: what changes hidden states, and the layer before which
        self._change: tuple[HiddenChange, nn.Module] | None = None
        self.pool: Pool | None = None
        _refuse_mismatch(config.source, features, pretrained=self.pretrained)
        _refuse_idle(config, pretrained=self.pretrained)
        if config.source in GIVEN:
            self.width = features
            return
        if self.pretrained:
            self.backbone = _pretrained(self, config, data)
        else:
            self.backbone = _small(config, data)
        self.width = int(self.backbone.config.hidden_size)
        self.pad_id = int(self.backbone.config.pad_token_id or 0)
        if features:
            self.project = nn.Linear(features, self.width)
            # what [CLS] is to token ids
            self.sentence = nn.Parameter(torch.randn(self.width) * 0.02)
            self.backbone.embeddings.word_embeddings = None  # features come instead
        self.pool = _pool(config, self.backbone, self.width, has_summary=self.project is not None)
        if self.frozen:
            self.backbone.eval()
        for layer in self._layers() or ():
            layer.register_forward_pre_hook(self._change_hidden)

    def forward(
        self,
        frames: Tensor,
        mask: Tensor,
        change: HiddenChange | None = None,
        layer: int = 0,
        first_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states and mask.

        ``change`` is applied to the hidden states before encoder layer ``layer``. What it adds may
        come from elsewhere than the text, so rows without text are then not zeroed.
        ``first_only``: the caller reads only the first hidden state; others may be left out.
        """
        if self.backbone is None:
            return frames, mask
        has_text = mask.any(1, keepdim=True)  # (B, 1)
        if self.project is not None:
            summary = self.sentence.expand(frames.shape[0], 1, -1)
            embedded = self.project(frames).to(summary.dtype)
            inputs = {"inputs_embeds": torch.cat([summary, embedded], dim=1)}
            mask = torch.cat([has_text, mask], dim=1)
        else:
            inputs = {"input_ids": frames.masked_fill(~mask, self.pad_id)}
        attended = mask.clone()
        attended[:, :1] |= ~has_text  # softmax over nothing would be NaN
        reads_one = first_only and self.pool is None
        hidden = self._encode(inputs, attended, change, layer, reads_one)
        if change is None:
            hidden = hidden * has_text[..., None]
        if self.pool is not None:
            summary = self.pool(hidden, mask)[:, None]
            hidden = torch.cat([summary, hidden], dim=1)
            mask = torch.cat([has_text, mask], dim=1)
        return hidden, mask

    def _encode(
        self,
        inputs: dict[str, Tensor],
        attended: Tensor,
        change: HiddenChange | None,
        layer: int,
        first_only: bool,
    ) -> Tensor:
        """Hidden states of the backbone, with ``change`` in place while it runs."""
        needs_gradient = change is not None or not self.frozen
        if packed_text.serves(self.backbone, attended):
            with torch.set_grad_enabled(torch.is_grad_enabled() and needs_gradient):
                return packed_text.encode(
                    self.backbone, inputs, attended, change, layer, first_only
                )
        self._change = None if change is None else (change, self.layers[layer])
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and needs_gradient):
                output = self.backbone(**inputs, attention_mask=attended.long())
        finally:
            self._change = None
        return output.last_hidden_state

    def _change_hidden(self, module: nn.Module, inputs: tuple) -> tuple | None:
        """In front of every layer; a hook that stays, for one that comes and goes cannot be
        compiled."""
        if self._change is None or module is not self._change[1]:
            return None
        change, _ = self._change
        return (change(inputs[0]), *inputs[1:])

    @property
    def num_summaries(self) -> int:
        """How many vectors stand in front of the hidden states of the words."""
        return int(self.project is not None or self.pool is not None)

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder layers, of a backbone that has them where BERT and its relatives do."""
        found = self._layers()
        if found is None:
            raise ValueError(
                "cannot change hidden states inside the text encoder, because it has no layers where BERT has them; "
                "use text.source=small, a BERT or a RoBERTa"
            )
        return found

    def _layers(self) -> nn.ModuleList | None:
        found = getattr(getattr(self.backbone, "encoder", None), "layer", None)
        return found if isinstance(found, nn.ModuleList) else None

    def train(self, mode: bool = True) -> TextEncoder:
        super().train(mode)
        if self.frozen and self.backbone is not None:
            self.backbone.eval()
        return self

    def architecture(self) -> dict[str, Any] | None:
        """Of a pretrained encoder, for a folder that serves as ``source`` where all its weights are
        loaded anyway."""
        return architecture(self.backbone) if self.pretrained else None

    def trained(self) -> list[nn.Parameter]:
        """Parameters of a pretrained encoder, which want a learning rate of their own; none of a
        small one."""
        return [p for p in self.parameters() if p.requires_grad] if self.pretrained else []


def decayed(parameters: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights, and the biases and norms that BERT's recipes spare from weight decay."""
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def _refuse_mismatch(source: str, features: int, *, pretrained: bool) -> None:
    """Token ids and features want different sources."""
    if source in GIVEN and not features:
        raise ValueError(
            f"text.source={source} needs text features, but the data has token ids; use text.source=small"
        )
    if pretrained and features:
        raise ValueError(
            f"text.source={source} reads token ids, but the data has text features of width {features}; "
            "use text.source=given or small, or convert the transcripts with: "
            "python -m data_shards.convert RAW --out DIR --tokenizer PATH"
        )


def _refuse_idle(config: TextConfig, *, pretrained: bool) -> None:
    """ValueError for a setting that would do nothing."""
    if config.train != "all" and not pretrained:
        raise ValueError(
            f"options.text.train={config.train} is for an encoder that others trained, and "
            f"options.text.source={config.source} is none; leave it out"
        )
    if config.pool != "auto" and config.source in GIVEN:
        raise ValueError(
            f"options.text.pool={config.pool} is for an encoder, and options.text.source="
            f"{config.source} is none; leave it out"
        )


def _small(config: TextConfig, data: DataSpec) -> Any:
    if config.width % config.heads:
        raise ValueError(f"text.heads={config.heads} does not divide text.width={config.width}")
    if not data.features["text"] and not data.vocab_size:
        raise ValueError(
            "text.source=small needs to know how many tokens there are, but the data has vocab_size 0"
        )
    from transformers import AutoModel, BertConfig

    make_attention_known()
    settings = BertConfig(
        vocab_size=data.vocab_size or 1,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=max(512, data.max_length.get("text", 0) + 1),
        attn_implementation=NAME,
    )
    return encoder_of(AutoModel.from_config(settings))


def _pretrained(holder: TextEncoder, config: TextConfig, data: DataSpec) -> Any:
    given = Source(config.source, "options.text.source=")
    settings = load_config(given)
    _refuse_other_vocabulary(config.source, int(settings.vocab_size), data)
    _refuse_longer_sentences(config.source, settings, data)
    how: Adaptation = config
    if config.frozen:
        if config.train not in ("all", "none"):
            raise ValueError(
                f"options.text.frozen=true trains nothing, and options.text.train={config.train} "
                "does; leave one of them out"
            )
        how = replace(config, train="none")
    return load_backbone(holder, given, how, settings)


def _pool(config: TextConfig, backbone: Any, width: int, *, has_summary: bool) -> Pool | None:
    """What puts a summary in front; None where the first hidden state is one already."""
    rule = config.pool
    if rule == "auto":
        rule = "last" if is_causal(backbone) else "first"
    if rule == "first":
        return None
    if has_summary:
        raise ValueError(
            f"options.text.pool={rule}: text features have a learnt summary; leave it out"
        )
    return Pool(rule, width)


def _refuse_other_vocabulary(source: str, size: int, data: DataSpec) -> None:
    if not data.vocab_size:
        warnings.warn(
            f"the data does not say which vocabulary its token ids are of; taking it to be that of {source}",
            stacklevel=3,
        )
        return
    # Some encoders round their table up; any other difference means ids of another language or
    # model.
    rounded_up = 0 < size - data.vocab_size < 128 and size % 8 == 0
    if size != data.vocab_size and not rounded_up:
        raise ValueError(
            f"text.source={source} has a vocabulary of {size} tokens, the data's tokenizer one of {data.vocab_size}; "
            f"convert the data with: python -m data_shards.convert RAW --out DIR --tokenizer {source}"
        )


def _refuse_longer_sentences(source: str, settings: Any, data: DataSpec) -> None:
    longest = data.max_length.get("text", 0)
    limit = int(getattr(settings, "max_position_embeddings", 0) or 0)
    if settings.model_type in ("roberta", "xlm-roberta", "camembert"):
        limit -= int(settings.pad_token_id) + 1  # they count positions from behind the padding id
    if limit and longest > limit:
        raise ValueError(
            f"the data has sentences of {longest} tokens, text.source={source} takes at most {limit}"
        )
