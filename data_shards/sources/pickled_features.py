"""Which of the layouts of features a ``.pkl`` is of.

Splits as MMSA has them are the usual one. The same with labels of emotions, two numbers for each,
is MulT's IEMOCAP. One tuple of parts by dialogue is what work on emotions in conversation shares.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data_shards.sources import dialogues, emotion_labels, mmsa
from data_shards.sources.pickles import load_pickle
from data_shards.sources.raw_dataset import Options, RawDataset


def read(raw: Path, options: Options) -> RawDataset:
    """The file through the reader of its layout.

    Raises:
        DataError: it is of none, or breaks the rules of its own.
    """
    loaded = load_pickle(raw)
    if dialogues.is_dialogues(loaded):
        return dialogues.read(raw, loaded, options)
    if emotion_labels.has_emotions(loaded):
        plain, vectors = emotion_labels.separate(loaded, str(raw))
        dataset = mmsa.read(raw, plain, replace(options, labels=emotion_labels.LABELS))
        return emotion_labels.put_together(dataset, vectors, options.name or raw.stem)
    return mmsa.read(raw, loaded, options)
