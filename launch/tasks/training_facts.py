"""What is measured once at the end of a training and kept in ``facts.json``: the scores of constant
answers, and how far training samples lie from the mean of all.

The distance of a sample, for one modality: its frames' mean, standardised by the moments of all
train frames, root mean square over features. Its bound is the 99.9 % quantile over train samples.
One number per modality, not one per feature: of 768 features, some lie out of their own 99.9 % in
half of all samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from core.batch import Utterances
from core.encoders.sequence import masked_mean
from core.file_access.json_files import read_json_object
from core.files import write_atomically
from core.model import DataSpec
from launch.config import ConfigError

NAME = "facts.json"  # in a run's directory
MOST_SAMPLES = 4096  # of the train split, from its start, that are measured
QUANTILE = 0.999
# A bound where none was measured: what 99.9 % of a normal variable stay within.
NORMAL_BOUND = 3.29

Scores = dict[str, float]  # metric -> value


@dataclass(frozen=True)
class TrainingFacts:
    """Plain JSON."""

    # modality -> the distance that 99.9 % of the measured train samples do not exceed
    bounds: dict[str, float] = field(default_factory=dict)
    # split -> name of a constant answer -> its scores
    constant: dict[str, dict[str, Scores]] = field(default_factory=dict)


def distances(batch: Utterances, data: DataSpec) -> dict[str, Tensor]:
    """Modality -> (B,) how far each sample lies from the train frames; nan where it has no frame.

    Only modalities of float features with known moments have a distance.
    """
    found = {}
    for name, (mean, std) in data.moments.items():
        if name not in batch.frames or not batch.frames[name].is_floating_point():
            continue
        mask = batch.mask[name]
        centre = torch.tensor(mean, dtype=torch.float64)
        spread = torch.tensor(std, dtype=torch.float64)
        varies = spread > 1e-6 * (1 + centre.abs())  # as core.encoders.inputs has it
        if not varies.any():
            continue
        sample_mean = masked_mean(batch.frames[name].double(), mask)  # (B, D)
        z = (sample_mean - centre)[:, varies] / spread[varies]
        distance = z.square().mean(1).sqrt()
        found[name] = torch.where(mask.any(1), distance, torch.nan)
    return found


def bounds_of(batches: Iterable[Utterances], data: DataSpec) -> dict[str, float]:
    """The bounds of the first ``MOST_SAMPLES`` samples."""
    measured: dict[str, list[np.ndarray]] = {}
    samples = 0
    for batch in batches:
        for name, distance in distances(batch, data).items():
            measured.setdefault(name, []).append(distance[~distance.isnan()].numpy())
        samples += len(batch)
        if samples >= MOST_SAMPLES:
            break
    bounds = {}
    for name, parts in measured.items():
        values = np.concatenate(parts)
        if len(values):
            bounds[name] = float(np.quantile(values, QUANTILE, method="higher"))
    return bounds


def write_facts(run_dir: Path, facts: TrainingFacts) -> None:
    """Write ``facts.json`` anew."""
    write_atomically(run_dir / NAME, json.dumps(asdict(facts), indent=1) + "\n")


def read_facts(run_dir: Path) -> TrainingFacts:
    """What ``facts.json`` says; nothing where training has not ended, or an earlier version ran."""
    path = run_dir / NAME
    if not path.exists():
        return TrainingFacts()
    return parse_facts(read_json_object(path), str(path))


def parse_facts(content: Mapping[str, object], where: str) -> TrainingFacts:
    """Facts from JSON; ConfigError names ``where`` if they are none."""
    try:
        return TypeAdapter(TrainingFacts).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{where} holds no facts of a training: {key}: {first['msg']}; remove the file, or "
            "restore it"
        ) from None
