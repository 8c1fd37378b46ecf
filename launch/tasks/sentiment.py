"""The sentiment task: shards in, batches of utterances out, scores over whole splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import distributed
from core.batch import Batch, Utterances
from core.metrics.classification import scores as class_scores
from core.metrics.regression import collapsed
from core.metrics.regression import scores as sentiment_scores
from core.model import DataSpec, Model
from data_shards.batches import utterances
from data_shards.missing import apply_missing_mask
from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import DataError, Labels, Manifest
from data_shards.stream import Stream
from launch.config import ConfigError, Run
from launch.engine.deepspeed_config import micro_batches
from launch.tasks.base import EvaluationResult
from launch.tasks.data_spec import sentiment_spec
from launch.tasks.predictions import Predictions, draw, write_predictions


def by_sign(manifest: Manifest) -> Manifest:
    """The manifest of scores, as if they had been annotated as three classes."""
    if manifest.labels.kind == "classes":
        raise ConfigError(
            "classes=sign makes classes of scores, but the labels are classes already; use classes=given"
        )
    return replace(
        manifest, labels=Labels(kind="classes", names=("negative", "neutral", "positive"))
    )


class SentimentTask:
    """Utterances of one shard folder. Implements ``launch.tasks.base.Task``."""

    def __init__(self, run: Run):
        self.run = run
        self.train = self._stream("train", shuffle=True)
        self.manifest: Manifest = self.train.manifest
        if self.manifest.task != "sentiment":
            raise ConfigError(
                f"{run.data} holds {self.manifest.task} data, but recipe {run.recipe!r} is for sentiment"
            )
        if run.classes == "sign":
            self.manifest = by_sign(self.manifest)
        self.data: DataSpec = sentiment_spec(
            self.manifest, Path(run.data) if "://" not in run.data else None
        )
        self._waited = 0.0
        if run.select not in self._score_names():
            known = ", ".join(self._score_names())
            raise ConfigError(
                f"select={run.select!r} is no score of metrics={run.metrics}; there are {known}"
            )

    def _score_names(self) -> list[str]:
        classes = self.run.metrics == "classes"
        two = np.eye(2) if classes else np.array([0.0, 1.0])
        return list(self.score(Predictions(np.arange(2), two, np.arange(2.0))))

    def _stream(self, split: str, *, shuffle: bool) -> Stream:
        run, loading = self.run, self.run.loading
        return Stream(
            run.data,
            split,
            global_batch=run.batch_size if shuffle else run.eval_batch_size,
            rank=distributed.rank(),
            ranks=distributed.world_size(),
            micro_batches=micro_batches(run) if shuffle else 1,
            seed=run.seed,
            shuffle=shuffle,
            window=loading.window,
            bucket=loading.bucket and shuffle,
            drop_last=loading.drop_last and shuffle,
            prefetch=loading.prefetch,
            pin_memory=torch.cuda.is_available(),
            on_corrupt=run.on_corrupt,
            max_skipped_fraction=run.max_skipped_fraction,
            cache=Path(run.cache) if run.cache else None,
            cache_gb=run.cache_gb,
        )

    def steps(self, epoch: int) -> int:
        return self.train.steps(epoch)

    def begin_epoch(self, epoch: int, model: Model) -> None:
        """Nothing here depends on the model."""

    def batches(self, epoch: int) -> Iterator[list[Batch]]:
        for parts in self.train.epoch(epoch):
            yield [self._prepare(part, "train", epoch) for part in parts]

    def mark_consumed(self) -> None:
        self.train.mark_consumed()

    def _prepare(self, part: Any, split: str, epoch: int) -> Utterances:
        batch = utterances(part)
        if self.run.classes == "sign":
            batch = replace(batch, label=batch.label.sign() + 1)  # 0, 1, 2
        return apply_missing_mask(batch, self.run.missing, split=split, epoch=epoch)

    def part_arrays(self, split: str) -> Iterator[list[Arrays]]:
        """This rank's parts of a split in file order, as they come from the shards."""
        return self._stream(split, shuffle=False).epoch(0)

    @torch.no_grad()
    def predict(self, model: Model, split: str, device: torch.device) -> Predictions:
        """The model's scores of all samples of ``split``; every rank gets all of them."""
        if split not in self.manifest.splits:
            known = ", ".join(self.manifest.splits)
            raise DataError(f"{self.run.data} has no split {split!r}; it has {known}")
        training = model.training
        model.eval()
        index, prediction, label = [], [], []
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.run.precision)
        for (part,) in self.part_arrays(split):
            batch = self._prepare(part, split, 0).to(device)
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                score = model(batch).score.float()
            real = batch.weight > 0
            index.append(batch.index[real])
            prediction.append(score[real])
            label.append(batch.label[real])
        model.train(training)
        parts = (torch.cat(index), torch.cat(prediction), torch.cat(label))
        sizes = distributed.gather_sizes(len(parts[0]), device)
        return Predictions.of(
            *(distributed.gather_rows(rows, sizes).cpu().numpy() for rows in parts)
        )

    def score(self, said: Predictions) -> dict[str, float]:
        if self.run.metrics == "classes":
            return class_scores(said.prediction, said.label)
        return sentiment_scores(said.prediction, said.label, self.run.metrics)

    def evaluate(self, model: Model, split: str, device: torch.device) -> dict[str, float]:
        return self.score(self.predict(model, split, device))

    def final(
        self, model: Model, split: str, device: torch.device, run_dir: Path
    ) -> EvaluationResult:
        said = self.predict(model, split, device)
        scores = self.score(said)
        if distributed.rank() > 0:
            return EvaluationResult(scores)
        write_predictions(
            run_dir / "predictions.csv", self.ids(split, said.index), said, self.manifest.labels
        )
        return EvaluationResult(
            scores, draw(run_dir, split, said, self.manifest.labels), self._remarks(said, split)
        )

    def _remarks(self, said: Predictions, split: str) -> list[str]:
        remarks = [
            "The data are synthetic: generated to try the software, they say nothing about people."
        ]
        remarks = remarks if self.manifest.synthetic else []
        if self.run.metrics != "classes":
            warning = collapsed(said.prediction, said.label, self.run.metrics)
            remarks += [f"On {split}, {warning}"] if warning else []
        return remarks

    def splits(self) -> list[str]:
        return [split for split in ("train", "valid", "test") if split in self.manifest.splits]

    def objective(self, scores: dict[str, float]) -> float:
        return scores[self.run.select] * (1.0 if self.run.goal == "min" else -1.0)

    def sample_ids(self, parts: list[Batch]) -> list[str]:
        index = torch.cat([part.index[part.weight > 0] for part in parts]).cpu().numpy()
        return self.train.ids(index)

    def ids(self, split: str, index: np.ndarray) -> list[str]:
        return self._stream(split, shuffle=False).ids(index)

    def wait_seconds(self) -> float:
        waited, self._waited = self.train.wait_seconds - self._waited, self.train.wait_seconds
        return waited

    def skipped(self) -> int:
        return self.train.skipped

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.train.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.train.load_state_dict(state["stream"])
