"""The sentiment task: shards in, batches of utterances out, scores over whole splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import distributed
from core.batch import Batch, Utterances
from core.encoders.inputs import MODALITIES
from core.metrics import classification
from core.metrics.classification import scores as class_scores
from core.metrics.declared import shown_metrics
from core.model import DataSpec, Model
from data_shards.batches import utterances
from data_shards.missing import apply_missing_mask, refuse_unknown_names
from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import LEAVE_OUT, DataError, Labels, Manifest, describe_empty
from data_shards.shards.sentiment_schema import check_manifest
from data_shards.stream import Stream
from launch.config import ConfigError, Run
from launch.engine.deepspeed_config import num_micro_batches
from launch.tasks.data_spec import in_roles, names_by_field, sentiment_spec
from launch.tasks.length_buckets import with_bucket_lengths
from launch.tasks.predictions import Predictions, draw, write_predictions
from launch.tasks.sample_record import write_sample_record
from launch.tasks.target_scores import target_baselines, target_collapses, target_scores
from launch.tasks.task import (
    EvaluationResult,
    check_needed_splits,
    known_splits,
    objective_of,
    precision_context,
)
from launch.tasks.training_facts import TrainingFacts, bounds_of


def by_sign(manifest: Manifest) -> Manifest:
    """The manifest of scores, as if they had been annotated as three classes."""
    if manifest.labels.kind == "classes":
        raise ConfigError(
            "classes=sign makes classes of scores, but the labels are classes already; use "
            "classes=given"
        )
    if manifest.labels.names:
        raise ConfigError(
            "classes=sign makes classes of one score, but the data have the targets "
            f"{', '.join(manifest.labels.names)}; use classes=given"
        )
    return replace(
        manifest, labels=Labels(kind="classes", names=("negative", "neutral", "positive"))
    )


class SentimentTask:
    """Utterances of one shard folder. Implements ``launch.tasks.task.Task``."""

    def __init__(self, run: Run):
        self.run = run
        self.train = self._stream("train", shuffle=True)
        self.manifest: Manifest = self.train.manifest
        if self.manifest.task != "sentiment":
            raise ConfigError(
                f"{run.data} holds {self.manifest.task} data, but recipe {run.recipe!r} is for "
                "sentiment"
            )
        check_manifest(self.manifest, run.data)
        if run.classes == "sign":
            self.manifest = by_sign(self.manifest)
        folder = None if "://" in run.data else Path(run.data)
        self.names = names_by_field(self.manifest.fields, run.roles)
        self.data: DataSpec = sentiment_spec(self.manifest, folder, self.names)
        if self.data.target_names and run.metrics == "classes":
            raise ConfigError(
                f"metrics=classes scores one class, but {run.data} has the targets "
                f"{', '.join(self.data.target_names)}; use metrics=mosi, sims, phq or mmmo"
            )
        refuse_unknown_names(run.missing, self.data.features)
        self._waited = 0.0
        # opened once: the manifest is parsed and shards are hashed for the first evaluation only
        self._in_file_order: dict[str, Stream] = {}
        self._passes = count()

    def _evaluated(self, split: str) -> Stream:
        """The stream of a split in the order of its files."""
        if split not in self._in_file_order:
            self._in_file_order[split] = self._stream(split, shuffle=False)
        return self._in_file_order[split]

    def _stream(self, split: str, *, shuffle: bool) -> Stream:
        run, loading = self.run, self.run.loading
        return Stream(
            run.data,
            split,
            global_batch=run.batch_size if shuffle else run.eval_batch_size,
            rank=distributed.rank(),
            ranks=distributed.world_size(),
            micro_batches=num_micro_batches(run) if shuffle else 1,
            seed=run.seed,
            shuffle=shuffle,
            window=loading.window,
            groups=loading.groups,
            bucket=loading.bucket and shuffle,
            drop_last=loading.drop_last and shuffle,
            prefetch=loading.prefetch,
            pin_memory=torch.cuda.is_available(),
            on_corrupt=run.on_corrupt,
            max_skipped_fraction=run.max_skipped_fraction,
            cache=Path(run.cache) if run.cache else None,
            cache_gb=run.cache_gb,
            keep_empty=loading.empty == "keep",
        )

    def steps(self, epoch: int) -> int:
        return self.train.steps(epoch)

    def train_samples(self) -> int:
        return sum(self.train.kept.counts)

    def begin_epoch(self, epoch: int, model: Model) -> None:
        """Nothing here depends on the model."""

    def end_epoch(self, epoch: int, model: Model, run_dir: Path) -> None:
        if distributed.rank() == 0:
            write_sample_record(run_dir, epoch, model.sample_record(), self.train.records)

    def batches(self, epoch: int) -> Iterator[list[Batch]]:
        for micro_batches in self.train.epoch(epoch):
            yield [self._prepare(arrays, "train", epoch) for arrays in micro_batches]

    def mark_consumed(self) -> None:
        self.train.mark_consumed()

    def _prepare(self, arrays: Arrays, split: str, epoch: int) -> Utterances:
        batch = self._labelled(arrays)
        batch = apply_missing_mask(batch, self.run.missing, split=split, epoch=epoch)
        return with_bucket_lengths(batch, self.data.max_length) if self.run.compile else batch

    def _labelled(self, arrays: Arrays) -> Utterances:
        batch = in_roles(utterances(arrays), self.names)
        if self.run.classes == "sign":
            batch = replace(batch, label=batch.label.sign() + 1)  # 0, 1, 2
        return batch

    def _arrays(self, split: str) -> Iterator[Arrays]:
        """This rank's batches of a split in file order, as they come from the shards."""
        for (arrays,) in self._evaluated(split).epoch(next(self._passes)):
            yield arrays

    @torch.no_grad()
    def predict(self, model: Model, split: str, device: torch.device) -> Predictions:
        """The model's scores of all samples of ``split``; every rank gets all of them."""
        if split not in self.manifest.splits:
            known = ", ".join(self.manifest.splits)
            raise DataError(f"{self.run.data} has no split {split!r}; it has {known}")
        training = model.training
        model.eval()
        index, prediction, label = [], [], []
        for arrays in self._arrays(split):
            batch = self._prepare(arrays, split, 0).to(device)
            with precision_context(device, self.run.precision):
                score = model(batch).score.float()
            real = batch.weight > 0
            index.append(batch.index[real])
            prediction.append(score[real])
            label.append(batch.label[real])
        model.train(training)
        columns = [torch.cat(index), torch.cat(prediction), torch.cat(label)]
        sizes = distributed.gather_sizes(len(columns[0]), device)
        gathered = [distributed.gather_rows(column, sizes).cpu().numpy() for column in columns]
        return Predictions.of(*gathered)

    def remarks(self, model: Model) -> list[str]:
        """Fields that the model does not read (the usual ones only a setting leaves out); empty
        samples."""
        inputs: Any = model.inputs  # every sentiment model has them
        unread = [m for m in self.data.features if m not in (*MODALITIES, *inputs.modalities)]
        remarks = []
        if unread:
            remarks.append(
                f"{self.run.model} does not read {', '.join(unread)} of the data; give it a role, "
                f"such as roles.vision={unread[0]}, or name it in options.modalities of baseline "
                "or cenet"
            )
        empty = self.manifest.empty()
        if empty:
            done = "they are left out" if self.run.loading.empty == "leave_out" else LEAVE_OUT
            remarks.append(f"{describe_empty(self.manifest, empty)}; {done}")
        return remarks

    def score_names(self) -> list[str]:
        shown = shown_metrics(self.run.metrics)
        of_targets = [f"{target}/{name}" for target in self.data.target_names for name in shown]
        return [*shown, *of_targets]

    def score(self, predictions: Predictions) -> dict[str, float]:
        """The metrics of the run; of several targets their mean, and those of each."""
        if self.run.metrics == "classes":
            return class_scores(predictions.prediction, predictions.label)
        return target_scores(
            predictions.prediction, predictions.label, self.run.metrics, self.data.target_names
        )

    def evaluate(self, model: Model, split: str, device: torch.device) -> dict[str, float]:
        return self.score(self.predict(model, split, device))

    def final(
        self, model: Model, split: str, device: torch.device, run_dir: Path
    ) -> EvaluationResult:
        predictions = self.predict(model, split, device)
        scores = self.score(predictions)
        if distributed.rank() > 0:
            return EvaluationResult(scores)
        records = self._evaluated(split).records(predictions.index)
        write_predictions(run_dir / "predictions.csv", records, predictions, self.manifest.labels)
        plots = draw(run_dir, split, predictions, self.manifest.labels)
        return EvaluationResult(scores, plots, self._remarks(predictions, split))

    def _remarks(self, predictions: Predictions, split: str) -> list[str]:
        remarks = []
        if self.manifest.synthetic:
            remarks.append(
                "The data are synthetic: generated to try the software, they say nothing about "
                "people."
            )
        prediction, label = predictions.prediction, predictions.label
        if self.run.metrics == "classes":
            warning = classification.collapsed(prediction, label)
            warnings = [warning] if warning else []
        else:
            targets = self.data.target_names
            warnings = target_collapses(prediction, label, self.run.metrics, targets)
        return remarks + [f"On {split}, {warning}" for warning in warnings]

    def constant_baselines(self, split: str) -> dict[str, dict[str, float]]:
        if self.run.metrics == "classes":
            return {}
        labels = [arrays.arrays["label"].float().numpy() for arrays in self._arrays(split)]
        targets = self.data.target_names
        return target_baselines(np.concatenate(labels), self.run.metrics, targets)

    def whole_split(self, split: str) -> Iterator[Utterances]:
        """All samples of a split in file order, on this process alone, nothing dropped."""
        stream = self._stream(split, shuffle=False).copy(rank=0, ranks=1)
        try:
            for (arrays,) in stream.epoch(0):
                yield self._labelled(arrays)
        finally:
            stream.close()

    def facts(self) -> TrainingFacts:
        constant: dict[str, dict[str, dict[str, float]]] = {}
        for split in ("valid", "test"):
            if split in self.splits():
                parts = [batch.label.numpy() for batch in self.whole_split(split)]
                constant[split] = self._constant_scores(np.concatenate(parts))
        return TrainingFacts(bounds_of(self.whole_split("train"), self.data), constant)

    def _constant_scores(self, label: np.ndarray) -> dict[str, dict[str, float]]:
        if self.run.metrics == "classes":
            return classification.constant_baselines(label, self.data.num_classes)
        return target_baselines(label, self.run.metrics, self.data.target_names)

    def splits(self) -> list[str]:
        return known_splits(self.manifest.splits)

    def check_splits(self) -> None:
        check_needed_splits(self.manifest.splits, self.run.data)
        for split in self.splits():
            self._evaluated(split)  # looks at the sizes of its shards

    def objective(self, scores: dict[str, float]) -> float:
        return objective_of(self.run, scores)

    def sample_ids(self, micro_batches: list[Batch]) -> list[str]:
        index = torch.cat([batch.index[batch.weight > 0] for batch in micro_batches])
        return self.train.ids(index.cpu().numpy())

    def ids(self, split: str, index: np.ndarray) -> list[str]:
        return self._evaluated(split).ids(index)

    def wait_seconds(self) -> float:
        before, self._waited = self._waited, self.train.wait_seconds
        return self._waited - before

    def skipped(self) -> int:
        return self.train.skipped

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.train.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.train.load_state_dict(state["stream"])
