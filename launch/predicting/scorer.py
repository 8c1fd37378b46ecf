"""Batches in, answers out: what a trained model says of samples that nobody has labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.batch import Utterances
from core.command import Refused
from core.model import DataSpec
from launch.predicting.trained import TrainedModel
from launch.tasks.task import precision_context
from launch.tasks.training_facts import NORMAL_BOUND, distances

MOST_UNKNOWN = 0.5  # share of unknown tokens above which a text is said to be in other words
NOTHING_SEEN = "nothing that the model reads was found, so it is not scored"


@dataclass(frozen=True)
class Answer:
    """Of one sample."""

    # None where nothing of the sample is there, and for classes
    score: float | None
    # of the classes, in their order; none for scores
    probabilities: tuple[float, ...] = ()
    # modality -> the score by that modality alone, of models that have a head for each
    by_modality: dict[str, float] | None = None
    # modalities that the model reads and the sample has
    seen: tuple[str, ...] = ()
    # how the sample differs from those that the model was trained on
    warnings: tuple[str, ...] = ()

    @property
    def best_class(self) -> int | None:
        """The number of the most probable class."""
        if not self.probabilities:
            return None
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


class Scorer:
    """A model on its device.

    Raises:
        Refused: a model that answers several numbers.
    """

    def __init__(self, trained: TrainedModel, device: torch.device | None = None):
        targets = trained.data.target_names
        if targets:
            raise Refused(
                f"this model scores {', '.join(targets)} together, and new clips can be scored with "
                "one label only; train a model for each of them, or use evaluate"
            )
        self.trained = trained
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = trained.model.to(self.device).eval()
        self.modalities = tuple(trained.model.inputs.modalities)
        self.longest_text = longest_text(trained.model)
        # modalities of which the model gives a score of their own, as Self-MM does
        self.views = self._views()

    @torch.no_grad()
    def __call__(self, batch: Utterances) -> list[Answer]:
        """An answer for each row of the batch, in its order.

        Raises:
            Refused: a text that is longer than the model can read.
        """
        self._refuse_longer_text(batch)
        with precision_context(self.device, self.trained.precision):
            output = self.model(batch.to(self.device))
        score = output.score.float().cpu()
        views = {name: output.views[name].float().cpu() for name in self.views}
        far = distances(batch, self.trained.data)
        answers = []
        for row in range(len(batch)):
            seen = tuple(name for name in self.modalities if bool(batch.mask[name][row].any()))
            if not seen:
                answers.append(Answer(None, warnings=(NOTHING_SEEN,)))
                continue
            answer = self._answer(score[row])
            by_modality = {name: float(views[name][row]) for name in views if name in seen}
            warnings = [*self._far_words(far, row), *self._unknown_words(batch, row)]
            answers.append(
                replace(
                    answer,
                    by_modality=by_modality if views else None,
                    seen=seen,
                    warnings=tuple(warnings),
                )
            )
        return answers

    def _views(self) -> tuple[str, ...]:
        """Found out by giving the model a sample without anything."""
        frames, mask = {}, {}
        for name in self.modalities:
            frames[name] = nothing_of(name, self.trained.data, 1)
            mask[name] = torch.zeros((1, 1), dtype=torch.bool)
        with torch.no_grad():
            output = self.model(unlabelled(frames, mask, 1).to(self.device))
        views = getattr(output, "views", {})
        return tuple(name for name in self.modalities if name in views and views[name].ndim == 1)

    def _answer(self, score: Tensor) -> Answer:
        if not self.trained.data.num_classes:
            return Answer(float(score))
        return Answer(None, tuple(score.softmax(-1).tolist()))

    def _far_words(self, far: dict[str, Tensor], row: int) -> list[str]:
        """One clause for each modality that lies out of the training data's 99.9 %."""
        words = []
        for name, distance in far.items():
            bound = self.trained.facts.bounds.get(name, NORMAL_BOUND)
            found = float(distance[row])
            if name in self.modalities and found > bound:
                words.append(
                    f"{name} lies far from the training data (distance {found:.3g}, 99.9 % lie "
                    f"within {bound:.3g})"
                )
        return words

    def _unknown_words(self, batch: Utterances, row: int) -> list[str]:
        """A clause where most tokens of a text are none that the vocabulary has."""
        unknown_id = self.trained.data.unknown_id
        text = batch.frames.get("text")
        if not unknown_id or text is None or text.is_floating_point():
            return []
        tokens = text[row][batch.mask["text"][row]]
        inner = tokens[1:-1]  # between [CLS] and [SEP]
        unknown = int((inner == unknown_id).sum())
        if unknown <= MOST_UNKNOWN * len(inner):
            return []
        return [f"{unknown} of {len(inner)} tokens of the text are unknown to the model"]

    def _refuse_longer_text(self, batch: Utterances) -> None:
        if self.longest_text is None or "text" not in self.modalities:
            return
        lengths = batch.mask["text"].sum(1)
        longest = int(lengths.max()) if len(lengths) else 0
        if longest > self.longest_text:
            raise Refused(
                f"a text of {longest} tokens; the model's text encoder takes at most "
                f"{self.longest_text}; cut it into sentences"
            )


def nothing_of(name: str, data: DataSpec, size: int) -> Tensor:
    """One frame of a modality that ``size`` samples lack: (size, 1, D), or token ids (size, 1)."""
    width = data.features[name]
    if not width:
        return torch.zeros((size, 1), dtype=torch.int64)
    is_pictures = data.media.get(name) == "pictures"
    return torch.zeros((size, 1, width), dtype=torch.uint8 if is_pictures else torch.float32)


def unlabelled(frames: Mapping[str, Tensor], mask: Mapping[str, Tensor], size: int) -> Utterances:
    """A batch of ``size`` samples of which only the modalities are known; labels are nan."""
    return Utterances(
        index=torch.arange(size),
        weight=torch.ones(size),
        loss_scale=1.0 / max(1, size),
        label=torch.full((size,), torch.nan),
        frames=dict(frames),
        mask=dict(mask),
        present=dict(mask),
    )


def longest_text(model: Any) -> int | None:
    """The most tokens that a model's text encoder has positions for; None: any number."""
    encoder = getattr(model, "text", None)
    backbone = getattr(encoder, "backbone", None)
    if backbone is None:
        return None
    limit = int(getattr(backbone.config, "max_position_embeddings", 0) or 0)
    if backbone.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        limit -= int(backbone.config.pad_token_id) + 1  # positions count from behind the padding
    if getattr(encoder, "project", None) is not None:
        limit -= 1  # a vector in front sums features up
    return limit if limit > 0 else None
