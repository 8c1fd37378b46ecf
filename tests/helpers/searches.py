"""Searches for tests: their parts without Ray, and whole ones, started as a user does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from paths import ROOT
from small_models import small_words

from tune.journal import Journal, Record
from tune.settings import Search
from tune.trial import Job, Trial

FAST = small_words("hscl")
FREE = {"options.alpha": "uniform(0.0, 1.0)", "options.layers": "choice(1, 2, 3)"}


def a_search(folder: Path, **changes: Any) -> Search:
    search = Search(
        "hscl/demo", {"data": "shards", "epochs": 9}, dict(FREE), str(folder), trials=8, confirm=2
    )
    return replace(search, **changes)


def anything(changes: dict[str, Any]) -> str:
    return ""


def ended(number: int, objective: list[float], state: str = "finished", **changes: Any) -> Record:
    history = {
        epoch: {
            "time": 60.0 * number + epoch,
            "objective": value,
            "scores": {"MAE": value, "Corr": 1 - value},
        }
        for epoch, value in enumerate(objective, 1)
    }
    return Record(number, changes, history, state, started=60.0 * number, ended=60.0 * number + 30)


def alone(folder: Path, shards: Path | str, **changes: Any) -> Trial:
    """The actor of a trial, in this process."""

    class Here(Trial):
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(
                config,
                job=Job(
                    "hscl/demo", {"data": str(shards), "epochs": 4}, str(folder), cwd=str(ROOT)
                ),
            )

    return Here(config=changes)


def begin(
    shards: Path, folder: Path, *words: str, code: Path = ROOT, **around: str
) -> subprocess.Popen[str]:
    """Start a search of tiny models; ``code`` is where this project lies."""
    return run_module(
        ["hscl/demo", f"data={shards}", f"run_dir={folder}", *FAST, *words], code=code, **around
    )


STARTED: list[subprocess.Popen[str]] = []


def end_all() -> None:
    """End the searches that a test has left running; their trials end with them."""
    while STARTED:
        search = STARTED.pop()
        search.kill()
        search.wait()
        if search.stdout is not None:
            search.stdout.close()


def run_module(words: list[str], code: Path = ROOT, **around: str) -> subprocess.Popen[str]:
    search = subprocess.Popen(
        [sys.executable, "-m", "tune.search", *words],
        cwd=code,
        env={**os.environ, "OMP_NUM_THREADS": "1", **around},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(search)
    return search


def finish(search: subprocess.Popen[str], code: int = 0) -> str:
    try:
        output, _ = search.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        search.kill()
        output, _ = search.communicate()
    assert search.returncode == code, output
    return output


def journal(folder: Path, name: str = "journal.jsonl") -> Journal:
    with Journal(folder / name) as read:
        return read


def workers(folder: Path) -> list[int]:
    """Processes of trials in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            f"{folder}/" in word for word in words
        ):
            found.append(process.pid)
    return found


def wait_until(condition: Callable[[], Any], search: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 600
    while not condition():
        assert search.poll() is None, search.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.1)


def peek(folder: Path) -> list[Any]:
    """The trials, without opening the journal for writing."""
    path = folder / "journal.jsonl"
    if not path.is_file():
        return []
    copy = path.with_name("peek.jsonl")
    shutil.copy(path, copy)
    return journal(folder, "peek.jsonl").trials()


class Verdict(NamedTuple):
    """What ASHA had to say of a trial at the end of an epoch, and what became of it."""

    trial: int
    epoch: int
    due: str  # "go on" or "stop"
    taken: str  # the same; empty when the trial ended by itself, or the search was interrupted
    known_before: (
        int  # trials it was compared with that had ended before the search was interrupted
    )


def verdicts(path: Path, *, epochs: int, reduction: int) -> list[Verdict]:
    """Asynchronous successive halving worked out anew from a journal, in the reports' order.

    A trial that comes to a rung stops when it is worse than all but the best of ``reduction`` parts
    of those that came before it: in this session, or in earlier ones if they had ended there.
    """
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    milestones = [reduction**power for power in range(20) if reduction**power <= epochs]
    found: list[Verdict] = []
    rungs: dict[int, dict[int, float]] = {}  # milestone -> trial -> its best until then
    running: dict[int, list[float]] = {}  # trial -> objectives of its epochs
    over: dict[int, list[float]] = {}  # the same, of trials that have ended
    ended_before: set[int] = set()  # in an earlier session
    for index, event in enumerate(events):
        number = event["trial"]
        if event["event"] == "session":
            ended_before = set(over)
            rungs = {milestone: _best_until(milestone, over) for milestone in milestones}
        elif event["event"] == "start":
            running[number] = []
        elif event["event"] == "end":
            over[number] = running[number]
        elif event["event"] == "epoch":
            running[number].append(event["objective"])
            epoch, best = len(running[number]), min(running[number])
            assert epoch == event["epoch"]
            reached = [m for m in milestones if m <= epoch and number not in rungs[m]]
            others = rungs[reached[-1]] if reached else {}
            due = "stop" if best > _bar(list(others.values()), reduction) else "go on"
            known = len(ended_before & set(others))
            found.append(Verdict(number, epoch, due, _taken(events[index + 1 :], number), known))
            if reached:
                others[number] = best
    return found


def _best_until(milestone: int, over: dict[int, list[float]]) -> dict[int, float]:
    """The lowest objective of each trial that came to a milestone."""
    return {
        number: min(objectives[:milestone])
        for number, objectives in over.items()
        if len(objectives) >= milestone
    }


def _bar(objectives: list[float], reduction: int) -> float:
    """The objective above which a trial stops."""
    if not objectives:
        return np.inf
    scores = [-objective for objective in objectives]  # as Ray has them, for the same rounding
    return -np.percentile(scores, (1 - 1 / reduction) * 100)


def _taken(later: list[dict[str, Any]], number: int) -> str:
    """What a trial does next in the same session."""
    for event in later:
        if event["event"] == "session":
            return ""
        if event["trial"] == number:
            if event["event"] == "end" and event["state"] == "stopped":
                return "stop"
            return "go on" if event["event"] == "epoch" else ""
    return ""
