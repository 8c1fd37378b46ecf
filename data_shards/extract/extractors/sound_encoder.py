"""``--audio hf:FOLDER``: the last hidden states of any ``transformers`` encoder of sound: wav2vec 2,
HuBERT, WavLM, Whisper's.

Sound is encoded in pieces of ``PIECE`` seconds with ``CONTEXT`` more on both sides, on the
processor and in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from core.command import Refused
from core.encoders.pretrained import Source, load_model, load_sound_preparation
from data_shards.extract.extractors.model_folder import (
    checksum_of_model,
    library_version,
    model_source,
)
from data_shards.extract.extractors.pieces import fixed_pieces
from data_shards.extract.extractors.protocol import SOUND_RATE, Missing
from data_shards.extract.recipe import ExtractorRecord, Option

VERSION = "1"
PIECE = 20  # seconds
CONTEXT = SOUND_RATE // 5  # samples
SHORTEST = SOUND_RATE // 10  # samples; a shorter last piece is filled up to this


class SoundEncoder:
    """A pretrained encoder and its preparation."""

    def __init__(self, source: Source):
        self._prepare = load_sound_preparation(source)
        rate = getattr(self._prepare, "sampling_rate", SOUND_RATE)
        if rate != SOUND_RATE:
            raise Refused(f"{source}: was trained on {rate} samples a second, not {SOUND_RATE}")
        model = load_model(source).eval()
        self._encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        # in one piece of the greatest length, so that padding to a fixed one is seen
        self.frames_of_piece, self.width = self._encode(
            np.zeros(PIECE * SOUND_RATE, np.float32)
        ).shape
        self.record: ExtractorRecord

    @property
    def frame_rate(self) -> float:
        """Frames in a second."""
        samples_of_frame = getattr(self._encoder.config, "inputs_to_logits_ratio", None)
        if samples_of_frame:
            return SOUND_RATE / samples_of_frame
        return self.frames_of_piece / self._seconds_seen

    def frames(self, sound: Iterator[np.ndarray]) -> np.ndarray:
        """Hidden states (T, D) float32; see ``SoundExtractor``."""
        parts = []
        for samples, before, is_last in fixed_pieces(sound, PIECE * SOUND_RATE, CONTEXT):
            heard = len(samples)
            if heard < SHORTEST:
                samples = np.pad(samples, (0, SHORTEST - heard))
            states = self._encode(samples)
            first = self._frames_in(before)
            # what stands for padding is cut off
            after_last = self._frames_in(heard if is_last else before + PIECE * SOUND_RATE)
            parts.append(states[first : max(first + 1, after_last)])
        if not parts:
            raise Missing("too short")
        return np.concatenate(parts)

    def _frames_in(self, samples: int) -> int:
        return round(samples / SOUND_RATE * self.frame_rate)

    def _encode(self, samples: np.ndarray) -> np.ndarray:
        """Hidden states (T, D) of samples (n,)."""
        prepared = self._prepare(samples, sampling_rate=SOUND_RATE, return_tensors="pt")
        values = prepared[self._prepare.model_input_names[0]]
        self._seconds_seen = self._length_of(values, len(samples))
        with torch.inference_mode():
            answer: Any = self._encoder(values)
        return answer.last_hidden_state[0].float().numpy()

    def _length_of(self, values: torch.Tensor, samples: int) -> float:
        """Seconds that the encoder is shown: its preparation may fill up to a fixed length."""
        fixed = getattr(self._prepare, "chunk_length", None)
        is_spectrum = values.ndim == 3
        return float(fixed) if fixed and is_spectrum else samples / SOUND_RATE


def build(modality: str, options: Mapping[str, Option]) -> SoundEncoder:
    """The extractor; Refused or ValueError where the folder holds no such model."""
    source = model_source(modality, "hf", options)
    encoder = SoundEncoder(source)
    assert source.folder is not None  # model_source has seen it
    encoder.record = ExtractorRecord(
        modality=modality,
        name="hf",
        version=library_version(VERSION),
        options=dict(options),
        width=encoder.width,
        frame_rate=encoder.frame_rate,
        licence="see the model's card",
        checksum=checksum_of_model(source.folder),
    )
    return encoder
