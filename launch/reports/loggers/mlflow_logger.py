"""Numbers for MLflow, where ``MLFLOW_TRACKING_URI`` leads; without it into ``mlruns`` beside the run's
directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from core.command import Refused
from core.file_access.json_files import read_json_object
from core.files import write_atomically
from launch.config import Run, leaves, to_dict

EXPERIMENT = "concord"
RECORD = "mlflow.json"  # in the run's directory: which run it is there
MOST_PARAMETERS, MOST_METRICS = 100, 1000  # of one request
LONGEST_VALUE = 500  # characters


class MlflowLogger:
    """Implements ``launch.reports.loggers.interface.Logger``."""

    def __init__(self, run: Run, run_dir: Path):
        beside = run_dir.absolute().parent / "mlruns"
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if address is None:
            address = beside.as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow 3 asks for
        try:
            self._client = MlflowClient(tracking_uri=address)
            self._id = self._find_or_make(run, run_dir, address)
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise Refused(f"log=mlflow: {address}: {reason}; set MLFLOW_TRACKING_URI") from None

    def _find_or_make(self, run: Run, run_dir: Path, address: str) -> str:
        """The id of the run there: a run that goes on has one already."""
        path = run_dir / RECORD
        if path.is_file():
            known = read_json_object(path)
            if known.get("address") == address:
                return str(known["id"])
        found = self._client.get_experiment_by_name(EXPERIMENT)
        number = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        name = self._client.create_run(number, run_name=run_dir.name).info.run_id
        parameters = [
            Param(key, json.dumps(value)[:LONGEST_VALUE])
            for key, value in leaves(to_dict(run)).items()
        ]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(name, params=parameters[first : first + MOST_PARAMETERS])
        write_atomically(path, json.dumps({"id": name, "address": address}) + "\n")
        return name

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        # the name of a metric may have no @ there
        metrics = [
            Metric(name.replace("@", "_at_"), value, now, step) for name, value in values.items()
        ]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + MOST_METRICS])

    def files(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def close(self) -> None:
        self._client.set_terminated(self._id)
