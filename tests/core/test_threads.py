"""How many threads a process gets, and that this is decided before anything has made a pool of
them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from core.environment.threads import CHOSEN, COUNT, available_cores, choose

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x"}
# Ends the process when torch is about to be loaded, and says what torch would have found.
WATCH = """
import importlib, os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("environment", "launcher", "cores", "threads"),
    [
        ({}, {}, 1, "1"),
        ({}, {}, 2, "2"),
        ({}, {}, 1.5, "1"),
        ({}, {}, 0.5, "1"),
        ({"LOCAL_WORLD_SIZE": "2"}, {}, 2, "1"),
        ({"LOCAL_WORLD_SIZE": "2"}, {}, 16, "8"),
        ({"LOCAL_WORLD_SIZE": "3"}, {}, 16, "5"),
        ({"LOCAL_WORLD_SIZE": "4"}, {}, 2, "1"),
        ({"LOCAL_SIZE": "2"}, {}, 8, "4"),  # DeepSpeed's launcher
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "9"}, {}, 8, "4"),
        # the user has said: nothing is set
        ({COUNT: "1"}, {}, 16, None),
        ({COUNT: "2"}, {}, 2, None),
        ({COUNT: "2", "LOCAL_WORLD_SIZE": "2"}, {}, 2, None),
        ({COUNT: "3,2"}, {}, 2, None),
        # what a process above has chosen is decided anew
        ({COUNT: "2", CHOSEN: "2", "LOCAL_WORLD_SIZE": "2"}, {}, 2, "1"),
        ({COUNT: "1", CHOSEN: "2"}, {}, 2, None),
        # torchrun says 1 where the user says nothing
        ({COUNT: "1", "LOCAL_WORLD_SIZE": "2", **TORCHRUN}, {}, 16, "8"),
        ({COUNT: "1", "LOCAL_WORLD_SIZE": "2", **TORCHRUN}, {COUNT: "1"}, 16, None),
        ({COUNT: "1", "LOCAL_WORLD_SIZE": "2", **TORCHRUN}, None, 16, None),
        ({COUNT: "4", "LOCAL_WORLD_SIZE": "2", **TORCHRUN}, {}, 16, None),
        ({COUNT: "1", "LOCAL_WORLD_SIZE": "2"}, {}, 16, None),
    ],
)
def test_threads_follow_from_cores_and_ranks_unless_the_user_says_so(
    environment: dict[str, str], launcher: dict[str, str] | None, cores: float, threads: str | None
):
    chosen = choose(environment, launcher, cores)
    assert chosen.get(COUNT) == threads
    assert chosen.get(CHOSEN) == threads


@pytest.mark.parametrize(
    ("environment", "policy"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_no_pool_spins_unless_the_user_wants_it(environment: dict[str, str], policy: str | None):
    assert choose(environment, {}, 2).get("OMP_WAIT_POLICY") == policy


@pytest.mark.parametrize(
    ("limit", "cores"), [("50000 100000", 0.5), ("max 100000", None), ("", None), (None, None)]
)
def test_a_control_group_limits_the_cores(tmp_path: Path, limit: str | None, cores: float | None):
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    everything = available_cores(tmp_path / "nowhere")
    assert everything >= 1
    assert available_cores(tmp_path) == (cores or everything)


def test_the_older_form_of_a_control_group_limits_them_too(tmp_path: Path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("25000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == 0.25
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert available_cores(tmp_path) >= 1


@pytest.mark.parametrize(
    "module",
    [
        "launch.train",
        "launch.evaluate",
        "launch.robustness",
        "launch.distill",
        "launch.export",
        "launch.align",
        "tune.search",
        "tune.workers.worker",
    ],
)
def test_every_command_has_decided_before_torch_is_loaded(module: str):
    environment = {key: value for key, value in os.environ.items() if key not in (COUNT, CHOSEN)}
    environment.pop("OMP_WAIT_POLICY", None)
    environment |= {"PYTHONPATH": str(ROOT), "LOCAL_WORLD_SIZE": "1000000"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, module],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["1", "passive"], done.stderr
