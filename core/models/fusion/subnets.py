"""What LF-DNN, TFN, LMF and their multi-label siblings share: a small network per modality, and the
head on top (THUIAR's MMSA)."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.dropout import Probability
from core.encoders.clock import word_states
from core.encoders.inputs import (
    MODALITIES,
    InputConfig,
    Modality,
    groups,
    has_frames,
    in_order,
)
from core.encoders.sequence import LSTMEncoder, masked_mean
from core.encoders.text import TextConfig, TextEncoder
from core.model import DataSpec

FUSION_ORDER = ("audio", "vision", "text")  # of the modalities in every fusion


@validated_dataclass(frozen=True)
class SubnetOptions:
    """Settings that the six models share; each has its own sizes."""

    modalities: tuple[Modality, ...] = MODALITIES
    text_hidden: PositiveInt = 128  # of the LSTM over words
    audio_hidden: PositiveInt = 16  # of the layers on the mean frame, and of what they give
    vision_hidden: PositiveInt = 128
    drop_audio: Probability = 0.2  # of the mean frame
    drop_vision: Probability = 0.2
    batch_norm: bool = False  # parity: True normalises mean frames over the samples of a batch
    padded_mean: bool = False  # parity: True takes the mean over padding too
    text: TextConfig = TextConfig()
    inputs: InputConfig = InputConfig()


class Subnets(nn.Module):
    """One vector per modality: of sound and video by their mean frame, of text by its last state.

    A modality that a sample lacks gives zeros.

    Args:
        text_out: width of the text's vector.
    """

    def __init__(self, config: SubnetOptions, data: DataSpec, text_out: int):
        super().__init__()
        self.modalities = in_order(config.modalities)
        self.longest = longest_frames(self.modalities, data) if config.padded_mean else {}
        self.frames = nn.ModuleDict()
        self.width: dict[str, int] = {}  # modality -> width of its vector, in FUSION_ORDER
        hidden = {"audio": config.audio_hidden, "vision": config.vision_hidden}
        dropout = {"audio": config.drop_audio, "vision": config.drop_vision}
        for m in self.modalities:
            if m != "text":
                self.frames[m] = FrameSubnet(
                    data.features[m], hidden[m], dropout[m], config.batch_norm
                )
                self.width[m] = hidden[m]
        self.encoder: TextEncoder | None = None
        self.text: TextSubnet | None = None
        if "text" in self.modalities:
            self.encoder = TextEncoder(config.text, data)
            self.text = TextSubnet(self.encoder.width, config.text_hidden, text_out)
            self.width["text"] = text_out

    def forward(self, frames: dict[str, Tensor], mask: dict[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> (B, width), in the order of every fusion, of what ``Inputs`` gives."""
        encoded = {}
        for m, subnet in self.frames.items():
            encoded[m] = subnet(self._mean(m, frames[m], mask[m]))
        if self.encoder is not None and self.text is not None:
            words, word_mask = word_states(self.encoder, frames["text"], mask["text"])
            encoded["text"] = self.text(words, word_mask)
        vectors = {}
        for m in FUSION_ORDER:
            if m in encoded:
                vectors[m] = encoded[m] * has_frames(mask[m])[:, None]
        return vectors

    def _mean(self, m: str, frames: Tensor, mask: Tensor) -> Tensor:
        if m in self.longest:
            return padded_mean(frames, mask, self.longest[m])
        return masked_mean(frames, mask)

    def groups(
        self, model: nn.Module, own_text: bool = False, **named: Iterable[nn.Parameter]
    ) -> dict[str, list[nn.Parameter]]:
        """The model's parameter groups: a pretrained text encoder, sound, video, the rest.

        Args:
            own_text: the LSTM over words has a group "text_net".
        """
        if self.encoder is not None:
            named["text"] = self.encoder.trained()
        if self.text is not None and own_text:
            named["text_net"] = self.text.parameters()
        for m, subnet in self.frames.items():
            named[m] = subnet.parameters()
        return groups(model, **named)


class FrameSubnet(nn.Module):
    """Three layers on the mean frame of sound or video, (B, D) to (B, hidden)."""

    def __init__(self, width: int, hidden: int, dropout: float, batch_norm: bool):
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )

    def forward(self, mean_frame: Tensor) -> Tensor:
        return self.layers(self.dropout(self.norm(mean_frame)))


class TextSubnet(nn.Module):
    """The last state of an LSTM over words, (B, T, D), and one layer on it: (B, out)."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.last = LSTMEncoder(width, hidden)
        self.out = nn.Linear(hidden, out)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.last(words, mask))


def three_layers(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    """The head of these models: dropout, two layers with ReLU, one without; (B, width) to
    (B, out)."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, out),
    )


def padded_mean(frames: Tensor, mask: Tensor, longest: int) -> Tensor:
    """(B, D), MMSA's mean of (B, T, D) frames: over ``longest`` frames, most of them padding."""
    return (frames * mask[..., None]).sum(1) / longest


def longest_frames(modalities: list[str], data: DataSpec) -> dict[str, int]:
    """The longest length of sound and video in the data, which a padded mean is over."""
    longest = {}
    for m in modalities:
        if m == "text":
            continue
        if not data.max_length.get(m):
            raise ValueError(f"a mean over padded frames needs DataSpec.max_length of {m}")
        longest[m] = data.max_length[m]
    return longest
