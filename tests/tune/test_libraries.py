"""What Ray, optuna and PyTorch do not do for a search, which is why ``tune`` does it.

Each test shows one lack. When one fails after an update, the library may have learnt it: see
whether the part of ``tune`` that names the test can go.
"""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import ray
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import tune
from ray.train._internal.storage import StorageContext
from ray.train._internal.utils import get_address_and_port
from ray.tune.execution.tune_controller import ResumeConfig, TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from torch.utils.file_baton import FileBaton

from tune.cluster import LOOPBACK_ONLY

# optuna's search with optuna's journal ---------------------------------------------------------


def optuna_session(journal: Path) -> OptunaSearch:
    """A search that begins, or goes on with what is in the journal."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(
        {"alpha": FloatDistribution(0.0, 1.0)},
        metric="objective",
        mode="min",
        seed=1111,
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(journal))),
    )


def test_optuna_search_repeats_itself_after_a_restart(tmp_path: Path):
    """``tune.sampling.suggest``: the generator starts anew, whatever the journal has."""
    first = optuna_session(tmp_path / "journal")
    drawn = [first.suggest("one"), first.suggest("two")]
    for trial in ("one", "two"):
        first.on_trial_complete(trial, {"objective": 0.5})
    again = optuna_session(tmp_path / "journal")
    assert [again.suggest("three"), again.suggest("four")] == drawn


def test_optuna_search_loses_the_trials_that_ran(tmp_path: Path):
    """``tune.sampling.suggest``: an interrupted trial is not handed out again, nor are its results
    taken."""
    first = optuna_session(tmp_path / "journal")
    interrupted = first.suggest("one")
    again = optuna_session(tmp_path / "journal")
    again.suggest("two")
    with pytest.raises(KeyError):
        again.on_trial_result("one", {"objective": 0.5, "training_iteration": 1})
    states = [(trial.state, trial.params) for trial in again._ot_study.trials]
    assert states[0] == (TrialState.RUNNING, interrupted)
    assert len(states) == 2  # a new one, in place of the one that was interrupted


def test_a_journal_of_optuna_that_was_cut_off_cannot_be_opened(tmp_path: Path):
    """``tune.journal``: a crash within a line costs that line, not the search."""
    path = tmp_path / "journal"
    optuna_session(path).suggest("one")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(json.JSONDecodeError):
        optuna_session(path).suggest("two")  # its first line goes on where the last one was cut
    with pytest.raises(json.JSONDecodeError):
        optuna_session(path)


# Ray's restore --------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorageContext:
    """Where Ray keeps a search, without Ray running."""
    session = "ray.train._internal.storage._get_ray_train_session_dir"
    monkeypatch.setattr(session, lambda: str(tmp_path / "session"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    tune.register_trainable("nothing", lambda config: None)
    return StorageContext(storage_path=str(tmp_path), experiment_dir_name="search")


def new_asha() -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="best",
        mode="min",
        max_t=9,
        grace_period=1,
        reduction_factor=3,
    )


def new_controller(storage: StorageContext, asha: AsyncHyperBandScheduler) -> TuneController:
    """What ``Tuner.fit`` and ``Tuner.restore`` run trials with."""
    return TuneController(search_alg=BasicVariantGenerator(), scheduler=asha, storage=storage)


def scores_on_rungs(asha: AsyncHyperBandScheduler) -> list[dict[str, float]]:
    [bracket] = asha._brackets
    return [scores for _, scores in bracket._rungs]


def test_ray_restores_a_search_with_empty_rungs(storage: StorageContext):
    """``tune.asha``: what trials had left on the rungs is not part of what Ray stores."""
    asha = new_asha()
    controller = new_controller(storage, asha)
    trial = Trial("nothing", storage=storage, trial_id="one")
    controller.add_trial(trial)
    asha.on_trial_result(controller, trial, {"epoch": 1, "best": 0.5})
    trial.set_status(Trial.TERMINATED)
    controller.checkpoint(force=True, wait=True)
    assert scores_on_rungs(asha) == [{}, {}, {"one": -0.5}]

    restored_asha = new_asha()
    restored = new_controller(storage, restored_asha)
    restored.resume(ResumeConfig())
    assert [trial.status for trial in restored.get_trials()] == [Trial.TERMINATED]
    assert scores_on_rungs(restored_asha) == [{}, {}, {}]


def test_ray_restores_a_trial_that_has_ended_as_one_to_be_trained(storage: StorageContext):
    """``tune.journal``: Ray's snapshots are ten seconds apart, or more."""
    controller = new_controller(storage, new_asha())
    trial = Trial("nothing", storage=storage, trial_id="one")
    controller.add_trial(trial)
    controller.checkpoint(force=True, wait=True)
    trial.set_status(Trial.TERMINATED)
    controller.checkpoint()  # as after every event; then the driver is killed

    restored = new_controller(storage, new_asha())
    restored.resume(ResumeConfig())
    assert [trial.status for trial in restored.get_trials()] == [Trial.PENDING]


def test_asha_of_ray_lets_a_trial_without_a_score_go_on():
    """``tune.asha`` and ``tune.trial``: NaN is below no bar."""
    asha = new_asha()
    actions = []
    for number, best in enumerate([0.1, 0.2, 0.3, math.nan, 0.4]):
        trial: Any = SimpleNamespace(trial_id=str(number))
        asha.on_trial_add(None, trial)
        actions.append(asha.on_trial_result(None, trial, {"epoch": 1, "best": best}))
    assert actions == ["CONTINUE", "STOP", "STOP", "CONTINUE", "STOP"]
    assert math.isnan(scores_on_rungs(asha)[-1]["3"])


# Ray's worker groups --------------------------------------------------------------------------


def test_ray_gives_the_ranks_a_port_that_another_process_can_take():
    """``tune.workers``: between the look-up and the ranks' start, the port is free for everyone."""
    _, port = get_address_and_port()  # what ``ray.train`` has rank 0 bind
    with socket.socket() as other_trial:
        other_trial.bind(("127.0.0.1", port))


ACTORS = """
import os, re, ray

@ray.remote
class Rank:
    def end(self, how):
        os._exit(how) if how > 0 else os.kill(os.getpid(), -how)

ray.init(
    "local",
    include_dashboard=False,
    num_cpus=1,
    object_store_memory=100 * 2**20,
    log_to_driver=False,
)
errors = []
for how in (-9, -11, 3):
    try:
        ray.get(Rank.remote().end.remote(how))
    except ray.exceptions.ActorDiedError as error:
        errors.append(str(error).partition("Worker exit type")[2])
print(len(errors), len(set(errors)), bool(errors[0]))
"""


@pytest.mark.slow
def test_ray_does_not_tell_how_an_actor_ended(tmp_path: Path):
    """``tune.workers``: SIGKILL (starts again) and exit code 3 (diverged) look the same."""
    assert (signal.SIGKILL, signal.SIGSEGV) == (9, 11)
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ACTORS)],
        env={"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path), LOOPBACK_ONLY: "0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "3 1 True" in ended.stdout.splitlines()


# PyTorch's lock -------------------------------------------------------------------------------


def test_torch_waits_for_the_lock_of_a_process_that_is_gone(tmp_path: Path):
    """``tune.workers.operators``: its lock is a file, which nobody removes for a killed process."""
    lock = str(tmp_path / "lock")
    program = (
        "import os, sys; from torch.utils.file_baton import FileBaton;"
        "FileBaton(sys.argv[1]).try_acquire(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, lock], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not FileBaton(lock).try_acquire()  # so the next process waits until the file is gone
