"""One record of all that training works on, made from a run and taken up where the run stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from core import distributed
from core.command import CANNOT_GO_ON, Refused
from core.environment import threads
from core.file_access.targets import check_folder
from core.model import Model
from launch.checkpoints.commit import Pointer
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, read_state
from launch.checkpoints.tensors import load_generators, load_moments, load_weights
from launch.config import ConfigError, Run
from launch.engine.compilation import saying_what_compiles
from launch.engine.deepspeed_engine import Engine, load_grad_scaler, start
from launch.monitor import control_plane
from launch.monitor.lease import held_by_first_rank
from launch.monitor.preemption import Stop
from launch.reports.run_log import RunLog
from launch.run_directory import find_run, record_run
from launch.tasks.build import build_model, build_task
from launch.tasks.data_record import refuse_other_data, write_record
from launch.tasks.spec_record import write_spec
from launch.tasks.task import Task


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and what was written about it."""

    exit_code = CANNOT_GO_ON


@dataclass(frozen=True)
class TrainingSession:
    """A run that is ready to go on, and what it needs for that."""

    run: Run
    run_dir: Path
    task: Task
    engine: Engine
    log: RunLog
    checkpoints: Checkpoints
    stop: Stop

    @property
    def model(self) -> Model:
        return self.engine.module.model

    @property
    def progress(self) -> Progress:
        """Where the run stands; changes as it trains, and is saved with every checkpoint."""
        return self.checkpoints.progress

    def save(self, *pointers: Pointer) -> Path:
        """Write a checkpoint and let ``pointers`` name it."""
        return self.checkpoints.save(self.engine, self.task, *pointers)

    def begin_save(self, *pointers: Pointer) -> Path:
        """The same beside the training, which goes on with a copy taken."""
        return self.checkpoints.begin(self.engine, self.task, *pointers)

    def agree_to_stop(self) -> bool:
        """Between two steps: whether some rank was asked to stop. Collective.

        Raises:
            SaveError: on every rank, when the checkpoint under way could not be written.
        """
        wishes = [self.stop.requested, self.checkpoints.has_failed]
        stop, failed = control_plane.any_rank_each(wishes)
        if failed:
            self.checkpoints.wait()
        return stop


@contextmanager
def prepare(run: Run, *, quiet: bool = False) -> Iterator[TrainingSession]:
    """Open or make the run's directory, and everything that training needs. The test split is not
    in reach."""
    threads.use(run.threads)
    stop = Stop().listen()
    run, run_dir = find_run(run)
    if distributed.rank() == 0:
        check_folder(run_dir)
    torch.manual_seed(run.seed)
    task = build_task(run)
    task.check_splits()
    refuse_other_data(run_dir, task, run.data)
    model = build_model(run, task.data)
    refuse_lone_sample(run, model, task)
    run_dir.mkdir(parents=True, exist_ok=True)
    with held_by_first_rank(run_dir):
        find_run(run)  # who held it until now may have begun another run in it
        checkpoints = Checkpoints(run_dir, Progress(), run.keep)
        with RunLog(run_dir, quiet=quiet) as log, checkpoints:
            engine = resume(run, model, task, checkpoints, log)
            checkpoints.reserve(engine)
            record_run(run, run_dir)
            if distributed.rank() == 0:
                write_record(run_dir, task)
                write_spec(run_dir, task)
            for remark in [*task.remarks(model), *model.remarks()]:
                log.warn(checkpoints.progress.step, remark)
            with saying_what_compiles(run, log.say):
                yield TrainingSession(run, run_dir, task, engine, log, checkpoints, stop)


def refuse_lone_sample(run: Run, model: Model, task: Task) -> None:
    """A BatchNorm cannot normalise a batch of one sample, which would end the run in the midst of
    its first epoch."""
    if not has_batch_norm(model):
        return
    samples = task.train_samples()
    last = samples % run.batch_size or run.batch_size
    is_left_out = run.loading.drop_last and last < run.batch_size
    if last == 1 and not is_left_out:
        raise ConfigError(
            f"batch_size={run.batch_size} leaves one of the {samples} train samples of {run.data} "
            f"for the last batch, and the BatchNorm of model {run.model!r} cannot normalise a "
            "single one; give another batch_size, loading.drop_last=true, or the model's other "
            "norm (options.norm=layer)"
        )


def has_batch_norm(model: Model) -> bool:
    """Whether a sample's outputs depend on those beside it, of which there must be some."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def unrecorded(run: Run, task: Task, engine: Engine, run_dir: Path) -> TrainingSession:
    """A session at step 0 that keeps no log, to take and measure single steps with
    ``launch.loop.train_step``."""
    checkpoints = Checkpoints(run_dir, Progress(), run.keep)
    return TrainingSession(run, run_dir, task, engine, RunLog(None), checkpoints, Stop())


def resume(run: Run, model: Model, task: Task, checkpoints: Checkpoints, log: RunLog) -> Engine:
    """The engine, at the newest whole checkpoint if there is one.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    folder, complaints = checkpoints.find("last")
    for complaint in complaints:
        log.say(complaint)
    if folder is None:
        if complaints:
            raise ConfigError(
                "no checkpoint of this run is whole; use another run_dir to start again"
            )
        return start(model, run)
    state = read_state(folder)
    load_weights(
        folder, state.shapes, model, state.bases
    )  # before the engine cuts the parameters up
    engine = start(model, run)
    load_moments(folder, state.adam_step, engine, model)
    with naming_state(folder):
        load_grad_scaler(engine, state.loss_scale)
        task.load_state_dict(state.task)
    progress = checkpoints.progress
    vars(progress).update(vars(state.progress))
    load_generators(folder, state.ranks, (run.seed, progress.step))
    checkpoints.newest = folder.name
    log.say(f"going on at epoch {progress.epoch + 1}, step {progress.step}, from {folder}")
    if progress.best_epoch >= 0:
        _look_for_best(checkpoints, log)
    return engine


@contextmanager
def naming_state(folder: Path) -> Iterator[None]:
    """Around what takes the position of a checkpoint up: what cannot be is a ConfigError that
    names the file."""
    path = folder / "state.json"
    try:
        yield
    except Refused as error:
        raise ConfigError(f"{path}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{path} holds no position of this run ({reason}); use another run_dir to start again"
        ) from None


def _look_for_best(checkpoints: Checkpoints, log: RunLog) -> None:
    """Forget the best epoch when its checkpoint is damaged: nothing else could be evaluated at the
    end."""
    _, complaints = checkpoints.find("best")
    for complaint in complaints:
        log.say(f"{complaint}; the best of the epochs to come takes its place")
        checkpoints.progress.best = math.inf
        checkpoints.progress.best_epoch = -1
