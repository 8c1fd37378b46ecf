"""Conversion by several processes, and every interruption: it goes on to the same bytes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from raw_pickles import Content, hashes, save

from data_shards import convert as entry
from data_shards.convert import convert
from data_shards.shards.manifest import MANIFEST, DataError, read_manifest
from data_shards.synthetic import write


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, processes: int) -> None:
    write(tmp_path / "made.pkl", 60)
    convert(tmp_path / "made.pkl", tmp_path / "one", shard_size=7)
    convert(tmp_path / "made.pkl", tmp_path / "many", shard_size=7, processes=processes)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "many")
    assert len(hashes(tmp_path / "one")) == 1 + 2 * (6 + 1 + 3)


def test_an_error_in_another_process_arrives_as_it_is(content: Content, tmp_path: Path) -> None:
    content["train"]["text_bert"][20, 2, 0] = 1
    with pytest.raises(DataError, match="train, sample 20"):
        convert(save(content, tmp_path), tmp_path / "out", shard_size=4, processes=2)


def _command(*arguments: Any, code: str = "", **options: Any) -> subprocess.Popen[str]:
    """``python -m data_shards.convert`` in its own process, after ``code``."""
    imports = "import sys\nfrom data_shards import convert\nfrom data_shards.shards import jobs"
    main = f"{imports}\n{code}\nsys.exit(convert.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", main, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        **options,
    )


# Says when it has written two shards, then waits to be interrupted.
PAUSE = """
import time
run_job, records = jobs.run_job, []
def slowly(dataset, out, job):
    if len(records) == 2:
        print("two", flush=True)
        time.sleep(600)
    records.append(run_job(dataset, out, job))
    return records[-1]
jobs.run_job = slowly
"""


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(
    tmp_path: Path, signal_number: int, code: int
) -> None:
    write(tmp_path / "made.pkl", 60)
    process = _command(
        tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 7, code=PAUSE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "two\n"
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    if signal_number == signal.SIGINT:
        assert "Traceback" not in errors
        assert errors.splitlines()[-1].startswith("stopped; run the same command again")
    with pytest.raises(DataError, match="no finished shard folder"):
        read_manifest(tmp_path / "out")
    (tmp_path / "out" / ".train-000002.tar.partial").write_bytes(b"half a shard")
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(done) == 2
    convert(tmp_path / "made.pkl", tmp_path / "out", shard_size=7)
    convert(tmp_path / "made.pkl", tmp_path / "whole", shard_size=7)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert all(
        (tmp_path / "out" / name).stat().st_mtime_ns == changed for name, changed in done.items()
    )


# Kills itself at the nth of the moments between which a file becomes complete.
DIE = """
import os, signal
left = [{moments}]
def counted(real):
    def call(*arguments):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
"""


def test_a_conversion_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "made.pkl", 60)
    convert(tmp_path / "made.pkl", tmp_path / "whole", shard_size=7)
    arguments = (tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 7)
    kills = 0
    for moments in [*range(1, 20), *range(20, 120, 7)]:
        process = _command(*arguments, code=DIE.format(moments=moments))
        _, errors = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            break
        kills += 1
        for tar in (tmp_path / "out").glob("*.tar"):  # under its own name, so whole
            assert tar.read_bytes() == (tmp_path / "whole" / tar.name).read_bytes()
    assert process.returncode == 0
    assert kills > 5
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    """Else they would go on writing beside the conversion that continues."""
    write(tmp_path / "made.pkl", 60)
    slow = (
        "import os, time\ndef slowly(*_):\n print(os.getpid(), flush=True)\n time.sleep(600)\n"
        "jobs.run_job = slowly"
    )
    process = _command(
        tmp_path / "made.pkl", "--out", tmp_path / "out", "--processes", 2, code=slow
    )
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.communicate(timeout=300)  # returns when the last worker has let go of the pipe
    assert workers[0] != workers[1]
    convert(tmp_path / "made.pkl", tmp_path / "out")


def test_ctrl_c_stops_all_processes_and_keeps_what_is_done(tmp_path: Path) -> None:
    write(tmp_path / "made.pkl", 60)
    slow = (
        "import os, time\nrun_job = jobs.run_job\n"
        "def slowly(*job):\n record = run_job(*job)\n os.write(1, b'one\\n')\n"
        " time.sleep(.2)\n return record\njobs.run_job = slowly"
    )
    arguments = (
        tmp_path / "made.pkl",
        "--out",
        tmp_path / "out",
        "--shard-size",
        2,
        "--processes",
        2,
    )
    process = _command(*arguments, code=slow, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers alike
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert 1 <= len(list((tmp_path / "out").glob("*.tar"))) < 30
    assert len(list((tmp_path / "out" / ".convert").glob("*.json"))) == len(
        list((tmp_path / "out").glob("*.tar"))
    )


def test_a_full_disk_ends_with_one_line_and_no_half_shard(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in the middle of a
    shard."""
    write(tmp_path / "made.pkl", 60)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    process = _command(tmp_path / "made.pkl", "--out", tmp_path / "out", preexec_fn=limit)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 4
    assert "Traceback" not in errors
    assert "train-0000" in errors.splitlines()[-1]
    assert "a file may not become as large as this one has to" in errors
    assert "run the same command again" in errors
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".convert"}
    convert(tmp_path / "made.pkl", tmp_path / "out")


def test_a_shard_that_changed_before_the_end_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "made.pkl", 60)
    process = _command(
        tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 7, code=PAUSE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    first, second = sorted((tmp_path / "out").glob("*.tar"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.with_suffix(".idx").unlink()
    convert(tmp_path / "made.pkl", tmp_path / "out", shard_size=7)
    convert(tmp_path / "made.pkl", tmp_path / "whole", shard_size=7)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_finished_conversion_is_left_alone_and_other_options_need_force(tmp_path: Path) -> None:
    raw, out = tmp_path / "made.pkl", tmp_path / "out"
    write(raw, 60)
    first = convert(raw, out, shard_size=7)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert convert(raw, out, shard_size=7) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(DataError, match="--force"):
        convert(raw, out, shard_size=20)
    assert read_manifest(out) == first
    convert(raw, out, shard_size=20, force=True)
    convert(raw, tmp_path / "other", shard_size=20)
    assert hashes(out) == hashes(tmp_path / "other")
    (out / MANIFEST).write_text("{")
    assert convert(raw, out, shard_size=20, force=True) == read_manifest(tmp_path / "other")


def test_a_folder_with_other_things_is_not_written_to(tmp_path: Path) -> None:
    write(tmp_path / "made.pkl", 60)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(DataError, match="is not empty and is no shard folder"):
            convert(tmp_path / "made.pkl", tmp_path / "out", force=force)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_two_conversions_do_not_write_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "LOCK_WAIT", 0.1)
    write(tmp_path / "made.pkl", 60)
    process = _command(
        tmp_path / "made.pkl", "--out", tmp_path / "out", "--shard-size", 7, code=PAUSE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(DataError, match="another conversion is writing"):
            convert(tmp_path / "made.pkl", tmp_path / "out", shard_size=7)
    finally:
        process.kill()
        process.communicate()
