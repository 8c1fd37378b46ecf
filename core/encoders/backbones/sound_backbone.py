"""Encoders of sound that others trained: those that read samples through convolutions (wav2vec 2,
HuBERT, WavLM) and those that read the spectrum of 30 seconds (Whisper's).

Deliberate differences from transformers: layers are never left out at random, and no frames are
masked while training (SpecAugment); the group norm of the first convolution counts samples that
exist only, so that what a sample becomes does not depend on those beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.command import Refused
from core.encoders.sequence import lengths

RATE = 16_000  # samples in a second
SHORTEST = RATE // 10  # samples; shorter sound is followed by silence up to this


class MaskedGroupNorm(nn.Module):
    """``nn.GroupNorm`` with a group for each channel, over the places that exist, (B, C, T).

    ``lengths`` (B,), how many exist, is set before each forward by who knows it.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.lengths: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.lengths is not None
        places = torch.arange(x.shape[2], device=x.device)
        exists = (places < self.lengths[:, None])[:, None]  # (B, 1, T)
        count = self.lengths.clamp(min=1)[:, None, None]
        mean = (x * exists).sum(2, keepdim=True) / count
        centred = (x - mean) * exists
        variance = (centred**2).sum(2, keepdim=True) / count
        normed = centred * (variance + self.eps).rsqrt()
        return normed * self.weight[:, None] + self.bias[:, None]


class ConvolvedSound(nn.Module):
    """What comes before and after a wav2vec 2 kind of encoder.

    Args:
        preparation: its feature extractor, of which ``do_normalize`` is read.
    """

    def __init__(self, backbone: Any, preparation: Any):
        super().__init__()
        self.normalise = bool(getattr(preparation, "do_normalize", False))
        backbone.feature_projection.register_forward_hook(_own_memory)
        self.masked_norms: list[tuple[MaskedGroupNorm, int, int]] = []
        for layer in backbone.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                layer.layer_norm = MaskedGroupNorm(norm)
                kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
                self.masked_norms.append((layer.layer_norm, kernel, stride))
        if len(self.masked_norms) > 1:
            raise ValueError("an encoder with group norm in several convolutions is not known here")

    def longest(self) -> int | None:
        """The most samples that are taken; None: any number."""
        return None

    def frames(self, backbone: Any, samples: int) -> int:
        """How many hidden states so many samples become."""
        count = torch.tensor([max(samples, SHORTEST)])
        return int(backbone._get_feat_extract_output_lengths(count)[0])

    def forward(self, backbone: Any, sound: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, width) and their mask, of sound (B, S) and the mask (B, S)."""
        count = lengths(mask)
        has_sound = count > 0
        count = count.clamp(min=SHORTEST)
        missing = max(0, SHORTEST - sound.shape[1])
        sound = F.pad(sound, (0, missing))
        exists = torch.arange(sound.shape[1], device=sound.device) < count[:, None]
        if self.normalise:
            sound = _standardised(sound, exists)
        for norm, kernel, stride in self.masked_norms:
            norm.lengths = (count - kernel) // stride + 1
        output = backbone(sound, attention_mask=exists.long())
        hidden = output.last_hidden_state
        length = backbone._get_feat_extract_output_lengths(count).clamp(max=hidden.shape[1])
        shown = torch.arange(hidden.shape[1], device=hidden.device) < length[:, None]
        return hidden, shown & has_sound[:, None]


class SpectralSound(nn.Module):
    """What comes before and after an encoder of Whisper's kind: the logarithm of the spectrum on the
    mel scale, as its feature extractor computes it."""

    filters: Tensor  # (frequencies, mels)
    window: Tensor

    def __init__(self, backbone: Any, preparation: Any):
        super().__init__()
        self.hop, self.size = int(preparation.hop_length), int(preparation.n_fft)
        filters = torch.tensor(preparation.mel_filters, dtype=torch.float32, device="cpu")
        self.register_buffer("filters", filters, persistent=False)
        window = torch.hann_window(self.size, device="cpu")
        self.register_buffer("window", window, persistent=False)
        steps = backbone.conv1.stride[0] * backbone.conv2.stride[0]
        self.samples_of_state = steps * self.hop
        self.most = int(backbone.config.max_source_positions) * self.samples_of_state

    def longest(self) -> int | None:
        return self.most

    def frames(self, backbone: Any, samples: int) -> int:
        return -(-samples // self.samples_of_state)

    def forward(self, backbone: Any, sound: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As of ``ConvolvedSound``; hidden states of the silence behind a sample are left out."""
        count = lengths(mask)
        longest = int(count.max())
        if longest > self.most:
            raise Refused(
                f"sound of {longest / RATE:.1f} s, and this encoder hears {self.most / RATE:g} s; "
                "cut clips into windows with --windows SECONDS"
            )
        sound = F.pad(sound[:, :longest], (0, self.most - longest))
        hidden = backbone(self.spectrum(sound)).last_hidden_state
        length = -(-count // self.samples_of_state)
        states = max(1, self.frames(backbone, longest))
        shown = torch.arange(states, device=hidden.device) < length[:, None]
        return hidden[:, :states], shown

    def spectrum(self, sound: Tensor) -> Tensor:
        """(B, mels, T) of sound (B, S)."""
        with torch.autocast(sound.device.type, enabled=False):
            waves = torch.stft(
                sound.float(), self.size, self.hop, window=self.window, return_complex=True
            )
            power = waves[..., :-1].abs() ** 2  # (B, frequencies, T)
            mels = (self.filters.T @ power).clamp(min=1e-10).log10()
            loudest = mels.amax((1, 2), keepdim=True)
            return (torch.maximum(mels, loudest - 8.0) + 4.0) / 4.0


def sound_reader(backbone: Any, preparation: Any, where: str) -> ConvolvedSound | SpectralSound:
    """What fits an encoder.

    Raises:
        ValueError: it reads neither samples nor spectra of Whisper's kind, or at another rate.
    """
    rate = getattr(preparation, "sampling_rate", RATE)
    if rate != RATE:
        raise ValueError(f"{where}: was trained on {rate} samples a second, not {RATE}")
    if hasattr(backbone, "feature_extractor") and hasattr(backbone, "feature_projection"):
        return ConvolvedSound(backbone, preparation)
    is_spectral = hasattr(backbone.config, "max_source_positions") and hasattr(backbone, "conv2")
    if is_spectral and hasattr(preparation, "mel_filters"):
        return SpectralSound(backbone, preparation)
    raise ValueError(
        f"{where}: {backbone.config.model_type} is no encoder of sound that is known here; known "
        "are wav2vec 2, HuBERT, WavLM and their like, and Whisper's"
    )


def _own_memory(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """The encoder writes zeros into what it is given, which may be a view that dropout has made."""
    if isinstance(output, tuple):
        return (output[0].clone(), *output[1:])
    return output.clone()


def _standardised(sound: Tensor, exists: Tensor) -> Tensor:
    """Of mean 0 and variance 1 over the samples that exist, as the feature extractor has it."""
    count = exists.sum(1, keepdim=True)
    mean = (sound * exists).sum(1, keepdim=True) / count
    centred = (sound - mean) * exists
    variance = (centred**2).sum(1, keepdim=True) / count
    return centred * (variance + 1e-7).rsqrt()
