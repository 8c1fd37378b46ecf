"""A training process computes with as many threads as it was given, and none that only spins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from paths import ROOT
from small_models import small_words
from training_runs import environment

# Trains twice in one process; after each run, torch's threads and the CPU seconds of every thread.
PROGRAM = """
import json, os, sys
from launch.engine.processes import init_processes, shutdown_processes
from launch.loop import train
from launch.train import parse
import torch

def seconds():
    found = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[thread] = int(fields[11]) + int(fields[12])
    return found

init_processes()
for words in json.loads(sys.argv[1]):
    before = seconds()
    train(parse(words), quiet=True)
    spent = {thread: total - before.get(thread, 0) for thread, total in seconds().items()}
    print("COUNTED", json.dumps([torch.get_num_threads(), sorted(spent.values())]), flush=True)
shutdown_processes()
"""


def test_no_thread_works_beside_those_that_were_asked_for(small_shards: Path, tmp_path: Path):
    words = ["hscl/demo", f"data={small_shards}", "epochs=2", *small_words("hscl")]
    runs = [[*words, f"run_dir={tmp_path}/one"], [*words, f"run_dir={tmp_path}/two", "threads=2"]]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(runs)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("COUNTED ")]
    (one, with_one), (two, with_two) = (json.loads(line.partition(" ")[2]) for line in lines)
    assert (one, two) == (1, 2)
    for threads, spent in ((1, with_one), (2, with_two)):
        *others, most = spent
        busy = [ticks for ticks in others if ticks > most / 4]
        assert len(busy) < threads, f"CPU time of the threads, of {threads}: {spent}"
