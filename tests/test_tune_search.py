"""Whole searches, as a user starts them: with Ray, real processes, and training on a few made-up clips."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.config import load_recipe
from launch.train import parse
from tune.journal import Journal
from tune.trial import Job, Trial

ROOT = Path(__file__).parents[1]
FAST = ["options.layers=1", "options.projection=8", "options.hidden=8"]


def begin(shards: Path, folder: Path, *words: str, **around: str) -> subprocess.Popen[str]:
    return run_module(["hscl/demo", f"data={shards}", f"run_dir={folder}", *FAST, *words], **around)


def run_module(words: list[str], **around: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tune.search", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **around},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(search: subprocess.Popen[str], code: int = 0) -> str:
    try:
        said, _ = search.communicate(timeout=540)
    except subprocess.TimeoutExpired:
        search.kill()
        said, _ = search.communicate()
    assert search.returncode == code, said
    return said


def journal(folder: Path, name: str = "journal.jsonl") -> Journal:
    with Journal(folder / name) as read:
        return read


def workers(folder: Path) -> list[int]:
    """Processes of trials in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(f"{folder}/" in word for word in words):
            found.append(process.pid)
    return found


def wait_until(condition: Callable[[], Any], search: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert search.poll() is None, search.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.1)


def open_ports(search: subprocess.Popen[str]) -> set[str]:
    """Addresses on which the search and everything that it has started listen."""
    addresses = set()
    for process in [psutil.Process(search.pid), *psutil.Process(search.pid).children(recursive=True)]:
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        addresses |= {str(c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN}
    return addresses


def without_test(shards: Path, folder: Path) -> Path:
    shutil.copytree(shards, folder)
    for path in folder.glob("test-*"):
        path.unlink()
    return folder


@pytest.mark.slow
def test_a_search_finds_the_best_records_the_bad_and_never_sees_test(small_shards: Path, tmp_path: Path):
    """A grid in which one learning rate makes the loss infinite, on a folder whose test shards are gone."""
    shards = without_test(small_shards, tmp_path / "shards")
    folder = tmp_path / "search"
    words = ["space=none", "search=grid", "space.optim.groups.main.lr=choice(0.002, 1e30, 0.0005)", "confirm=0"]
    search = begin(shards, folder, *words, "epochs=2", "options.unimodal=false", "options.bimodal=false")
    wait_until(lambda: workers(folder), search)
    assert {address.removeprefix("::ffff:") for address in open_ports(search)} == {"127.0.0.1"}
    said = finish(search)
    first, second, third = journal(folder).trials()
    assert (first.state, second.state, third.state) == ("finished", "diverged", "finished")
    assert "loss became" in second.reason
    assert "loss became" in said
    assert sorted(first.history) == sorted(third.history) == [1, 2]
    best = min(first, third, key=lambda record: record.best)
    run = parse(["hscl/demo", f"data={shards}", f"@{folder / 'best.json'}"])
    assert run.optim.groups["main"].lr == best.changes["optim.groups.main.lr"]
    events = (folder / "trials" / f"{best.number:04d}" / "run" / "log.jsonl").read_text().splitlines()
    seen = [json.loads(line) for line in events]
    assert best.best == min(event["MAE"] for event in seen if event["kind"] == "epoch")
    assert (folder / "report.md").is_file()
    assert not workers(folder)
    assert list(folder.glob("ray/*/*/events.out.tfevents*"))  # TensorBoard's hparams


def test_what_the_model_refuses_is_refused_before_ray_starts(small_shards: Path, tmp_path: Path):
    words = [
        "space=none",
        "search=grid",
        "space.options.audio_hidden=choice(8, 16)",
        "space.options.temperature=choice(0, -1)",
    ]
    said = finish(begin(small_shards, tmp_path / "search", *words), code=2)
    assert "no point of the grid can be trained" in said
    assert "temperature" in said
    assert not (tmp_path / "search" / "trials").exists()


def alone(folder: Path, shards: Path, **changes: Any) -> Trial:
    """The actor of a trial, in this process."""

    class Here(Trial):
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, job=Job("hscl/demo", {"data": str(shards), "epochs": 4}, str(folder), cwd=str(ROOT)))

    return Here(config=changes)


def rates(trial: Trial, epoch: int) -> list[float]:
    lines = [json.loads(line) for line in (trial.run_dir / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    per_epoch = len(steps) // epoch
    return [line["lr_main"] for line in steps[-per_epoch:]]


@pytest.mark.slow
def test_a_trial_that_copies_another_trains_on_with_its_own_settings(small_shards: Path, tmp_path: Path):
    """As in population based training: the weights are the other's, the learning rate is not."""
    key = "optim.groups.main.lr"
    good = alone(tmp_path, small_shards, number=1, **{key: 1e-3})
    copy = alone(tmp_path, small_shards, number=2, **{key: 4e-3})
    try:
        first = good.step()
        good.save_checkpoint(str(tmp_path / "carried"))
        (tmp_path / "carried").mkdir(exist_ok=True)
        second = good.step()
        usual = rates(good, 2)
        copy.load_checkpoint(str(tmp_path / "carried"))
        again, other = copy.step(), copy.step()
        assert again["badness"] == first["badness"]  # the epoch of the one that it copied
        assert other["epoch"] == 2
        assert other["badness"] != second["badness"]
        assert rates(copy, 2) == pytest.approx([4 * rate for rate in usual])
    finally:
        good.cleanup()
        copy.cleanup()
    assert not workers(tmp_path)


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_goes_on_where_it_was(small_shards: Path, tmp_path: Path):
    """SIGKILL while trials run. What had ended is not repeated, what had begun goes on from its checkpoint, and the
    rungs decide as before."""
    folder = tmp_path / "search"
    words = ["search=random", "trials=6", "epochs=6", "confirm=0", "concurrent=2", "reduction=2"]
    search = begin(small_shards, folder, *words)
    wait_until(lambda: any(r.state != "running" for r in peek(folder)) and len(workers(folder)) > 0, search)
    search.kill()
    search.communicate()
    until = time.monotonic() + 30
    while workers(folder):
        assert time.monotonic() < until, "processes outlived the driver"
        time.sleep(0.1)
    before = journal(folder)
    over = {record.number for record in before.trials() if record.state != "running"}
    assert over
    assert len(over) < 6
    trained = {path: path.read_bytes() for n in over for path in (folder / "trials" / f"{n:04d}").rglob("log.jsonl")}
    said = finish(run_module([f"resume={folder}"]))
    assert f"{len(over)} trials have ended before" in said
    after = journal(folder)
    assert len(after.trials()) == 6
    assert all(record.state in ("finished", "stopped") for record in after.trials())
    for path, content in trained.items():
        assert path.read_bytes() == content, "a finished trial ran again"
    for number in over:
        assert after.records[number] == before.records[number]
    rungs_are_respected(after, reduction=2, epochs=6)
    assert len((folder / "trials.csv").read_text().splitlines()) == 7
    assert finish(run_module([f"resume={folder}"])).count("started") == 0  # nothing is left to do


def peek(folder: Path) -> list[Any]:
    """The trials, without opening the journal for writing."""
    path = folder / "journal.jsonl"
    if not path.is_file():
        return []
    copy = path.with_name("peek.jsonl")
    shutil.copy(path, copy)
    return journal(folder, "peek.jsonl").trials()


def rungs_are_respected(read: Journal, reduction: int, epochs: int) -> None:
    """Whoever went past a rung was, when it came there, among the best of those that had come before."""
    milestone = 1
    while milestone < epochs:
        arrivals = []
        for record in read.trials():
            if milestone in record.history:
                best = min(e["badness"] for n, e in record.history.items() if n <= milestone)
                arrivals.append((record.history[milestone]["time"], best, max(record.history) > milestone))
        arrivals.sort()
        for place, (_, best, went_on) in enumerate(arrivals):
            earlier = sorted(value for _, value, _ in arrivals[:place])
            if went_on and len(earlier) >= reduction:
                assert best <= earlier[-1], f"a trial that was worse than all before it went past epoch {milestone}"
        milestone *= reduction


@pytest.mark.slow
def test_two_trials_of_two_processes_side_by_side_are_confirmed_and_leave_nothing(small_shards: Path, tmp_path: Path):
    folder = tmp_path / "search"
    words = ["trials=2", "epochs=2", "scheduler=none", "processes=2", "cpus=0.5", "confirm=2"]
    search = begin(small_shards, folder, *words)
    wait_until(lambda: len(workers(folder)) == 4, search)  # both trials at once
    said = finish(search)
    assert "2 at a time" in said
    assert [record.state for record in journal(folder).trials()] == ["finished", "finished"]
    assert not workers(folder)
    body = json.loads((folder / "confirm.json").read_text())
    assert sorted(body["seeds"]) == ["1111", "1112"]
    assert set(body["test"]["MAE"]) == {"mean", "std"}
    runs = sorted((folder / "confirm").glob("*/run"))
    assert all((run / "predictions.csv").is_file() for run in runs)  # made with the only evaluation of test
    assert not list((folder / "trials").glob("*/run/predictions.csv"))
    one = json.loads((runs[0] / "config.json").read_text())["run"]
    assert one["epochs"] == 2
    assert one["seed"] == load_recipe("hscl/demo").seed


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_started_again_from_its_checkpoint(small_shards: Path, tmp_path: Path):
    folder = tmp_path / "search"
    search = begin(small_shards, folder, "trials=1", "epochs=5", "confirm=0", "scheduler=none")
    wait_until(lambda: any(2 in record.history for record in peek(folder)), search)
    for pid in workers(folder):
        os.kill(pid, signal.SIGKILL)
    said = finish(search)
    [record] = journal(folder).trials()
    assert (record.state, record.starts, sorted(record.history)) == ("finished", 2, [1, 2, 3, 4, 5])
    assert "starts again" in said
    assert "SIGKILL" in said
    assert "going on at epoch" in (folder / "trials" / "0001" / "output.log").read_text()


@pytest.mark.slow
def test_ctrl_c_leaves_a_search_that_can_go_on(small_shards: Path, tmp_path: Path):
    folder = tmp_path / "search"
    search = begin(small_shards, folder, "trials=2", "epochs=4", "confirm=0", "concurrent=1", "scheduler=none")
    wait_until(lambda: any(record.history for record in peek(folder)), search)
    search.send_signal(signal.SIGINT)
    assert f"resume={folder}" in finish(search, code=130)
    assert not workers(folder)
    finish(run_module([f"resume={folder}"]))
    assert [record.state for record in journal(folder).trials()] == ["finished", "finished"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_and_values(small_shards: Path, tmp_path: Path):
    found = []
    for name in ("one", "two"):
        finish(begin(small_shards, tmp_path / name, "trials=3", "epochs=2", "confirm=0", "concurrent=1"))
        records = journal(tmp_path / name).trials()
        found.append([(r.changes, r.state, {n: e["badness"] for n, e in r.history.items()}) for r in records])
    assert found[0] == found[1]
    assert len(found[0]) == 3


@pytest.mark.slow
def test_a_population_goes_on_from_its_better_half(small_shards: Path, tmp_path: Path):
    folder = tmp_path / "search"
    words = ["search=pbt", "trials=2", "epochs=4", "interval=2", "confirm=0", "patience=0"]
    said = finish(begin(small_shards, folder, *words))
    first, second = journal(folder).trials()
    assert (first.state, second.state) == ("finished", "finished")
    assert sorted(first.history) == sorted(second.history) == [1, 2, 3, 4]
    early = [first.history[epoch]["badness"] == second.history[epoch]["badness"] for epoch in (1, 2)]
    assert early == [True, True]  # one has the other's past
    assert first.history[4]["badness"] != second.history[4]["badness"]  # and a future of its own
    assert "goes on" in said


@pytest.mark.slow
def test_a_search_joins_a_cluster_and_keeps_its_runs_at_a_uri(small_shards: Path, tmp_path: Path):
    """Trials run in folders of the node, and go on, and are evaluated, from checkpoints at the URI."""
    folder, store = tmp_path / "search", tmp_path / "store"
    with socket.socket() as free, socket.socket() as client:
        free.bind(("127.0.0.1", 0))
        client.bind(("127.0.0.1", 0))
        port, client_port = free.getsockname()[1], client.getsockname()[1]
    around = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    words = ["start", "--head", "--block", f"--port={port}", f"--ray-client-server-port={client_port}"]
    words += ["--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000"]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    command = [sys.executable, "-m", "ray.scripts.scripts", *words]
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen(command, env={**os.environ, **around}, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert head.poll() is None, (tmp_path / "ray.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        names = [f"address=127.0.0.1:{port}", f"storage=file://{store}", "scheduler=none"]
        begun = begin(small_shards, folder, "trials=1", "epochs=2", "confirm=1", *names, **around)
        finish(begun)
    finally:
        head.terminate()
        head.wait()
    [record] = journal(folder).trials()
    assert record.state == "finished"
    assert record.checkpoint.startswith(str(store))
    assert not (folder / "trials").exists()
    assert json.loads((folder / "confirm.json").read_text())["test"]["MAE"]["std"] == 0.0
