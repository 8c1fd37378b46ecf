"""Samples without labels, from arrays of their own, as the batch that a model receives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from core.batch import Utterances
from core.command import Refused
from data_shards.extract.media import Unreadable
from data_shards.media.media_kinds import Media
from data_shards.media.member_codec import decode_member
from data_shards.sources.tokens import Tokenizer
from launch.predicting.scorer import longest_text, unlabelled
from launch.predicting.trained import TrainedModel


@dataclass(frozen=True)
class NewSample:
    """Something to score."""

    id: str
    # field of the data -> frames (T, D), token ids (T,), or decoded media; what is not there is
    # missing
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    # what was not found, or done to it, in words
    notes: tuple[str, ...] = ()
    transcript: str = ""


class SampleMaker:
    """Makes arrays fit a model, or refuses them."""

    def __init__(self, trained: TrainedModel):
        self.trained = trained
        self.fields = trained.record.fields
        self.wanted = trained.wanted
        self._tokenizer: Tokenizer | None = None

    @property
    def text_field(self) -> str | None:
        """The field of text that the model reads."""
        for name, role in self.wanted.items():
            if role == "text":
                return name
        return None

    @property
    def reads_words(self) -> bool:
        """Whether a sentence can be scored: the model reads token ids, and the tokenizer is
        there."""
        return self.why_no_words() == ""

    def why_no_words(self) -> str:
        """Why a sentence cannot be scored; empty where it can."""
        name = self.text_field
        if name is None:
            return f"{self.trained.source} reads no text"
        if self.trained.data.features["text"]:
            return (
                f"{self.trained.source} reads text as features of width "
                f"{self.trained.data.features['text']}, not as words; give their array files in a "
                "table (docs/predict.md)"
            )
        if self.trained.tokenizer is None:
            return (
                f"{self.trained.source} holds no tokenizer, so it cannot read words; give the one "
                "that converted its data with --tokenizer DIR"
            )
        return ""

    def encode(self, text: str, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Token ids (T,) of a sentence, as the conversion made them, and notes.

        Raises:
            Refused: the model reads no words, or its tokenizer is not there.
        """
        problem = self.why_no_words()
        if problem:
            raise Refused(f"{where}: {problem}")
        if self._tokenizer is None:
            folder = str(self.trained.tokenizer)
            limits = [self.trained.max_tokens, longest_text(self.trained.model)]
            known = [limit for limit in limits if limit]
            self._tokenizer = Tokenizer(folder, min(known) if known else None)
        repairs: Counter[str] = Counter()
        ids = self._tokenizer.encode(text, repairs)
        return ids, tuple(repairs)

    def check(self, name: str, array: np.ndarray, where: str) -> np.ndarray:
        """The array of a field as the model reads it.

        Raises:
            Refused: another width, ids out of the vocabulary, numbers that are not finite.
        """
        media = self.fields[name].media
        if media is not None:
            return self._decoded(name, array, media, where)
        width = self.trained.data.features[self.wanted[name]]
        if not width:
            return self._checked_ids(array, where)
        if array.ndim != 2 or (len(array) and array.shape[1] != width):
            raise Refused(
                f"{where}: {name} has shape {array.shape}, and {self.trained.source} was trained "
                f"on {width} features a frame; make them as its data were made",
                [
                    f"  {name:<12}the model: {width} features",
                    f"  {'':<12}here:      {array.shape[-1] if array.ndim else 0} features",
                ],
            )
        frames = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(frames).all():
            raise Refused(f"{where}: {name} holds numbers that are not finite; correct the file")
        return frames

    def _decoded(self, name: str, array: np.ndarray, media: Media, where: str) -> np.ndarray:
        """The numbers of a file of sound or pictures, given as its bytes (n,) uint8."""
        if array.dtype != np.uint8 or array.ndim != 1:
            raise Refused(
                f"{where}: {name} is features of shape {array.shape}, and {self.trained.source} "
                f"was trained on {media.kind} as they are; give clips, or files of {media.kind}"
            )
        try:
            return decode_member(array.tobytes(), media)
        except Unreadable as reason:
            raise Refused(f"{where}: {name} cannot be decoded: {reason}") from None

    def _checked_ids(self, array: np.ndarray, where: str) -> np.ndarray:
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise Refused(f"{where}: the model reads token ids (T,), found shape {array.shape}")
        size = self.trained.data.vocab_size
        largest = int(array.max(initial=0))
        if size and largest >= size:
            raise Refused(
                f"{where}: token id {largest}, and {self.trained.source} has a vocabulary of "
                f"{size} tokens; use the tokenizer that its data were made with"
            )
        return array.astype(np.int64)

    def batch(self, samples: Sequence[NewSample]) -> Utterances:
        """The samples, in order, padded on the right. Labels are nan."""
        frames, mask = {}, {}
        size = len(samples)
        for name, role in self.wanted.items():
            arrays = [sample.arrays.get(name) for sample in samples]
            lengths = [0 if array is None else len(array) for array in arrays]
            longest = max([1, *lengths])
            width = self.trained.data.features[role]
            shape = (size, longest, width) if width else (size, longest)
            media = self.fields[name].media
            is_pictures = media is not None and media.kind == "pictures"
            dtype = np.uint8 if is_pictures else np.float32 if width else np.int64
            padded = np.zeros(shape, dtype)
            for row, array in enumerate(arrays):
                if array is not None:
                    padded[row, : len(array)] = array
            frames[role] = torch.from_numpy(padded)
            mask[role] = torch.arange(longest) < torch.tensor(lengths)[:, None]
        return unlabelled(frames, mask, size)
