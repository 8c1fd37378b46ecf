"""A trained model with all that is needed to give it something new: from a run's directory, from an
exported folder, or from a model hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from core import bundle
from core.command import Refused
from core.file_access.json_files import read_json_object
from core.model import DataSpec, Model
from data_shards.shards.manifest import Labels
from launch.bundles.hub import fetch, is_hub_name
from launch.bundles.tokenizer_files import FOLDER, find_tokenizer
from launch.checkpoints.progress import Progress
from launch.config import ConfigError, Run, override
from launch.evaluate import read_run
from launch.reports.report import best_weights
from launch.run_directory import CONFIG, naming_settings
from launch.tasks.build import build_task
from launch.tasks.data_record import DataRecord, read_record, record_of, refuse_other_data
from launch.tasks.spec_record import NAME as SPEC
from launch.tasks.spec_record import SpecRecord, read_spec, spec_of
from launch.tasks.training_facts import TrainingFacts, parse_facts, read_facts

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainedRun:
    """The best epoch of a run, and what is known of its data; the shards may be gone."""

    run: Run
    model: Model
    progress: Progress
    record: DataRecord
    spec: SpecRecord
    facts: TrainingFacts


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, ready for new samples."""

    source: str  # as it was named
    name: str  # of the model, a key of MODELS
    model: Any
    data: DataSpec  # by the names that the model reads
    record: DataRecord  # by the names of the data
    names: Mapping[str, str]  # field of the data -> the name by which the model reads it
    facts: TrainingFacts
    recipe: str = ""
    classes: str | int = "given"  # how classes were made of scores, as the run's setting has it
    precision: str = "fp32"
    tokenizer: Path | None = None  # its folder
    max_tokens: int | None = None  # at which texts were cut
    extraction: Mapping[str, Any] | None = None  # how features were made from clips
    synthetic: bool = False

    @property
    def labels(self) -> Labels:
        """What its scores mean."""
        return self.record.labels or Labels()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their probabilities; none where it gives a score."""
        return self.labels.names if self.data.num_classes else ()

    @property
    def wanted(self) -> dict[str, str]:
        """Field of the data -> name, of those that the model reads."""
        read = set(self.model.inputs.modalities)
        return {field: name for field, name in self.names.items() if name in read}


def is_run_directory(folder: Path) -> bool:
    """Whether a training wrote the folder; an exported one has a config.json too."""
    path = folder / CONFIG
    return path.is_file() and "run" in read_json_object(path)


def local_folder(source: str) -> Path:
    """The folder of a run or bundle, fetched from the hub where ``source`` is a name there.

    Raises:
        Refused: there is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if is_hub_name(source):
        return fetch(source)
    raise Refused(
        f"{source} is neither the directory of a run nor an exported model; make one with: "
        "concord export RUN --out BUNDLE"
    )


def open_trained(
    source: str, changes: Sequence[str] = (), tokenizer: Path | None = None
) -> TrainedModel:
    """A sentiment model on the CPU.

    Args:
        source: a run's directory, an exported folder, or ``org/name`` on a hub.
        changes: settings of the run, ``data=DIR`` among them; none for an exported folder.
        tokenizer: its folder, where the source holds none.

    Raises:
        Refused: it cannot be opened, or is a model of graphs.
    """
    folder = local_folder(source)
    if is_run_directory(folder):
        trained = _of_run(source, open_run(folder, changes), tokenizer)
    elif changes:
        raise ConfigError(f"{source} is an exported model, which has no settings: {changes[0]}")
    else:
        trained = _of_bundle(source, folder, tokenizer)
    if trained.record.task != "sentiment":
        raise ConfigError(
            f"{source} is a model of graphs, which knows its own entities only; see concord align"
        )
    return trained


def open_run(run_dir: Path, changes: Sequence[str] = ()) -> TrainedRun:
    """The best epoch of a run, on the CPU.

    The shards are opened where ``changes`` name some, or where an earlier version left no record.
    """
    run = override(read_run(run_dir), changes)
    record, spec = read_record(run_dir), read_spec(run_dir)
    names_data = any(change.startswith("data=") for change in changes)
    if record is None or spec is None or names_data:
        with naming_settings(run_dir):
            task = build_task(run)
        refuse_other_data(run_dir, task, run.data)
        record, spec = record_of(task), spec_of(task)
        model, progress = best_weights(run, run_dir, spec.data, CPU)
    else:
        model, progress = _recorded_model(run, run_dir, spec)
    return TrainedRun(run, model, progress, record, spec, read_facts(run_dir))


def _recorded_model(run: Run, run_dir: Path, spec: SpecRecord) -> tuple[Model, Progress]:
    """The best epoch, built for the data that the run's directory describes."""
    try:
        return best_weights(run, run_dir, spec.data, CPU)
    except Refused as error:
        raise ConfigError(f"{error} (its data are those of {run_dir / SPEC})") from None
    except Exception as error:  # whatever an odd record makes a model stumble over
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{run_dir / SPEC} describes no data that {run.model} can be built for: "
            f"{reason[:500]}; restore the file, or remove it and give data=DIR"
        ) from None


def _of_run(source: str, opened: TrainedRun, tokenizer: Path | None) -> TrainedModel:
    run, record, spec = opened.run, opened.record, opened.spec
    return TrainedModel(
        source=source,
        name=run.model,
        model=opened.model,
        data=spec.data,
        record=record,
        names=spec.names,
        facts=opened.facts,
        recipe=run.recipe,
        classes=run.classes,
        precision=run.precision,
        tokenizer=find_tokenizer(record.tokenizer, tokenizer, run.options),
        max_tokens=spec.max_tokens,
        extraction=spec.extraction,
        synthetic=spec.synthetic,
    )


def _of_bundle(source: str, folder: Path, tokenizer: Path | None) -> TrainedModel:
    config = bundle.read_config(folder)
    model, data = bundle.load(folder)
    record = _record_in(config, folder)
    fields_read = [name for name in record.fields if name in data.features]
    inside = folder / FOLDER
    return TrainedModel(
        source=source,
        name=config["model"],
        model=model,
        data=data,
        record=record,
        # earlier bundles say nothing of roles
        names=config.get("roles") or {name: name for name in fields_read},
        facts=parse_facts(config.get("facts", {}), f"{folder}/config.json"),
        recipe=str(config.get("recipe", "")),
        classes=config.get("classes", "given"),
        precision=config.get("precision", "fp32"),
        tokenizer=find_tokenizer(
            record.tokenizer, tokenizer or (inside if inside.is_dir() else None)
        ),
        max_tokens=config.get("max_tokens"),
        extraction=config.get("extraction"),
        synthetic=bool(config.get("schema", {}).get("synthetic", False)),
    )


def _record_in(config: Mapping[str, Any], folder: Path) -> DataRecord:
    """What the model was trained on, from ``config.json`` of an exported folder."""
    schema = config.get("schema", {})
    known = {f.name for f in fields(DataRecord)}
    try:
        kept = {name: value for name, value in schema.items() if name in known}
        return TypeAdapter(DataRecord).validate_json(json.dumps(kept))
    except (ValidationError, AttributeError):
        raise Refused(
            f"{folder}/config.json does not say what data the model reads; export the run again "
            "with this version"
        ) from None
