"""``--text whisper:FOLDER``: what is said, with the time of every word, by any speech recogniser of
``transformers``: Whisper, or one that spells (wav2vec 2 with CTC).

Long sound is recognised in pieces that end where it is quietest, so that no word is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.command import Refused
from core.encoders.pretrained import load_recogniser
from data_shards.extract.extractors.model_folder import (
    checksum_of_model,
    library_version,
    model_source,
)
from data_shards.extract.extractors.pieces import cut_at_pauses
from data_shards.extract.extractors.protocol import SOUND_RATE, Missing, Word
from data_shards.extract.recipe import ExtractorRecord, Option

VERSION = "1"
LONGEST, SHORTEST = 29, 20  # seconds of a piece; Whisper listens to 30 at once
LEAST = SOUND_RATE // 10  # samples; what is shorter holds no word


@dataclass(frozen=True)
class Recogniser:
    """A recogniser of speech."""

    record: ExtractorRecord
    pipeline: Any  # of transformers

    def words(self, sound: Iterator[np.ndarray]) -> list[Word]:
        """Words with their times; see ``SpeechRecogniser``."""
        found: list[Word] = []
        begin = 0.0
        for samples in cut_at_pauses(sound, LONGEST * SOUND_RATE, SHORTEST * SOUND_RATE):
            seconds = len(samples) / SOUND_RATE
            if len(samples) >= LEAST:
                found += self._words_of_piece(samples, begin, seconds)
            begin += seconds
        if not found:
            raise Missing("no words")
        return found

    def _words_of_piece(self, samples: np.ndarray, begin: float, seconds: float) -> list[Word]:
        with torch.inference_mode():
            answer = self.pipeline(
                {"raw": samples, "sampling_rate": SOUND_RATE}, return_timestamps="word"
            )
        words = []
        last = 0.0
        for chunk in answer.get("chunks", ()):
            text = chunk["text"].strip()
            if not text:
                continue
            start, end = chunk["timestamp"]
            # the last word of a piece may have no end, and none may go back in time
            start = min(max(last, float(start or 0.0)), seconds)
            end = min(max(start, seconds if end is None else float(end)), seconds)
            words.append(Word(text, begin + start, begin + end))
            last = start
        return words


def build(modality: str, options: Mapping[str, Option]) -> Recogniser:
    """The extractor; Refused or ValueError where the folder holds no recogniser with word times."""
    source = model_source(modality, "whisper", options)
    assert source.folder is not None  # model_source has seen it
    pipeline = load_recogniser(source)
    writes = pipeline.model.config.is_encoder_decoder
    if writes and not getattr(pipeline.model.generation_config, "alignment_heads", None):
        raise Refused(
            f"{source}: its generation_config.json has no alignment_heads, which say when a word "
            "is spoken; take the one that was published with the model"
        )
    record = ExtractorRecord(
        modality=modality,
        name="whisper",
        version=library_version(VERSION),
        options=dict(options),
        licence="see the model's card",
        checksum=checksum_of_model(source.folder),
    )
    return Recogniser(record, pipeline)
