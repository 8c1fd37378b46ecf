"""Which frames are hidden from a model on purpose: the missing-feature protocols.

Nothing is cut out of the data: ``Utterances.present`` says what is dropped, and the model hides it. Every draw comes
from a counter-based generator keyed by (seed, split, modality) at the counter (sample, epoch), so it does not depend
on rank, worker, order, batch or padding. A higher rate drops the same frames and more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Literal
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from core.batch import Utterances
from data_shards.shards.manifest import DataError

Bools = NDArray[np.bool_]
UnitInterval = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Missing:
    """What is dropped, how much of it, and from which draws.

    ``protocol``: "frames" drops each frame with probability ``rate`` (TFR-Net); "blocks" drops one stretch of that
    share; "modality" takes away, with probability ``rate``, one of ``sets`` from a sample (TATE). The first and last
    token of a text given as ids, [CLS] and [SEP], survive the first two.
    """

    protocol: Literal["none", "frames", "blocks", "modality"] = "none"
    rate: UnitInterval = 0.0  # probability, or share, of what is dropped
    # from which frames or blocks are dropped
    modalities: tuple[str, ...] = ("text", "audio", "vision")
    # what "modality" takes away, equally likely
    sets: tuple[str, ...] = ("vision", "audio", "text", "text+audio")
    # random: in training a sample's rate is 0 in one half of all cases, else uniform, drawn anew each epoch (LNLN)
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


def apply_missing_mask(
    batch: Utterances, settings: Missing, *, split: str, epoch: int
) -> Utterances:
    """The batch with ``present`` refined: a subset of what it was. The same batch where nothing is to be dropped.

    Args:
        epoch: matters only in split "train", and there only where draws are renewed.
    """
    training = split == "train"
    random = training and settings.train == "random"
    if (
        settings.protocol == "none"
        or (training and settings.train == "complete")
        or not (random or settings.rate)
    ):
        return batch
    epoch = epoch if random or (training and settings.redraw) else 0
    index = batch.index.numpy()
    rate = _rates(settings, split, index, epoch) if random else np.full(len(index), settings.rate)
    present = {m: x.numpy() for m, x in batch.present.items()}
    if settings.protocol == "modality":
        kept = _without_modalities(present, settings, split, index, epoch, rate)
    else:
        kept = dict(present)
        for m in settings.modalities:
            if m in present:
                tokens = not batch.frames[m].is_floating_point()
                kept[m] = present[m] & _frames_kept(
                    present[m], m, tokens, settings, split, index, epoch, rate
                )
    return replace(batch, present={m: torch.from_numpy(x) for m, x in kept.items()})


def _frames_kept(
    present: Bools,
    modality: str,
    tokens: bool,
    settings: Missing,
    split: str,
    index: NDArray,
    epoch: int,
    rate: NDArray,
) -> Bools:
    """(B, T) bool for one modality."""
    kept = np.ones_like(present)
    for row, sample in enumerate(index):
        places = np.flatnonzero(present[row])
        inner = places[1:-1] if tokens else places
        if settings.rng == "numpy_legacy":
            kept[row, inner] = _legacy_row(settings, modality, int(sample))[inner] > rate[row]
        elif settings.protocol == "frames":
            # drawn for every frame up to the last, so that a frame's fate is its own
            draws = _generator(settings.seed, split, modality, int(sample), epoch).random(
                (present.shape[1],)
            )
            kept[row, inner] = draws[inner] >= rate[row]
        else:
            size = round(rate[row] * len(inner))
            draw = float(_generator(settings.seed, split, modality, int(sample), epoch).random())
            start = int(draw * (len(inner) - size + 1))
            kept[row, inner[start : start + size]] = False
    return kept


def _without_modalities(
    present: dict[str, Bools],
    settings: Missing,
    split: str,
    index: NDArray,
    epoch: int,
    rate: NDArray,
) -> dict[str, Bools]:
    """Whole modalities taken away. A sample that would have nothing left keeps what it has."""
    sets = [tuple(one.split("+")) for one in settings.sets]
    unknown = {m for one in sets for m in one} - set(present)
    if unknown:
        raise DataError(
            f"missing.sets names {', '.join(sorted(unknown))}, but the data has {', '.join(present)}"
        )
    kept = {m: x.copy() for m, x in present.items()}
    for row, sample in enumerate(index):
        whether, which = _generator(settings.seed, split, "modality", int(sample), epoch).random(2)
        gone = sets[int(which * len(sets))]
        if whether < rate[row] and any(present[m][row].any() for m in present if m not in gone):
            for m in gone:
                kept[m][row] = False
    return kept


def _rates(settings: Missing, split: str, index: NDArray, epoch: int) -> NDArray[np.float64]:
    """(B,) rates of LNLN's training: zero for one half of the samples, uniform for the other."""
    draws = np.array(
        [_generator(settings.seed, split, "rate", int(sample), epoch).random(2) for sample in index]
    )
    return np.where(draws[:, 0] < 0.5, 0.0, draws[:, 1])


def _generator(seed: int, split: str, what: str, sample: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.Philox(key=_key(seed, split, what), counter=[0, 0, sample, epoch])
    )


@lru_cache(maxsize=64)
def _key(seed: int, split: str, what: str) -> NDArray:
    words = [seed, crc32(split.encode()), crc32(what.encode())]
    return np.random.SeedSequence(words).generate_state(2, np.uint64)


def _legacy_row(settings: Missing, modality: str, sample: int) -> NDArray[np.float64]:
    """Row ``sample`` of what ``np.random.seed(s); np.random.uniform(size=(N, T))`` gives, for any N that holds it.

    The released code draws for padded places too and seeds each split alike; a sample's index must be its place in
    the original file.
    """
    if modality not in settings.legacy_length:
        raise DataError(
            f"missing.rng=numpy_legacy needs missing.legacy_length.{modality}: the length to which the original file "
            "pads it (MOSI unaligned: 50 text, 375 audio, 500 vision)"
        )
    rows = max(4096, 1 << (sample + 1).bit_length())  # few sizes, so that few are kept
    return _legacy_draws(settings.legacy_seeds[modality], rows, settings.legacy_length[modality])[
        sample
    ]


@lru_cache(maxsize=12)
def _legacy_draws(seed: int, rows: int, length: int) -> NDArray[np.float64]:
    return np.random.RandomState(seed).uniform(size=(rows, length))
