"""Whole searches, as a user starts them: with Ray, processes, and training on a few clips."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from searches import (
    alone,
    begin,
    finish,
    journal,
    peek,
    run_module,
    verdicts,
    wait_until,
    workers,
)

from launch.config import load_recipe
from launch.train import parse

pytestmark = pytest.mark.timeout(1800)  # a slow one takes about a minute, beside other work many


def open_ports(search: subprocess.Popen[str]) -> set[str]:
    """Addresses on which the search and everything that it has started listen."""
    addresses = set()
    for process in [
        psutil.Process(search.pid),
        *psutil.Process(search.pid).children(recursive=True),
    ]:
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        addresses |= {str(c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN}
    return addresses


def by_number(folder: Path) -> dict[int, dict[str, Any]]:
    """The settings of each trial as TensorBoard shows them under HPARAMS, beside the scores."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = {}
    for path in (folder / "ray").rglob("events.out.tfevents*"):
        read = EventAccumulator(str(path)).Reload()
        content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        settings = HParamsPluginData.FromString(content).session_start_info.hparams
        values = {key: value.number_value for key, value in settings.items()}
        found[int(values.pop("number"))] = values
        assert "ray/tune/best" in read.Tags()["scalars"]
    return found


def with_spoilt_test(shards: Path, folder: Path) -> Path:
    """Shards whose test split is as large as it should be, and refused by whoever reads it."""
    shutil.copytree(shards, folder)
    for path in folder.glob("test-*"):
        path.write_bytes(bytes(path.stat().st_size))
    return folder


@pytest.mark.slow
def test_a_search_finds_the_best_records_the_bad_and_never_sees_test(
    small_shards: Path, tmp_path: Path
):
    """A grid in which one learning rate makes the loss infinite; whoever reads the test split
    fails."""
    shards = with_spoilt_test(small_shards, tmp_path / "shards")
    folder = tmp_path / "search"
    words = [
        "space=none",
        "search=grid",
        "space.optim.groups.main.lr=choice(0.002, 1e30, 0.0005)",
        "confirm=0",
    ]
    search = begin(
        shards, folder, *words, "epochs=2", "options.unimodal=false", "options.bimodal=false"
    )
    wait_until(lambda: workers(folder), search)
    assert {address.removeprefix("::ffff:") for address in open_ports(search)} == {"127.0.0.1"}
    output = finish(search)
    first, second, third = journal(folder).trials()
    assert (first.state, second.state, third.state) == ("finished", "diverged", "finished")
    assert "loss became" in second.reason
    assert "loss became" in output
    assert sorted(first.history) == sorted(third.history) == [1, 2]
    best = min(first, third, key=lambda record: record.best)
    run = parse(["hscl/demo", f"data={shards}", f"@{folder / 'best.json'}"])
    assert run.optim.groups["main"].lr == best.changes["optim.groups.main.lr"]
    events = (
        (folder / "trials" / f"{best.number:04d}" / "run" / "log.jsonl").read_text().splitlines()
    )
    seen = [json.loads(line) for line in events]
    assert best.best == min(event["MAE"] for event in seen if event["kind"] == "epoch")
    assert (folder / "report.md").is_file()
    assert not workers(folder)
    assert by_number(folder) == {record.number: record.changes for record in (first, second, third)}


def test_what_the_model_refuses_is_refused_before_ray_starts(small_shards: Path, tmp_path: Path):
    words = [
        "space=none",
        "search=grid",
        "space.options.audio_hidden=choice(8, 16)",
        "space.options.temperature=choice(0, -1)",
    ]
    output = finish(begin(small_shards, tmp_path / "search", *words), code=2)
    assert "no point of the grid can be trained" in output
    assert "temperature" in output
    assert not (tmp_path / "search" / "trials").exists()


def rates(trial: Any, epoch: int) -> list[float]:
    lines = [json.loads(line) for line in (trial.run_dir / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    per_epoch = len(steps) // epoch
    return [line["lr_main"] for line in steps[-per_epoch:]]


@pytest.mark.slow
def test_a_trial_that_copies_another_trains_on_with_its_own_settings(
    small_shards: Path, tmp_path: Path
):
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
        assert again["objective"] == first["objective"]  # the epoch of the one that it copied
        assert other["epoch"] == 2
        assert other["objective"] != second["objective"]
        assert rates(copy, 2) == pytest.approx([4 * rate for rate in usual])
    finally:
        good.cleanup()
        copy.cleanup()
    assert not workers(tmp_path)


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_goes_on_where_it_was(small_shards: Path, tmp_path: Path):
    """SIGKILL while trials run. What had ended is not repeated, what had begun goes on from its
    checkpoint, and the rungs decide as before.
    """
    folder = tmp_path / "search"
    words = ["search=random", "trials=6", "epochs=4", "confirm=0", "concurrent=2", "reduction=2"]
    search = begin(small_shards, folder, *words)
    wait_until(
        lambda: any(r.state != "running" for r in peek(folder)) and len(workers(folder)) > 0, search
    )
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
    trained = {
        path: path.read_bytes()
        for n in over
        for path in (folder / "trials" / f"{n:04d}").rglob("log.jsonl")
    }
    output = finish(run_module([f"resume={folder}"]))
    assert f"{len(over)} trials have ended before" in output
    after = journal(folder)
    assert len(after.trials()) == 6
    assert all(record.state in ("finished", "stopped") for record in after.trials())
    for path, content in trained.items():
        assert path.read_bytes() == content, "a finished trial ran again"
    for number in over:
        assert after.records[number] == before.records[number]
    decided = [
        verdict
        for verdict in verdicts(folder / "journal.jsonl", epochs=4, reduction=2)
        if verdict.taken
    ]
    assert [verdict for verdict in decided if verdict.taken != verdict.due] == []
    assert {verdict.taken for verdict in decided} == {"stop", "go on"}
    assert any(
        verdict.known_before for verdict in decided
    )  # against trials that ended before the driver was killed
    assert len((folder / "trials.csv").read_text().splitlines()) == 7
    assert finish(run_module([f"resume={folder}"])).count("started") == 0  # nothing is left to do


@pytest.mark.slow
def test_two_trials_of_two_processes_side_by_side_are_confirmed_and_leave_nothing(
    small_shards: Path, tmp_path: Path
):
    folder = tmp_path / "search"
    words = ["trials=2", "epochs=1", "scheduler=none", "processes=2", "cpus=0.5", "confirm=2"]
    search = begin(small_shards, folder, *words)
    wait_until(lambda: len(workers(folder)) == 4, search)  # both trials at once
    output = finish(search)
    assert "2 at a time" in output
    assert [record.state for record in journal(folder).trials()] == ["finished", "finished"]
    assert not workers(folder)
    body = json.loads((folder / "confirm.json").read_text())
    assert sorted(body["seeds"]) == ["1111", "1112"]
    assert set(body["test"]["MAE"]) == {"mean", "std"}
    runs = sorted((folder / "confirm").glob("*/run"))
    assert all(
        (run / "predictions.csv").is_file() for run in runs
    )  # made with the only evaluation of test
    assert not list((folder / "trials").glob("*/run/predictions.csv"))
    one = json.loads((runs[0] / "config.json").read_text())["run"]
    assert one["epochs"] == 1
    assert one["seed"] == load_recipe("hscl/demo").seed


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_starts_again_from_its_checkpoint_but_not_for_ever(
    small_shards: Path, tmp_path: Path
):
    """The first trial loses its process once, the second more often than ``retries=``."""
    folder = tmp_path / "search"
    search = begin(
        small_shards, folder, "trials=2", "epochs=6", "confirm=0", "scheduler=none", "retries=1"
    )
    killed: set[int] = set()

    def kill(trial: str) -> None:
        for pid in workers(folder / "trials" / trial):
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)

    def first_is_under_way() -> bool:
        kill("0002")
        return any(2 in record.history for record in peek(folder))

    wait_until(first_is_under_way, search)
    kill("0001")
    wait_until(
        lambda: kill("0002") or any(record.state == "failed" for record in peek(folder)), search
    )
    output = finish(search)
    first, second = journal(folder).trials()
    assert (first.state, first.starts, sorted(first.history)) == ("finished", 2, [1, 2, 3, 4, 5, 6])
    assert "starts again" in output
    assert "SIGKILL" in output
    assert "going on at epoch" in (folder / "trials" / "0001" / "output.log").read_text()
    assert (second.state, second.starts, second.history) == ("failed", 2, {})
    assert "SIGKILL" in second.reason
    assert "trial 2/2  failed" in output
    assert "1 trials came to no normal end" in (folder / "report.md").read_text()
    assert not workers(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)  # three searches one after the other
def test_the_same_seed_gives_the_same_trials_and_values_also_when_ctrl_c_comes_in_between(
    small_shards: Path, tmp_path: Path
):
    words = ["trials=3", "epochs=2", "confirm=0", "concurrent=1"]
    finish(begin(small_shards, tmp_path / "one", *words))
    folder = tmp_path / "two"
    search = begin(small_shards, folder, *words)
    wait_until(lambda: any(record.history for record in peek(folder)), search)
    search.send_signal(signal.SIGINT)
    assert f"--resume {folder}" in finish(search, code=130)
    assert not workers(folder)
    assert any(record.state == "running" for record in journal(folder).trials())
    finish(run_module([f"resume={folder}"]))
    found = []
    for name in ("one", "two"):
        records = journal(tmp_path / name).trials()
        found.append(
            [
                (r.changes, r.state, {n: e["objective"] for n, e in r.history.items()})
                for r in records
            ]
        )
    assert found[0] == found[1]
    assert len(found[0]) == 3
    assert {state for _, state, _ in found[0]} <= {"finished", "stopped"}


@pytest.mark.slow
def test_a_population_goes_on_from_its_better_half(small_shards: Path, tmp_path: Path):
    folder = tmp_path / "search"
    words = ["search=pbt", "trials=2", "epochs=4", "interval=2", "confirm=0", "patience=0"]
    output = finish(begin(small_shards, folder, *words))
    first, second = journal(folder).trials()
    assert (first.state, second.state) == ("finished", "finished")
    assert sorted(first.history) == sorted(second.history) == [1, 2, 3, 4]
    early = [
        first.history[epoch]["objective"] == second.history[epoch]["objective"] for epoch in (1, 2)
    ]
    assert early == [True, True]  # one has the other's past
    assert (
        first.history[4]["objective"] != second.history[4]["objective"]
    )  # and a future of its own
    assert "goes on" in output
