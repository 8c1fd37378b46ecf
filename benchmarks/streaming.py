"""Samples per CPU second of one process, for this project's stream and its peers, on the same
samples.

    python benchmarks/streaming.py work=FOLDER [peers=PYTHON] [samples=8000] [shapes=mosi,sims]
    [only=NAME,...]

Data: ``samples`` utterances of the shapes of MOSI (unaligned, of many lengths) and SIMS (all of one
length). "views": every sample with its arrays ready to use; "batches": shuffled, padded batches of
64 as tensors. Each reader runs in a process of its own, one epoch to warm up and the fastest of the
next five; of several settings of a reader the best counts. A peer that is not installed is left
out, and the table says so. mosaicml-streaming wants older versions of transformers and NumPy than
this project; ``peers=`` names the Python of an environment that has the peers and numpy.

The table is printed, and saved with machine and versions as ``benchmarks/results/streaming.json``.
With ``only=`` the other readers' last results are kept; ``only=none`` measures nothing but
verification and scale, which use all cores.
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

from benchmarks.common import made_by, read_words, refuse_others, run_command  # noqa: E402
from benchmarks.streaming_readers import READERS  # noqa: E402
from data_shards.verify import verify  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "streaming.json"
# Times as many samples to verify: over a gigabyte, beside which the start is nothing.
VERIFIED = {"mosi": 6, "sims": 1}
PEERS = ("webdataset", "litdata", "mosaicml-streaming", "megatron-energon")
KINDS = ("views", "batches")
COMPARED = {
    "stock webdataset": PEERS[:1],
    "best other peer": PEERS[1:],
    "read + memcpy": ("read + memcpy",),
}


def run(python: str, script: str, *words: object) -> dict[str, Any]:
    """What the process of a script prints as its last line; why it could not, under "absent"."""
    command = [python, str(ROOT / "benchmarks" / script), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    return {"absent": errors[-1] if errors else f"exit code {done.returncode}"}


def best(found: dict[str, Any]) -> float:
    """Samples per CPU second under the best setting; ours under its plain one."""
    settings = found.get("settings", {})
    if "background thread" in settings:
        return settings[""]["per_cpu_second"]
    return max((numbers["per_cpu_second"] for numbers in settings.values()), default=0.0)


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A row per reader and per comparison with ours; two columns per shape."""
    columns = [(shape, kind) for shape in rows for kind in KINDS]
    titles = [f"{shape} {kind}" for shape, kind in columns]
    lines = []
    for reader in READERS:
        cells = [_rate_cell(rows[shape].get(reader, {}).get(kind, {})) for shape, kind in columns]
        if any(cells):
            lines.append([reader, *cells])
    for name, others in COMPARED.items():
        cells = [_ratio_cell(rows[shape], kind, others) for shape, kind in columns]
        lines.append([f"concord against {name}", *cells])
    return markdown_table(["samples per CPU second", *titles], lines)


def _rate_cell(found: dict[str, Any]) -> str:
    if best(found):
        return f"{best(found):,.0f}"
    return "absent" if "absent" in found else ""


def _ratio_cell(readers: dict[str, dict[str, Any]], kind: str, others: tuple[str, ...]) -> str:
    """Our rate as a multiple of the best of the others."""
    ours = best(readers.get("concord", {}).get(kind, {}))
    theirs = max(best(readers.get(other, {}).get(kind, {})) for other in others)
    return f"{ours / theirs:.1f} x" if theirs and ours else ""


def verify_speed(folder: Path) -> dict[str, float]:
    """GB/s of the two kinds of verification on all cores."""
    found = {"cores": float(len(os.sched_getaffinity(0)))}
    for name, deep in (("verify", False), ("verify --deep", True)):
        started = time.perf_counter()
        size = sum(finding.bytes for finding in verify(folder, deep=deep))
        found[f"{name}, GB/s"] = size / 1e9 / (time.perf_counter() - started)
    return found


def measure(reader: str, python: str, shape: str, count: int, work: Path) -> dict[str, Any]:
    """Views and batches of one reader, whose data is written first."""
    script = "streaming_readers.py"
    written = run(python, script, reader, "write", shape, count, work)
    if "absent" in written:
        print(f"{reader} is left out: {written['absent']}", file=sys.stderr)
    found: dict[str, Any] = {}
    for kind in KINDS:
        measured = run(python, script, reader, kind, shape, count, work)
        found[kind] = written if "absent" in written else measured
    found["measured"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return found


def earlier_rows(count: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of the last results, where they are of as many samples."""
    if not RESULTS.exists():
        return {}
    saved = json.loads(RESULTS.read_text(encoding="utf-8"))
    return saved["rows"] if saved.get("samples") == count else {}


def main() -> None:
    defaults = {
        "work": "",
        "samples": "8000",
        "peers": sys.executable,
        "only": "",
        "shapes": "mosi,sims",
    }
    options, others = read_words(defaults)
    refuse_others(others, defaults)
    work, count, peers = Path(options["work"]), int(options["samples"]), options["peers"]
    chosen = options["only"].split(",") if options["only"] else list(READERS)
    rows = earlier_rows(count) if options["only"] else {}
    facts: dict[str, dict[str, float]] = {}
    script = "streaming_readers.py"
    for shape in options["shapes"].split(","):
        rows.setdefault(shape, {})
        for reader in READERS:
            if reader in chosen:
                python = peers if reader in PEERS else sys.executable
                measured = measure(reader, python, shape, count, work)
                rows[shape].setdefault(reader, {}).update(measured)
        more = VERIFIED[shape] * count
        run(sys.executable, script, "concord", "write", shape, more, work / "verify")
        facts[shape] = verify_speed(work / "verify" / shape / "concord")
    run(sys.executable, script, "concord", "write", "scale", 100, work)
    facts["scale"] = run(sys.executable, "streaming_scale.py", work / "scale" / "concord")
    print(table(rows))
    for name, numbers in facts.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
    results = {
        "samples": count,
        "rows": rows,
        "facts": facts,
        "table": table(rows).splitlines(),
        **made_by(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_command(main))
