"""The sentiment task: shards in, batches of utterances out, scores over whole splits."""

from __future__ import annotations

import math
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
from core.metrics import classification, multilabel
from core.metrics.declared import shown_metrics
from core.model import DataSpec, Model
from data_shards.batches import utterances
from data_shards.missing import apply_missing_mask, refuse_unknown_names
from data_shards.reading.reader import Arrays
from data_shards.shards.manifest import LEAVE_OUT, DataError, Manifest, describe_empty
from data_shards.shards.sentiment_schema import check_manifest
from data_shards.stream import Stream
from launch.config import ConfigError, Run
from launch.engine.deepspeed_config import num_micro_batches
from launch.tasks.data_spec import in_roles, names_by_field, sentiment_spec
from launch.tasks.label_scheme import ClassWeights, label_scheme
from launch.tasks.length_buckets import with_bucket_lengths
from launch.tasks.predictions import Predictions, draw, probabilities, write_predictions
from launch.tasks.sample_record import write_sample_record
from launch.tasks.target_scores import (
    target_baselines,
    target_collapses,
    target_scores,
    without_targets,
)
from launch.tasks.task import (
    EvaluationResult,
    check_needed_splits,
    known_splits,
    objective_of,
    precision_context,
)
from launch.tasks.training_facts import TrainingFacts, bounds_of

OF_SCORES: tuple[str, ...] = ("mosi", "sims", "phq", "mmmo")
# metrics -> those that are given of each class or label; of targets all are
OF_PART = {"classes": ["F1", "Recall"], "labels": ["F1", "Weighted_acc"]}
MOST_WAITING = 0.05  # share of an epoch that may be waited for media without a word


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
        self.scheme = label_scheme(run, self.manifest.labels)
        self.manifest = replace(self.manifest, labels=self.scheme.labels)
        self.weights = ClassWeights(run.class_loss, self.scheme, self._train_labels)
        folder = None if "://" in run.data else Path(run.data)
        self.names = names_by_field(self.manifest.fields, run.roles)
        spec = sentiment_spec(self.manifest, folder, self.names)
        self.data: DataSpec = replace(spec, multilabel=self.scheme.multilabel)
        self._refuse_metrics()
        refuse_unknown_names(run.missing, self.data.features)
        self._waited = 0.0
        self._decoded = 0.0  # seconds that decoding has taken up to the end of the last epoch
        # opened once: the manifest is parsed and shards are hashed for the first evaluation only
        self._in_file_order: dict[str, Stream] = {}
        self._passes = count()

    def _refuse_metrics(self) -> None:
        """ConfigError where the run's metrics are of other labels than those that it learns."""
        metrics, targets = self.run.metrics, self.data.target_names
        if targets and metrics == "classes":
            raise ConfigError(
                f"metrics=classes scores one class, but {self.run.data} has the targets "
                f"{', '.join(targets)}; use metrics=mosi, sims, phq or mmmo, or metrics=labels with "
                "classes=present"
            )
        learnt = "scores"
        fitting = OF_SCORES
        if self.data.num_classes:
            learnt = "classes"
            fitting = ("classes",)
        elif self.data.multilabel:
            learnt = "labels that a sample has or lacks"
            fitting = ("labels",)
        if metrics not in fitting:
            raise ConfigError(
                f"metrics={metrics} is not of what is learnt from {self.run.data}, {learnt}; use "
                f"metrics={' or '.join(fitting)}, or another setting of classes"
            )

    def _train_labels(self) -> Iterator[torch.Tensor]:
        for batch in self.whole_split("train"):
            yield batch.label

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
            connections=run.connections,
            ranges=run.ranges and shuffle,
            keep_empty=loading.empty == "keep",
            decode_threads=loading.decode_threads,
            longest_clip=loading.longest_clip,
        )

    def steps(self, epoch: int) -> int:
        return self.train.steps(epoch)

    def train_samples(self) -> int:
        return self.train.sampler.num_samples

    def begin_epoch(self, epoch: int, model: Model) -> None:
        """Nothing here depends on the model."""

    def end_epoch(self, epoch: int, model: Model, run_dir: Path) -> None:
        if distributed.rank() == 0:
            write_sample_record(run_dir, epoch, model.sample_record(), self.train.ids)

    def batches(self, epoch: int) -> Iterator[list[Batch]]:
        self.weights.prepare()
        for micro_batches in self.train.epoch(epoch):
            yield [self._prepare(arrays, "train", epoch) for arrays in micro_batches]

    def mark_consumed(self) -> None:
        self.train.mark_consumed()

    def _prepare(self, arrays: Arrays, split: str, epoch: int) -> Utterances:
        batch = (
            self.weights.on(self._labelled(arrays)) if split == "train" else self._labelled(arrays)
        )
        batch = apply_missing_mask(batch, self.run.missing, split=split, epoch=epoch)
        return with_bucket_lengths(batch, self.data.max_length) if self.run.compile else batch

    def _labelled(self, arrays: Arrays) -> Utterances:
        batch = in_roles(utterances(arrays), self.names)
        return replace(batch, label=self.scheme.convert(batch.label))

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
        encoders: Any = getattr(model, "media_encoders", {})
        for role, encoder in encoders.items():
            if encoder.frozen:
                remarks.append(
                    f"{role} is encoded anew in every epoch by an encoder that is not trained; its "
                    f"frames can be made once: concord encode {self.run.data} --{role} DIR --out DIR"
                )
        empty = self.manifest.empty()
        if empty:
            done = "they are left out" if self.run.loading.empty == "leave_out" else LEAVE_OUT
            remarks.append(f"{describe_empty(self.manifest, empty)}; {done}")
        return remarks

    def parts(self) -> tuple[str, ...]:
        return self.scheme.learnt or self.data.target_names

    def score_names(self) -> list[str]:
        shown = shown_metrics(self.run.metrics)
        of_part = OF_PART.get(self.run.metrics, shown)
        return [*shown, *[f"{part}/{name}" for part in self.parts() for name in of_part]]

    def score(
        self, predictions: Predictions, thresholds: np.ndarray | None = None
    ) -> dict[str, float]:
        """The metrics of the run; of classes, labels and targets also those of each.

        Args:
            thresholds: (K,) of K labels, from which on one is answered.
        """
        prediction, label = predictions.prediction, predictions.label
        if self.run.metrics == "classes":
            names = self.scheme.labels.names
            whole = classification.scores(prediction, label)
            return whole | classification.class_scores(prediction, label, names)
        if self.run.metrics == "labels":
            return multilabel.scores(probabilities(prediction), label, self.parts(), thresholds)
        return target_scores(prediction, label, self.run.metrics, self.data.target_names)

    def evaluate(self, model: Model, split: str, device: torch.device) -> dict[str, float]:
        predictions = self.predict(model, split, device)
        return self.score(predictions, self._thresholds(model, split, predictions, device))

    def _thresholds(
        self, model: Model, split: str, predictions: Predictions, device: torch.device
    ) -> np.ndarray | None:
        """(K,) thresholds of K labels, tuned on the validation split whatever is scored; None where
        there are no labels."""
        if not self.scheme.multilabel:
            return None
        valid = predictions if split == "valid" else self.predict(model, "valid", device)
        return multilabel.tuned_thresholds(probabilities(valid.prediction), valid.label)

    def final(
        self, model: Model, split: str, device: torch.device, run_dir: Path
    ) -> EvaluationResult:
        predictions = self.predict(model, split, device)
        thresholds = self._thresholds(model, split, predictions, device)
        scores = self.score(predictions, thresholds)
        if distributed.rank() > 0:
            return EvaluationResult(scores)
        records = self._evaluated(split).records(predictions.index)
        labels = self.manifest.labels
        write_predictions(run_dir / "predictions.csv", records, predictions, labels, thresholds)
        plots = draw(run_dir, split, predictions, labels, thresholds)
        return EvaluationResult(scores, plots, self._remarks(predictions, split, thresholds))

    def _remarks(
        self, predictions: Predictions, split: str, thresholds: np.ndarray | None = None
    ) -> list[str]:
        remarks = []
        if self.manifest.synthetic:
            remarks.append(
                "The data are synthetic: generated to try the software, they say nothing about "
                "people."
            )
        prediction, label = predictions.prediction, predictions.label
        if thresholds is not None:
            tuned = zip(self.parts(), thresholds, strict=True)
            said = ", ".join(f"{name} {threshold:.3f}" for name, threshold in tuned)
            remarks.append(f"Thresholds of the labels' probabilities, tuned on validation: {said}.")
            answers = probabilities(prediction) >= thresholds
            warnings = multilabel.collapses(answers, label, self.parts())
        elif self.run.metrics == "classes":
            warning = classification.collapsed(prediction, label)
            warnings = [warning] if warning else []
        else:
            targets = self.data.target_names
            warnings = target_collapses(prediction, label, self.run.metrics, targets)
        return remarks + [f"On {split}, {warning}" for warning in warnings]

    def constant_baselines(self, split: str) -> dict[str, dict[str, float]]:
        if self.scheme.learnt:
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
        if self.run.metrics == "labels":
            found = multilabel.constant_baselines(label, self.parts())
            return {name: without_targets(of, self.parts()) for name, of in found.items()}
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

    def waiting_remarks(self, waited: float, seconds: float) -> list[str]:
        """How many cores would decode the media of this rank while it computes."""
        reader = self.train.reader
        decoding, self._decoded = reader.decode_seconds - self._decoded, reader.decode_seconds
        computing = max(seconds - waited, 1e-3)
        if waited <= MOST_WAITING * seconds or not decoding:
            return []
        cores = math.ceil(decoding / computing)
        return [
            f"{waited / seconds:.0%} of the epoch waited for data: decoding takes {decoding:.0f} s of "
            f"a core and computing {computing:.0f} s, so {cores} cores for each rank would keep up"
        ]

    def wait_seconds(self) -> float:
        before, self._waited = self._waited, self.train.wait_seconds
        return self._waited - before

    def skipped(self) -> int:
        return self.train.skipped

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.train.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.train.load_state_dict(state["stream"])
