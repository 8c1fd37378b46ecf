"""Which frames are dropped on purpose: the missing-feature protocols.

Nothing is cut out of the data: ``Utterances.present`` says what is dropped, and the model masks it.
Every draw comes from a counter-based generator keyed by (seed, split, modality) at the counter
(sample, epoch), so it does not depend on rank, worker, order, batch or padding. A higher rate drops
the same frames and more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Literal
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from core.batch import Utterances
from core.command import Refused
from core.names import refusal
from data_shards.shards.manifest import DataError

Bools = NDArray[np.bool_]
DEFAULT_SETS = ("vision", "audio", "text", "text+audio")
UnitInterval = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Missing:
    """What is dropped, how much of it, and from which draws.

    ``protocol``: "frames" drops each frame with probability ``rate`` (TFR-Net); "blocks" drops one
    stretch of that share; "modality" takes away, with probability ``rate``, one of ``sets`` from a
    sample (TATE). The first and last token of a text given as ids, [CLS] and [SEP], survive the
    first two.
    """

    protocol: Literal["none", "frames", "blocks", "modality"] = "none"
    rate: UnitInterval = 0.0  # probability, or share, of what is dropped
    # from which frames or blocks are dropped; empty: from all that the data has
    modalities: tuple[str, ...] = ()
    # what "modality" takes away, equally likely
    sets: tuple[str, ...] = DEFAULT_SETS
    # random: in training a sample's rate is 0 in one half of all cases, else uniform, drawn anew
    # each epoch (LNLN)
    train: Literal["fixed", "random", "complete"] = "fixed"
    redraw: bool = False  # with train="fixed": other frames in each training epoch
    seed: NonNegativeInt = 111
    # numpy_legacy: the masks of TFR-Net's released code ("frames" only)
    rng: Literal["counter", "numpy_legacy"] = "counter"
    # modality -> seed of the released code
    legacy_seeds: dict[str, int] = field(
        default_factory=lambda: {"text": 111, "audio": 1111, "vision": 11111}
    )
    # modality -> frames per sample in the original file
    legacy_length: dict[str, int] = field(default_factory=dict)

    def split_sets(self) -> list[tuple[str, ...]]:
        """The modalities of each set."""
        return [tuple(names.split("+")) for names in self.sets]

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"missing.rate is a probability, got {self.rate}")
        if self.rng == "numpy_legacy" and self.protocol not in ("none", "frames"):
            raise ValueError(
                f"missing.rng=numpy_legacy knows only protocol=frames, not {self.protocol}"
            )
        if not self.sets:
            raise ValueError(
                "missing.sets is empty; name what can be missing, for example audio,text+vision"
            )


def refuse_unknown_names(settings: Missing, known: Iterable[str]) -> None:
    """Refused where the settings name a modality that the data does not have.

    The sets that stand there by default are looked at only when something is to be dropped by them.
    """
    named: dict[str, Iterable[str]] = {
        "missing.modalities": settings.modalities,
        "missing.legacy_length": settings.legacy_length,
    }
    may_drop = settings.rate > 0 or settings.train == "random"
    takes_sets = settings.protocol == "modality" and may_drop
    if takes_sets or settings.sets != DEFAULT_SETS:
        named["missing.sets"] = [name for names in settings.split_sets() for name in names]
    for setting, names in named.items():
        refused = refusal(setting, names, known, "the data has")
        if refused:
            raise Refused(refused)


def apply_missing_mask(
    batch: Utterances, settings: Missing, *, split: str, epoch: int
) -> Utterances:
    """The batch with ``present`` refined: a subset of what it was. The same batch where nothing is
    to be dropped.

    Args:
        epoch: matters only in split "train", and there only where draws are renewed.
    """
    refuse_unknown_names(settings, batch.present)
    is_training = split == "train"
    has_random_rates = is_training and settings.train == "random"
    is_complete = is_training and settings.train == "complete"
    has_rate = has_random_rates or settings.rate > 0
    if settings.protocol == "none" or is_complete or not has_rate:
        return batch
    is_redrawn = has_random_rates or (is_training and settings.redraw)
    draws = _Draws(settings.seed, split, epoch if is_redrawn else 0)
    index = batch.index.numpy()
    if has_random_rates:
        rate = _random_rates(draws, index)
    else:
        rate = np.full(len(index), settings.rate)
    present = {name: mask.numpy() for name, mask in batch.present.items()}
    if settings.protocol == "modality":
        kept = _keep_modalities(present, settings, draws, index, rate)
    else:
        kept = dict(present)
        for name in settings.modalities or present:
            is_text = not batch.frames[name].is_floating_point()
            droppable = _without_ends(present[name]) if is_text else present[name]
            dropped = _dropped_frames(droppable, name, settings, draws, index, rate)
            kept[name] = present[name] & ~dropped
    refined = {name: torch.from_numpy(mask) for name, mask in kept.items()}
    return replace(batch, present=refined)


@dataclass(frozen=True)
class _Draws:
    """Random numbers of samples, each the same wherever and whenever the sample is met."""

    seed: int
    split: str
    epoch: int

    def generator(self, purpose: str, sample: int) -> np.random.Generator:
        """For one sample, given by its index in the split; ``purpose`` is a modality's name or
        another word."""
        key = _key(self.seed, self.split, purpose)
        counter = [0, 0, sample, self.epoch]
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


@lru_cache(maxsize=64)
def _key(seed: int, split: str, purpose: str) -> NDArray:
    words = [seed, crc32(split.encode()), crc32(purpose.encode())]
    return np.random.SeedSequence(words).generate_state(2, np.uint64)


def _random_rates(draws: _Draws, index: NDArray) -> NDArray[np.float64]:
    """(B,) rates of LNLN's training: zero for one half of the samples, uniform for the other."""
    rates = np.zeros(len(index))
    for row, sample in enumerate(index.tolist()):
        is_incomplete, rate = draws.generator("rate", sample).random(2)
        if is_incomplete >= 0.5:
            rates[row] = rate
    return rates


def _without_ends(present: Bools) -> Bools:
    """(B, T): all present tokens but the first and the last of each sample, [CLS] and [SEP]."""
    inner = present.copy()
    for row in inner:
        tokens = np.flatnonzero(row)
        row[tokens[:1]] = False
        row[tokens[-1:]] = False
    return inner


def _dropped_frames(
    droppable: Bools,
    modality: str,
    settings: Missing,
    draws: _Draws,
    index: NDArray,
    rate: NDArray,
) -> Bools:
    """(B, T): which of the ``droppable`` frames of one modality are dropped."""
    dropped = np.zeros_like(droppable)
    for row, sample in enumerate(index.tolist()):
        frames = np.flatnonzero(droppable[row])
        if settings.rng == "numpy_legacy":
            numbers = _legacy_numbers(settings, modality, sample)
            dropped[row, frames] = numbers[frames] <= rate[row]
        elif settings.protocol == "frames":
            # One number for every frame, droppable or not, so that a frame's fate is its own.
            numbers = draws.generator(modality, sample).random((droppable.shape[1],))
            dropped[row, frames] = numbers[frames] < rate[row]
        else:
            size = round(rate[row] * len(frames))
            number = float(draws.generator(modality, sample).random())
            start = int(number * (len(frames) - size + 1))
            dropped[row, frames[start : start + size]] = True
    return dropped


def _keep_modalities(
    present: dict[str, Bools], settings: Missing, draws: _Draws, index: NDArray, rate: NDArray
) -> dict[str, Bools]:
    """Presence with whole modalities taken away. A sample that would have nothing left keeps what
    it has."""
    sets = settings.split_sets()
    kept = {name: mask.copy() for name, mask in present.items()}
    for row, sample in enumerate(index.tolist()):
        whether, which = draws.generator("modality", sample).random(2)
        dropped = sets[int(which * len(sets))]
        others = [name for name in present if name not in dropped]
        leaves_some = any(present[name][row].any() for name in others)
        if whether < rate[row] and leaves_some:
            for name in dropped:
                kept[name][row] = False
    return kept


def _legacy_numbers(settings: Missing, modality: str, sample: int) -> NDArray[np.float64]:
    """Row ``sample`` of what ``np.random.seed(s); np.random.uniform(size=(N, T))`` gives, for any N
    that holds it.

    The released code draws for padded frames too and seeds each split alike; a sample's index must
    be its position in the original file.
    """
    if modality not in settings.legacy_length:
        raise DataError(
            f"missing.rng=numpy_legacy needs missing.legacy_length.{modality}: the length to which "
            "the original file "
            "pads it (MOSI unaligned: 50 text, 375 audio, 500 vision)"
        )
    rows = max(4096, 1 << (sample + 1).bit_length())  # few sizes, so that few are kept
    seed, length = settings.legacy_seeds[modality], settings.legacy_length[modality]
    return _legacy_table(seed, rows, length)[sample]


@lru_cache(maxsize=12)
def _legacy_table(seed: int, rows: int, length: int) -> NDArray[np.float64]:
    return np.random.RandomState(seed).uniform(size=(rows, length))
