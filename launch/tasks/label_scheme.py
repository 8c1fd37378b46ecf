"""What a run makes of the labels of its data: classes of scores, labels that are there or not, and
how much each of them counts in the loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core import distributed
from core.batch import Utterances
from core.losses.labels import LabelLoss
from data_shards.shards.manifest import Labels
from launch.config import ClassLoss, ConfigError, Run
from launch.monitor import control_plane

SIGN = ("negative", "neutral", "positive")
ABOVE_ZERO = 0.0  # an emotion that any annotator saw is there, as MOSEI's tables have it

# Classes of scores by their number, as the metrics of the field cut the scale. Of MOSI and MOSEI
# scores are rounded, half to even; 2 are negative against the rest. Of CH-SIMS, whose scores lie
# within 1, each class is up to an edge, that included.
MOSI_LIMITS = {5: 2, 7: 3}  # number of classes -> greatest score that is no less than the last one
SIMS_EDGES = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
SIMS_NAMES = {
    2: ("negative", "positive"),
    3: SIGN,
    5: ("negative", "weakly_negative", "neutral", "weakly_positive", "positive"),
}


@dataclass(frozen=True)
class LabelScheme:
    """Labels as a model learns them."""

    labels: Labels  # what they mean then
    convert: Callable[[Tensor], Tensor]  # of a batch as the data have them, to what is learnt
    multilabel: bool = False  # each of labels.names is there or not

    @property
    def learnt(self) -> tuple[str, ...]:
        """The classes, or the labels; none where scores are learnt."""
        if self.labels.kind == "classes" or self.multilabel:
            return self.labels.names
        return ()


def label_scheme(run: Run, labels: Labels) -> LabelScheme:
    """Of the setting ``classes`` and the labels of the data.

    Raises:
        ConfigError: the data's labels cannot become what the setting says.
    """
    if run.classes == "given":
        return LabelScheme(labels, _unchanged)
    if run.classes == "present":
        return _present(labels)
    _refuse_no_score(run, labels)
    if run.classes == "sign":
        return LabelScheme(Labels(kind="classes", names=SIGN), _sign)
    return _cut(run.classes, labels)


def _unchanged(label: Tensor) -> Tensor:
    return label


def _sign(label: Tensor) -> Tensor:
    return label.sign() + 1  # 0, 1, 2


def _present(labels: Labels) -> LabelScheme:
    if labels.kind == "classes" or not labels.names:
        found = "classes" if labels.kind == "classes" else "one score"
        raise ConfigError(
            f"classes=present makes a label of each of several targets, but the data have {found}; "
            "convert a table with --targets A,B,... or use classes=given"
        )
    there_or_not = replace(labels, low=0.0, high=1.0, resolution=1.0)
    return LabelScheme(there_or_not, lambda label: (label > ABOVE_ZERO).float(), multilabel=True)


def _refuse_no_score(run: Run, labels: Labels) -> None:
    setting = f"classes={run.classes}"
    if labels.kind == "classes":
        raise ConfigError(
            f"{setting} makes classes of scores, but the labels are classes already; use "
            "classes=given"
        )
    if labels.names:
        raise ConfigError(
            f"{setting} makes classes of one score, but the data have the targets "
            f"{', '.join(labels.names)}; use classes=given, or classes=present for labels that are "
            "there or not"
        )


def _cut(number: int, labels: Labels) -> LabelScheme:
    """Classes of scores around 0, by the edges that accuracies of so many classes are printed
    with."""
    if labels.low >= 0 or labels.high <= 0:
        raise ConfigError(
            f"classes={number} cuts scores around 0, but the labels go from {labels.low:g} to "
            f"{labels.high:g}; convert the data with a column class"
        )
    if max(-labels.low, labels.high) > 1:
        return _mosi_classes(number)
    if number not in SIMS_EDGES:
        raise ConfigError(
            f"classes={number}: scores from {labels.low:g} to {labels.high:g} are cut into "
            f"{', '.join(map(str, SIMS_EDGES))} classes"
        )
    edges = torch.tensor(SIMS_EDGES[number])  # float32, as the labels are
    names = Labels(kind="classes", names=SIMS_NAMES[number])
    return LabelScheme(names, lambda label: torch.bucketize(label, edges.to(label.device)).float())


def _mosi_classes(number: int) -> LabelScheme:
    if number == 2:
        names = Labels(kind="classes", names=("negative", "not_negative"))
        return LabelScheme(names, lambda label: (label >= 0).float())
    if number == 3:
        return LabelScheme(Labels(kind="classes", names=SIGN), _sign)
    limit = MOSI_LIMITS[number]
    points = tuple(f"{point:+d}" if point else "0" for point in range(-limit, limit + 1))
    names = Labels(kind="classes", names=points)
    return LabelScheme(names, lambda label: label.clamp(-limit, limit).round() + limit)


class ClassWeights:
    """How much each class, or each label that is there, counts: by a setting, or counted on the
    train split when it is first asked for.

    Args:
        train_labels: labels of the train split as they are learnt, batch by batch. Rank 0 alone
            reads them.
    """

    def __init__(
        self,
        settings: ClassLoss,
        scheme: LabelScheme,
        train_labels: Callable[[], Iterator[Tensor]],
    ):
        self.settings, self.scheme = settings, scheme
        self._train_labels = train_labels
        self._refuse_settings()
        self.how = LabelLoss(multilabel=scheme.multilabel, focal=settings.focal)
        self._weights = torch.tensor(settings.weights) if settings.weights else None

    def _refuse_settings(self) -> None:
        settings, names = self.settings, self.scheme.learnt
        if settings == ClassLoss():
            return
        if not names:
            raise ConfigError(
                "class_loss says how classes count, but scores are learnt; leave class_loss out, or "
                "make classes of them with classes=sign"
            )
        if settings.weights and settings.balance != "none":
            raise ConfigError(
                f"class_loss.weights and class_loss.balance={settings.balance} both say how much "
                "classes count; use one of them"
            )
        if settings.weights and len(settings.weights) != len(names):
            raise ConfigError(
                f"class_loss.weights has {len(settings.weights)} numbers for {len(names)}: "
                f"{', '.join(names)}"
            )

    def prepare(self) -> None:
        """Count the train split, once, where that is needed. Collective."""
        if self._weights is None and self.settings.balance != "none":
            counted = json.dumps(self._count() if distributed.rank() == 0 else [])
            shares = torch.tensor(json.loads(control_plane.broadcast_text(counted)))
            self._weights = shares.sqrt() if self.settings.balance == "root" else shares

    def _count(self) -> list[float]:
        """One over the share of each class, 1 where all have the same; of each label, how often it
        is lacked for once that it is there."""
        names = self.scheme.learnt
        counts = torch.zeros(len(names), dtype=torch.float64)
        samples = 0
        for label in self._train_labels():
            samples += len(label)
            if self.scheme.multilabel:
                counts += label.sum(0)
            else:
                counts += torch.bincount(label.long(), minlength=len(names))
        _refuse_unseen(names, counts.tolist(), samples)
        if self.scheme.multilabel:
            return ((samples - counts) / counts).tolist()
        return (samples / (len(names) * counts)).tolist()

    def on(self, batch: Utterances) -> Utterances:
        """The batch with what its labels count, and how they are learnt."""
        batch = replace(batch, label_loss=self.how)
        if self._weights is None:
            return batch
        if self.scheme.multilabel:
            weight = torch.where(batch.label > 0, self._weights, 1.0)  # (B, K)
        else:
            weight = self._weights[batch.label.long()]  # (B,)
        return replace(batch, label_weight=weight)


def _refuse_unseen(names: Sequence[str], counts: Sequence[float], samples: int) -> None:
    for name, count in zip(names, counts, strict=True):
        if count == 0:
            raise ConfigError(
                f"class_loss.balance: none of the {samples} train samples is {name}, so its share "
                "says nothing; use class_loss.weights"
            )
