"""What a piece of work asks of memory, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from paths import ROOT

BEGIN = """
import json, resource, sys, time
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
answers = {}
def measure(name, work):
    before, start = peak(), time.perf_counter()
    try:
        work()
        said = "done"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    answers[name] = {"MB": peak() - before, "seconds": seconds, "said": said[:2000]}
"""
END = "\nprint(json.dumps(answers))\n"


def measured(code: str, *arguments: Path | str) -> dict[str, dict[str, Any]]:
    """Run ``code``, which calls ``measure(name, work)``; per name the growth of the peak of
    resident memory in MB, the seconds, and how the work ended.

    The peak never falls, so what comes after a large one may show less than it takes.
    """
    ended = subprocess.run(
        [sys.executable, "-c", BEGIN + code + END, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    answers: dict[str, dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    return answers
