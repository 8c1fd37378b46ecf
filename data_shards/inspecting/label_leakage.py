"""Whether frames know the labels of one split better than those of another.

Features are often made by networks that were trained on labels: then a model finds in them what it
will not find in other clips. It cannot be seen in ids or videos, but a simple model shows it. For
each modality a ridge regression from a sample's mean frame to its label is fitted on train, and its
correlation with the labels is compared between splits. Within train it is that of videos that were
held out, so fitting too well does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.inspecting.report_lines import text_table
from data_shards.shards.sentiment_schema import is_label

SAMPLED = 3000  # samples of a split that are looked at, evenly spaced
WIDEST = 1024  # features of a modality that are looked at, evenly spaced
FEWEST = 30  # samples of a split below which a correlation says nothing
FOLDS = 5
CLIP = 10.0  # standardised features further out are cut, as models do
FAR = 0.2  # difference of two correlations that is worth a warning, if ...
ERRORS = 4.0  # ... it is so many standard errors, too
NO_FIT = float("nan")

Array = NDArray[np.float64]


@dataclass
class Rows:
    """Samples of one split that have one modality."""

    frames: list[Array] = field(default_factory=list)  # (D,) mean frame of each
    labels: list[Array] = field(default_factory=list)  # (K,) of each
    videos: list[str] = field(default_factory=list)

    def means(self) -> Array:
        """(N, D)"""
        return np.stack(self.frames)

    def targets(self) -> Array:
        """(N, K)"""
        return np.stack(self.labels)


@dataclass
class MeanFrames:
    """Mean frames and labels of samples of all splits, as many as fit into a bounded memory."""

    num_classes: int = 0
    rows: dict[str, dict[str, Rows]] = field(default_factory=dict)  # split -> modality -> rows
    seen: dict[str, int] = field(default_factory=dict)  # split -> samples

    def add(
        self, split: str, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], size: int
    ) -> None:
        """One sample of a split of ``size`` samples."""
        number = self.seen.get(split, 0)
        self.seen[split] = number + 1
        stride = -(-size // SAMPLED)
        if number % stride:
            return
        label = self._label(arrays)
        if label is None:
            return
        video = str(record.get("video", record["id"]))
        modalities = self.rows.setdefault(split, {})
        for name, frames in arrays.items():
            if is_label(name) or frames.dtype.kind != "f" or frames.ndim != 2 or not len(frames):
                continue
            mean = _mean_frame(frames)
            if not np.isfinite(mean).all():
                continue  # said elsewhere: training refuses it
            rows = modalities.setdefault(name, Rows())
            rows.frames.append(mean)
            rows.labels.append(label)
            rows.videos.append(video)

    def _label(self, arrays: Mapping[str, np.ndarray]) -> Array | None:
        """(K,) targets, or a one for the class."""
        if "class" in arrays:
            number = int(arrays["class"])
            is_known = 0 <= number < self.num_classes
            return np.eye(self.num_classes)[number] if is_known else None
        if "label" not in arrays:
            return None
        label = np.asarray(arrays["label"], np.float64).reshape(-1)
        return label if np.isfinite(label).all() else None


@dataclass(frozen=True)
class Fit:
    """How well a ridge regression fitted on train finds the labels, by split."""

    correlation: dict[str, float]  # split -> Corr; of train, over held-out videos
    samples: dict[str, int]

    def is_far_above(self, split: str, other: str) -> bool:
        """Whether ``split`` is found so much better than ``other`` that chance does not explain
        it."""
        high, low = self.correlation[split], self.correlation[other]
        # Fisher's transform, in which a correlation of n samples has the error 1 / sqrt(n - 3)
        distance = np.arctanh(min(high, 0.999)) - np.arctanh(min(low, 0.999))
        error = np.sqrt(sum(1 / (self.samples[name] - 3) for name in (split, other)))
        return bool(high - low > FAR and distance > ERRORS * error)


def fit(splits: Mapping[str, Rows]) -> Fit | None:
    """The fit of one modality; None where train has too few samples to say anything.

    Args:
        splits: of the modality; must hold "train".
    """
    train = splits.get("train")
    if train is None or len(train.frames) < FEWEST:
        return None
    frames, targets = train.means(), train.targets()
    correlation = {"train": _correlation(_held_out(frames, targets, train.videos), targets)}
    samples = {"train": len(frames)}
    solution = _ridge(frames, targets)
    for name, rows in splits.items():
        if name != "train" and len(rows.frames) >= FEWEST:
            correlation[name] = _correlation(solution.answer(rows.means()), rows.targets())
            samples[name] = len(rows.frames)
    return Fit(correlation, samples)


def leakage_lines(found: MeanFrames) -> list[str]:
    """A table of the fits by modality, and a line for each gap that should not be there."""
    fits = {}
    modalities = dict.fromkeys(name for split in found.rows.values() for name in split)
    for name in modalities:
        splits = {split: rows[name] for split, rows in found.rows.items() if name in rows}
        fitted = fit(splits)
        if fitted is not None and len(fitted.correlation) > 1:
            fits[name] = fitted
    if not fits:
        return []
    shown = [split for split in ("train", "valid", "test") if split in found.rows]
    table: list[tuple[str, ...]] = [("modality", *shown)]
    for name, fitted in fits.items():
        cells = [_cell(fitted.correlation.get(split, NO_FIT)) for split in shown]
        table.append((name, *cells))
    lines = ["what a ridge regression on mean frames, fitted on train, finds of the labels (Corr;"]
    lines += ["of train, in videos that were held out):", *text_table(table)]
    for name, fitted in fits.items():
        lines += _warnings(name, fitted)
    return lines


def _warnings(name: str, fitted: Fit) -> list[str]:
    correlation = fitted.correlation
    lines = []
    for split, other in (("valid", "test"), ("test", "valid")):
        if split in correlation and other in correlation and fitted.is_far_above(split, other):
            lines.append(
                f"LEAKAGE: {name!r} finds the labels of {split} (Corr {correlation[split]:.3f}) far "
                f"better than those of {other} ({correlation[other]:.3f}): its features seem to be "
                f"made with labels of {split}, so what is chosen on validation is not what is good; "
                "take validation and test from the same unseen videos"
            )
    others = [split for split in ("valid", "test") if split in correlation]
    if not lines and any(fitted.is_far_above("train", other) for other in others):
        seen = " and ".join(f"{correlation[other]:.3f} on {other}" for other in others)
        lines.append(
            f"WARNING: {name!r} finds the labels of held-out train videos (Corr "
            f"{correlation['train']:.3f}) far better than others ({seen}): its features seem to be "
            "made with the labels of train, so a model that trusts them pays for it"
        )
    return lines


def _cell(correlation: float) -> str:
    return "-" if np.isnan(correlation) else f"{correlation:.3f}"


def _mean_frame(frames: np.ndarray) -> Array:
    """(D,) of frames (T, D), at most ``WIDEST`` features of it."""
    width = frames.shape[1]
    if width > WIDEST:
        frames = frames[:, np.linspace(0, width - 1, WIDEST).astype(int)]
    return np.mean(frames, axis=0, dtype=np.float64)


@dataclass(frozen=True)
class _Solution:
    mean: Array  # (D,) of the frames
    scale: Array  # (D,) one over their deviation; 0 where they never vary
    weights: Array  # (D, K)
    middle: Array  # (K,) mean target

    def answer(self, frames: Array) -> Array:
        """(N, K) for frames (N, D)."""
        return _standard(frames, self.mean, self.scale) @ self.weights + self.middle


def _standard(frames: Array, mean: Array, scale: Array) -> Array:
    return np.clip((frames - mean) * scale, -CLIP, CLIP)


def _ridge(frames: Array, targets: Array) -> _Solution:
    """Closed form. The penalty is the number of samples: a feature alone then keeps half of its
    weight, whatever the size of the data."""
    mean, deviation = frames.mean(0), frames.std(0)
    varies = deviation > 1e-6 * (1 + np.abs(mean))
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    inputs = _standard(frames, mean, scale)
    middle = targets.mean(0)
    gram = inputs.T @ inputs + len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ (targets - middle))
    return _Solution(mean, scale, weights, middle)


def _held_out(frames: Array, targets: Array, videos: list[str]) -> Array:
    """(N, K) answers for each sample by a fit without any sample of its video."""
    number = {video: at % FOLDS for at, video in enumerate(dict.fromkeys(videos))}
    fold = np.array([number[video] for video in videos])
    answers = np.zeros_like(targets)
    for held in range(FOLDS):
        is_held = fold == held
        if is_held.any() and not is_held.all():
            answers[is_held] = _ridge(frames[~is_held], targets[~is_held]).answer(frames[is_held])
    return answers


def _correlation(answers: Array, targets: Array) -> float:
    """Pearson's, mean over the targets; 0 for one that never varies."""
    found = []
    for answer, target in zip(answers.T, targets.T, strict=True):
        spread = answer.std() * target.std()
        centred = (answer - answer.mean()) * (target - target.mean())
        found.append(float(centred.mean() / spread) if spread > 0 else 0.0)
    return float(np.mean(found))
