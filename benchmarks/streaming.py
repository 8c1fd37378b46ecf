"""Samples per CPU second of one process, for this project's stream and its peers, on the same samples.

    python benchmarks/streaming.py work=FOLDER [peers=PYTHON] [samples=8000] [shapes=mosi,sims] [only=NAME,...]

Data: ``samples`` utterances of the shapes of MOSI (unaligned, of many lengths) and SIMS (all of one length). "views":
every sample with its arrays ready to use; "batches": shuffled, padded batches of 64 as tensors. Each reader runs in a
process of its own, one epoch to warm up and the fastest of the next five; of several settings of a reader the best
counts. A peer that is not installed is left out, and the table says so. mosaicml-streaming wants older versions of
transformers and NumPy than this project; ``peers=`` names the Python of an environment that has the peers and numpy.

The table is printed, and saved with machine and versions as ``benchmarks/results/streaming.json``. With ``only=`` the
other readers' last results are kept; ``only=none`` measures nothing but verification and scale, which use all cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results import made_by  # noqa: E402
from benchmarks.streaming_readers import READERS  # noqa: E402
from data_shards.verify import verify  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "streaming.json"
VERIFIED = {
    "mosi": 6,
    "sims": 1,
}  # times as many samples to verify: over a gigabyte, beside which the start is nothing
PEERS = ("webdataset", "litdata", "mosaicml-streaming", "megatron-energon")


def run(python: str, script: str, *words: object) -> dict[str, Any]:
    """What the process of a script says in its last line; why it could not, under "absent"."""
    command = [python, str(ROOT / "benchmarks" / script), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"absent": said[-1] if said else f"exit code {done.returncode}"}


def best(found: dict[str, Any]) -> float:
    """Samples per CPU second under the best setting; ours under its plain one."""
    settings = found.get("settings", {})
    if "background thread" in settings:
        return settings[""]["per_cpu_second"]
    return max((one["per_cpu_second"] for one in settings.values()), default=0.0)


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    columns = [(shape, what) for shape in rows for what in ("views", "batches")]
    lines = [
        "| samples per CPU second | "
        + " | ".join(f"{shape} {what}" for shape, what in columns)
        + " |"
    ]
    lines.append("|---" * (len(columns) + 1) + "|")
    for reader in READERS:
        cells = []
        for shape, what in columns:
            found = rows[shape].get(reader, {}).get(what, {})
            cells.append(
                f"{best(found):,.0f}" if best(found) else "absent" if "absent" in found else ""
            )
        if any(cells):
            lines.append(f"| {reader} | " + " | ".join(cells) + " |")
    against = {
        "stock webdataset": PEERS[:1],
        "best other peer": PEERS[1:],
        "read + memcpy": ("read + memcpy",),
    }
    for name, others in against.items():
        cells = []
        for shape, what in columns:
            rates = [best(rows[shape].get(other, {}).get(what, {})) for other in others]
            ours = best(rows[shape].get("concord", {}).get(what, {}))
            cells.append(f"{ours / max(rates):.1f} x" if max(rates) and ours else "")
        lines.append(f"| concord against {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verify_speed(folder: Path) -> dict[str, float]:
    """GB/s of the two kinds of verification on all cores."""
    found = {"cores": float(len(os.sched_getaffinity(0)))}
    for name, deep in (("verify", False), ("verify --deep", True)):
        started = time.perf_counter()
        size = sum(finding.bytes for finding in verify(folder, deep=deep))
        found[f"{name}, GB/s"] = size / 1e9 / (time.perf_counter() - started)
    return found


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    work, count = Path(given["work"]), int(given.get("samples", 8000))
    peers = given.get("peers", sys.executable)
    only = given["only"].split(",") if "only" in given else list(READERS)
    before = (
        json.loads(RESULTS.read_text(encoding="utf-8"))
        if "only" in given and RESULTS.exists()
        else {}
    )
    rows: dict[str, dict[str, dict[str, Any]]] = (
        before.get("rows", {}) if before.get("samples") == count else {}
    )
    facts: dict[str, dict[str, float]] = {}
    for shape in given.get("shapes", "mosi,sims").split(","):
        rows.setdefault(shape, {})
        for reader in (name for name in READERS if name in only):
            python = peers if reader in PEERS else sys.executable
            written = run(python, "streaming_readers.py", reader, "write", shape, count, work)
            if "absent" in written:
                print(f"{reader} is left out: {written['absent']}", file=sys.stderr)
            for what in ("views", "batches"):
                measured = run(python, "streaming_readers.py", reader, what, shape, count, work)
                rows[shape].setdefault(reader, {})[what] = (
                    written if "absent" in written else measured
                )
                rows[shape][reader]["measured"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        run(
            sys.executable,
            "streaming_readers.py",
            "concord",
            "write",
            shape,
            VERIFIED[shape] * count,
            work / "verify",
        )
        facts[shape] = verify_speed(work / "verify" / shape / "concord")
    run(sys.executable, "streaming_readers.py", "concord", "write", "scale", 100, work)
    facts["scale"] = run(sys.executable, "streaming_scale.py", work / "scale" / "concord")
    print(table(rows))
    for name, numbers in facts.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
    saved = {
        "samples": count,
        "rows": rows,
        "facts": facts,
        "table": table(rows).splitlines(),
        **made_by(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
