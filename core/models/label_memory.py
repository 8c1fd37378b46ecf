"""What Self-MM remembers of every training sample, and the unimodal labels that it makes of it.

Yu et al., AAAI 2021 (arXiv:2102.04830), the unimodal label generation module. It has no parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

FUSION = "fusion"
EPSILON = 1e-8

Quantity = Literal["features", "labels", "visits", "sums", "sizes", "generated", "human"]


class LabelMemory(nn.Module):
    """Features, generated labels and class centres of N training samples; everything is a buffer,
    saved and resumed.

    Labels are taken relative to ``middle``, so that ranges like [1, 5] have a positive and a
    negative side too. A view's centres are means over the samples that *its own* label puts on that
    side. They are kept as running sums: a row leaves the sum of its old side and enters that of its
    new one, so a step costs what its batch costs.

    Args:
        widths: view -> width of its features; must hold "fusion".
        limit: generated labels are cut to [-limit, limit] around the middle.
        squared: squared distances to the centres, as the paper prints them; the published numbers
            used plain ones.
    """

    def __init__(
        self,
        num_samples: int,
        widths: Mapping[str, int],
        limit: float,
        middle: float = 0.0,
        squared: bool = False,
    ):
        super().__init__()
        if num_samples <= 0:
            raise ValueError(
                f"a label memory needs the number of training samples, got {num_samples}"
            )
        self.views = [view for view in widths if view != FUSION]
        self.limit, self.middle, self.squared = limit, middle, squared
        for view, width in widths.items():
            self.register_buffer(f"features_{view}", torch.zeros(num_samples, width))
            # relative to the middle
            self.register_buffer(f"labels_{view}", torch.zeros(num_samples))
            self.register_buffer(f"visits_{view}", torch.zeros(num_samples, dtype=torch.int64))
            # of the samples on the positive and on the negative side
            self.register_buffer(f"sums_{view}", torch.zeros(2, width, dtype=torch.float64))
            self.register_buffer(f"sizes_{view}", torch.zeros(2, dtype=torch.int64))
        for view in self.views:
            # of this epoch: labels generated, of these cut to the limit
            generated = torch.zeros(2, dtype=torch.int64)
            self.register_buffer(f"generated_{view}", generated, persistent=False)
            # of this epoch: samples with a human label of the view, and two summed distances from
            # it
            human = torch.zeros(3, dtype=torch.float64)
            self.register_buffer(f"human_{view}", human, persistent=False)
        # view -> (N,) scores of this epoch, nan as long as there is none; part of no checkpoint
        self._scores: dict[str, Tensor] = {}

    def of(self, quantity: Quantity, view: str) -> Tensor:
        """The buffer of a quantity and a view."""
        return self.get_buffer(f"{quantity}_{view}")

    def labels(self, view: str, index: Tensor, label: Tensor) -> Tensor:
        """(B,) current labels of a view: the human ``label`` for a sample that the view has not met
        yet."""
        return self.labels_of([view], index, label)[0]

    def labels_of(self, views: Sequence[str], index: Tensor, label: Tensor) -> Tensor:
        """(V, B) the same of several views."""
        visited = self._rows("visits", views, index) > 0
        return torch.where(visited, self._rows("labels", views, index) + self.middle, label)

    def _rows(self, quantity: Quantity, views: Sequence[str], index: Tensor) -> Tensor:
        """(V, B, ...) what is remembered of these samples, view by view."""
        return torch.stack([self.of(quantity, view)[index] for view in views])

    @torch.no_grad()
    def update(
        self,
        index: Tensor,
        label: Tensor,
        features: Mapping[str, Tensor],
        has_modality: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Learn one batch, whose samples are all different: new labels by the old centres, then
        features, then centres.

        What has one number per sample is computed for all views at once, as rows (V, B): on a GPU
        each operator is a launch.

        Args:
            features: view -> (B, width).
            has_modality: view -> (B,) bool; a view's memory of a sample stays as it is where the
                sample lacks that modality.
        """
        label = label - self.middle
        views = [view for view in features if view != FUSION]
        # all by the old centres, before any view moves its own
        attraction = self.attraction({view: features[view] for view in (FUSION, *views)})
        everyone = torch.ones_like(label, dtype=torch.bool)
        self._write([FUSION], index, features, label[None], everyone[None])
        if not views:
            return
        # by masks: how many rows there are is a number that a GPU would be waited for
        has = has_modality or {}
        kept = torch.stack([has.get(view, everyone) for view in views])
        generated, cut = generate(attraction[1:], attraction[0], label, self.limit)
        labels = self._blend(views, index, label, generated, cut, kept)
        self._write(views, index, features, labels, kept)

    def attraction(self, features: Mapping[str, Tensor]) -> Tensor:
        """alpha of the features, view -> (B, width), as (V, B): how much nearer the positive centre
        is, as a part of its distance."""
        sizes = torch.stack([self.of("sizes", view) for view in features]).clamp(min=1)
        squares = []
        for view, size in zip(features, sizes, strict=True):
            centres = (self.of("sums", view) / size[:, None]).float()  # (2, width)
            squares.append((features[view].float()[:, None] - centres).square().sum(-1))
        distances = torch.stack(squares)  # (V, B, 2)
        if not self.squared:
            distances = distances.sqrt()
        positive, negative = distances.unbind(-1)
        return (negative - positive) / (positive + EPSILON)

    def _blend(
        self,
        views: Sequence[str],
        index: Tensor,
        label: Tensor,
        generated: Tensor,
        cut: Tensor,
        kept: Tensor,
    ) -> Tensor:
        """(V, B) labels after visit n: (n-1)/(n+1) of the old and 2/(n+1) of the generated one, from
        the second visit on."""
        visit = self._rows("visits", views, index) + 1
        # a side without samples has no centre: labels wait
        sizes = torch.stack([self.of("sizes", view) for view in views])  # (V, 2)
        have_centres = (sizes > 0).all(1) & (self.of("sizes", FUSION) > 0).all()
        is_later = visit > 1
        due = is_later & have_centres[:, None] & kept
        old = torch.where(is_later, self._rows("labels", views, index), label)
        share = 2 / (visit + 1).float()
        counts = torch.stack([due.sum(1), (due & cut).sum(1)], dim=1)
        for view, count in zip(views, counts, strict=True):
            self.of("generated", view).add_(count)
        return torch.where(due, (1 - share) * old + share * generated, old)

    def _write(
        self,
        views: Sequence[str],
        index: Tensor,
        features: Mapping[str, Tensor],
        labels: Tensor,
        kept: Tensor,
    ) -> None:
        """Move samples from the side that they were on to their new one, with their new
        features; those that are not ``kept`` stay as they are.

        Args:
            labels, kept: (V, B).
        """
        old_labels, visits = self._rows("labels", views, index), self._rows("visits", views, index)
        # nothing of an unvisited row is in the sums
        old = _sides(old_labels) & (visits > 0) & kept  # (2, V, B)
        new = _sides(labels) & kept
        growth = (new.sum(2) - old.sum(2)).unbind(1)
        leaving, arriving = old.double().unbind(1), new.double().unbind(1)
        labels = torch.where(kept, labels, old_labels)
        visits = visits + kept
        for number, view in enumerate(views):
            all_features = self.of("features", view)
            before = all_features[index]
            after = torch.where(kept[number, :, None], features[view].float(), before)
            change = arriving[number] @ after.double() - leaving[number] @ before.double()
            self.of("sums", view).add_(change)
            self.of("sizes", view).add_(growth[number])
            all_features[index] = after
            self.of("labels", view)[index] = labels[number]
            self.of("visits", view)[index] = visits[number]

    @torch.no_grad()
    def begin_epoch(self) -> None:
        """Recompute the sums from the rows, so that rounding does not pile up, and start this
        epoch's counts."""
        for view in (FUSION, *self.views):
            sides = _sides(self.of("labels", view)) & (self.of("visits", view) > 0)  # (2, N)
            self.of("sums", view).copy_(sides.double() @ self.of("features", view).double())
            self.of("sizes", view).copy_(sides.sum(1))
        for view in self.views:
            self.of("generated", view).zero_()
            self.of("human", view).zero_()
        self._scores.clear()

    @torch.no_grad()
    def record(self, index: Tensor, scores: Mapping[str, Tensor]) -> None:
        """Keep what each view's head answered in this epoch: view -> (B,)."""
        for view, score in scores.items():
            if view not in self._scores:
                everyone = torch.full_like(self.of("labels", view), torch.nan)
                self._scores[view] = everyone
            self._scores[view][index] = score

    @torch.no_grad()
    def keep_human(self, view: str, index: Tensor, label: Tensor) -> None:
        """Remember human labels (B,) of a view, nan where there is none, as they are."""
        self.of("labels", view)[index] = label - self.middle
        self.of("visits", view)[index] += 1

    def sample_record(self) -> dict[str, Tensor]:
        """``label_VIEW`` and ``score_VIEW`` of every view, (N,) each: the labels as they are now,
        and the scores of this epoch; nan for samples that a view has not met."""
        found = {}
        for view in (FUSION, *self.views):
            visited = self.of("visits", view) > 0
            labels = self.of("labels", view) + self.middle
            found[f"label_{view}"] = torch.where(visited, labels, torch.nan)
            if view in self._scores:
                found[f"score_{view}"] = self._scores[view]
        return found

    @torch.no_grad()
    def compare(self, index: Tensor, label: Tensor, human: Mapping[str, Tensor]) -> None:
        """Count how far the labels of a batch are from human unimodal ones, view -> (B,), nan where
        there is none."""
        views = list(human)
        wanted = torch.stack(list(human.values()))  # (V, B)
        known = wanted.isfinite()
        sums = [known.sum(1)]
        for labels in (self.labels_of(views, index, label), label):
            sums.append(torch.where(known, (labels - wanted).abs(), 0).sum(1))
        for view, counts in zip(views, torch.stack(sums, dim=1).double(), strict=True):
            self.of("human", view).add_(counts)

    def report(self) -> dict[str, float]:
        """Per view, what became of its labels.

        The mean distance of its labels from the human multimodal ones, the part of generated labels
        that was cut, and, where there are human unimodal labels, the distance from these, of the
        generated labels and of the multimodal ones.
        """
        numbers = {}
        for view in self.views:
            visited = self.of("visits", view) > 0
            drift = (self.of("labels", view) - self.of("labels", FUSION))[visited].abs()
            generated, cut = self.of("generated", view).tolist()
            numbers[f"{view}_label_drift"] = float(drift.mean()) if len(drift) else 0.0
            numbers[f"{view}_labels_cut"] = cut / max(generated, 1)
            known, made, multimodal = self.of("human", view).tolist()
            if known:
                numbers[f"{view}_label_to_human"] = made / known
                numbers[f"{view}_multimodal_to_human"] = multimodal / known
        return numbers


def generate(view: Tensor, fusion: Tensor, label: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """The label that a view's alpha, (B,) or (V, B), suggests, and where it was cut to the limit.

    The mean of two readings: labels relate as the alphas do, and labels differ as the alphas do.
    The epsilon takes fusion's sign, which keeps the quotient from flipping for alphas around -1e-8.
    """
    safe = fusion + torch.where(fusion < 0, -EPSILON, EPSILON)
    made = 0.5 * view / safe * label + 0.5 * (label + view - fusion)
    return made.clamp(-limit, limit), made.abs() > limit


def _sides(labels: Tensor) -> Tensor:
    """(2, ...) bool: who is positive, who is negative; zero is neither."""
    return torch.stack([labels > 0, labels < 0])
