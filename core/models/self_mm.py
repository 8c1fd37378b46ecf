"""Self-MM (Yu et al., AAAI 2021, arXiv:2102.04830): unimodal tasks on labels generated along the
way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
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
    refuse_without_unimodal_labels,
)
from core.encoders.sequence import LSTMEncoder
from core.encoders.text import TextConfig, TextEncoder, decayed
from core.model import DataSpec
from core.models.label_memory import FUSION, LabelMemory
from core.models.unimodal_tasks import Head, Output, UnimodalTasks, has_one_score


class SelfMM(UnimodalTasks):
    """One encoder and one head per modality, and a fused head; the modalities' heads learn
    generated labels.

    Differences from the released code: centres are running sums instead of means over all samples
    in each batch; the epoch number in the label's momentum is the sample's own number of visits
    (the same when each sample comes once an epoch); a side without samples delays the labels
    instead of making them nan; labels count from the middle of their range; a modality that a
    sample lacks keeps its label, so its head learns nothing from that sample; features are
    standardised.

    ``tasks`` says which modalities have a task of their own beside the common one, as the paper's
    ablation does (M, M+T, M+T+A, ...); what the fused head reads stays the same. With
    ``labels="human"`` these tasks learn what people said of each modality alone (CH-SIMS), by plain
    absolute error; no label is generated then. Labels that are classes or vectors have no unimodal
    labels to generate: the fused head learns alone then.
    """

    task = "sentiment"

    @validated_dataclass(frozen=True)
    class Config:
        modalities: tuple[Modality, ...] = MODALITIES
        # which of them have a task of their own: [] for none (M), text (M+T), text,audio, ...
        tasks: tuple[Modality, ...] = MODALITIES
        # what these tasks learn: labels generated along the way, or human ones that the data have
        labels: Literal["generated", "human"] = "generated"
        # of each epoch a file in the run directory: generated labels and scores of each sample
        record: bool = True
        audio_hidden: PositiveInt = 16  # of the LSTM
        vision_hidden: PositiveInt = 32
        audio_out: PositiveInt = 16  # width of the modality's representation
        vision_out: PositiveInt = 32
        post_fusion: PositiveInt = 128  # widths of the heads
        post_text: PositiveInt = 32
        post_audio: PositiveInt = 16
        post_vision: PositiveInt = 32
        lstm_dropout: Probability = 0.0  # behind the LSTM
        drop_fusion: Probability = 0.0  # these four: before the heads
        drop_text: Probability = 0.1
        drop_audio: Probability = 0.1
        drop_vision: Probability = 0.0
        # how far generated labels may lie from the middle; 0: half of the label range
        label_limit: NonNegativeFloat = 0.0
        # paper: squared distances to the class centres; published numbers used plain ones
        squared: bool = False
        text: TextConfig = TextConfig()
        inputs: InputConfig = InputConfig()

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.modalities = in_order(config.modalities)
        self.text = TextEncoder(config.text, data) if "text" in self.modalities else None
        lstm_hidden = {"audio": config.audio_hidden, "vision": config.vision_hidden}
        width = {"audio": config.audio_out, "vision": config.vision_out}
        self.encoders = nn.ModuleDict()
        for m in self.modalities:
            if m != "text":
                self.encoders[m] = FrameEncoder(
                    data.features[m], lstm_hidden[m], width[m], config.lstm_dropout
                )
        if self.text is not None:
            width["text"] = self.text.width
        heads = _heads(config, width, sum(width[m] for m in self.modalities), data.num_outputs)
        tasks = _tasks(config) if has_one_score(data) else []
        self.heads = nn.ModuleDict({view: heads[view] for view in (FUSION, *tasks)})
        self.learns_human_labels = config.labels == "human"
        if self.learns_human_labels and not has_one_score(data):
            raise ValueError(
                "self_mm with labels=human learns a score of each modality beside a common score; "
                "for classes and several targets use options.labels=generated"
            )
        if self.learns_human_labels:
            refuse_without_unimodal_labels(data, "self_mm with labels=human", self.tasks)
        self.record = config.record
        self.memory = None
        if has_one_score(data):
            self.memory = self._label_memory(config, data, heads)

    def _label_memory(
        self, config: Config, data: DataSpec, heads: Mapping[str, Head]
    ) -> LabelMemory:
        low, high = data.label_range
        return LabelMemory(
            data.num_train,
            {view: heads[view].width for view in (FUSION, *self.tasks)},
            limit=config.label_limit or (high - low) / 2,
            middle=(high + low) / 2,
            squared=config.squared,
        )

    def forward(self, batch: Utterances) -> Output:
        frames, mask = self.inputs(batch)
        encoded = {}  # modality or "fusion" -> (B, width)
        for m, encoder in self.encoders.items():
            encoded[m] = encoder(frames[m], mask[m])
        if self.text is not None:
            text_states, _ = self.text(frames["text"], mask["text"], first_only=True)
            encoded["text"] = text_states[:, 0]
        encoded[FUSION] = torch.cat([encoded[m] for m in self.modalities], dim=1)
        views, hidden = {}, {}
        for view, head in self.heads.items():
            views[view], hidden[view] = head(encoded[view])
        return Output(
            score=views.pop(FUSION),
            views=views,
            hidden=hidden,
            has_modality={m: has_frames(mask[m]) for m in self.modalities},
        )

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        decay, no_decay = decayed(self.text.trained() if self.text is not None else [])
        named = {"text": decay, "text_no_decay": no_decay}
        for m, encoder in self.encoders.items():
            named[m] = list(encoder.parameters())
        return groups(self, **named)


class FrameEncoder(nn.Module):
    """The last state of an LSTM over sound or video, mapped to (B, out)."""

    def __init__(self, width: int, hidden: int, out: int, dropout: float):
        super().__init__()
        self.last = LSTMEncoder(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, out)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        state = self.dropout(self.last(frames, mask))
        return self.out(state)


def _tasks(config: SelfMM.Config) -> list[str]:
    """The modalities with a task of their own; by default all that are read."""
    unread = [m for m in config.tasks if m not in config.modalities]
    if unread and set(config.tasks) != set(MODALITIES):
        raise ValueError(
            f"options.tasks={','.join(config.tasks)} names {unread[0]}, which "
            f"options.modalities={','.join(config.modalities)} leaves out"
        )
    return in_order(m for m in config.tasks if m in config.modalities)


def _heads(
    config: SelfMM.Config, width: Mapping[str, int], fused_width: int, outputs: int
) -> dict[str, Head]:
    """A head for every view, whether the model has its modality or not: so random draws do not
    depend on that."""
    return {
        FUSION: Head(fused_width, config.post_fusion, config.drop_fusion, outputs),
        "text": Head(width.get("text", 1), config.post_text, config.drop_text),
        "audio": Head(width["audio"], config.post_audio, config.drop_audio),
        "vision": Head(width["vision"], config.post_vision, config.drop_vision),
    }
