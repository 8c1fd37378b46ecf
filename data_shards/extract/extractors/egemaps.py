"""``--audio egemaps``: the 25 low-level descriptors of eGeMAPSv02 by openSMILE, 100 times a second.

Loudness, spectral slopes and flux, MFCC 1 to 4, pitch, jitter, shimmer, harmonics and formants, as
CH-SIMS v2 has them (Eyben et al., The Geneva Minimalistic Acoustic Parameter Set, IEEE Transactions
on Affective Computing 2016). Up to ``CORE`` seconds are what openSMILE says of the whole clip;
longer ones are computed in pieces that overlap by ``CONTEXT`` seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from core.command import Refused
from data_shards.extract.extractors.pieces import fixed_pieces
from data_shards.extract.extractors.protocol import SOUND_RATE, Missing
from data_shards.extract.recipe import ExtractorRecord, Option

VERSION = "1"
CORE = 60  # seconds
CONTEXT = 1  # seconds; the widest descriptor looks at 60 ms and its two neighbours
FRAME_RATE = 100
SHORTEST = SOUND_RATE // 10  # samples
WIDTH = 25
LICENCE = "openSMILE: audEERING research licence, no commercial use"


class Egemaps:
    """openSMILE with the configuration that comes with it."""

    def __init__(self, record: ExtractorRecord, smile: Any):
        self.record = record
        self._smile = smile

    def frames(self, sound: Iterator[np.ndarray]) -> np.ndarray:
        """Descriptors (T, 25) float32; see ``SoundExtractor``."""
        parts = []
        pieces = fixed_pieces(sound, CORE * SOUND_RATE, CONTEXT * SOUND_RATE)
        for samples, before, is_last in pieces:
            first = before * FRAME_RATE // SOUND_RATE
            after_last = None if is_last else first + CORE * FRAME_RATE
            parts.append(self._descriptors(samples)[first:after_last])
        if not parts or not sum(map(len, parts)):
            raise Missing("too short")
        return np.concatenate(parts)

    def _descriptors(self, samples: np.ndarray) -> np.ndarray:
        """openSMILE's answer for samples (n,), of any number."""
        if len(samples) < SHORTEST:
            return np.zeros((0, WIDTH), np.float32)
        table = self._smile.process_signal(samples, SOUND_RATE)
        return table.to_numpy(np.float32)


def build(modality: str, options: Mapping[str, Option]) -> Egemaps:
    """The extractor; Refused without the package."""
    try:
        import opensmile
    except ImportError:
        raise Refused(
            f"--{modality} egemaps needs the package opensmile, which is not there; "
            "install it: pip install 'concord-train[clips]'"
        ) from None
    smile = opensmile.Smile(
        opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors
    )
    record = ExtractorRecord(
        modality=modality,
        name="egemaps",
        version=f"{VERSION} opensmile {opensmile.__version__}",
        options=dict(options),
        width=WIDTH,
        frame_rate=float(FRAME_RATE),
        licence=LICENCE,
    )
    return Egemaps(record, smile)
