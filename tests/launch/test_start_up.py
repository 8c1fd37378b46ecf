"""What a command imports before it knows what it is to do: nothing that takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from paths import ROOT

SLOW = ("ray", "matplotlib", "pandas", "sklearn", "scipy", "numba", "transformers", "deepspeed")
CODE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize(
    "modules",
    [
        ["launch.train"],
        # with what a run of either task and a trial of a search consist of
        ["launch.loop", "launch.tasks.sentiment", "launch.tasks.alignment", "tune.workers.worker"],
        ["concord", "concord.__main__"],
    ],
    ids=lambda modules: modules[0],
)
def test_nothing_slow_is_imported_before_it_is_used(modules: list[str]):
    command = [sys.executable, "-c", CODE, *modules]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    imported = json.loads(answer.stdout)
    assert [name for name in SLOW if name in imported] == []
