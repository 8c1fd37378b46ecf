"""As another user, without a home, from an installation that cannot be written: the usual pod."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
from paths import ROOT
from small_models import small_words
from training_runs import environment

from core.environment import caches
from tune.workers.operators import build

NOBODY = 65534
PACKAGES = ("core", "data_shards", "launch")
# It may read what it could not as nobody (this Python lies in somebody's folder), but write
# nothing.
AS_NOBODY = [
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=+dac_read_search",
]


def as_another_user() -> list[str]:
    """Words before a command; none where this user is no root, whom modes do not bind."""
    if os.getuid() != 0:
        return []
    may_read = subprocess.run([*AS_NOBODY, "true"], capture_output=True).returncode == 0
    return AS_NOBODY if may_read else AS_NOBODY[:4]


@pytest.fixture
def pod(small_shards: Path) -> Iterator[Path]:
    """A folder with an installation, compiled operators and data that nobody can write, and two
    that the other user can."""
    folder = Path(tempfile.mkdtemp(prefix="pod-", dir="/tmp"))
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / "code" / package, ignore=ignore)
    ignore = shutil.ignore_patterns("lock", ".ninja_lock")
    shutil.copytree(build(), folder / "operators", ignore=ignore)
    shutil.copytree(small_shards, folder / "shards")
    subprocess.run(["chmod", "-R", "a-w,a+rX", folder], check=True)
    folder.chmod(0o755)
    for name in ("tmp", "runs"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    shutil.rmtree(folder)


def train(pod: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["hscl/demo", f"data={pod / 'shards'}", *small_words("hscl"), *words]
    variables = environment(
        HOME="/nonexistent",
        PYTHONPATH=str(pod / "code"),
        TORCH_EXTENSIONS_DIR=str(pod / "operators"),
        TMPDIR=str(pod / "tmp"),
        **more,
    )
    for name in (*caches.HOMES, "RANK"):
        if name != "TORCH_EXTENSIONS_DIR":
            variables.pop(name, None)
    return subprocess.run(
        [*as_another_user(), sys.executable, "-m", "launch.train", *arguments],
        cwd="/",
        env=variables,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_needs_neither_a_home_nor_a_writable_installation(pod: Path):
    before = sorted(path for path in pod.rglob("*") if "runs" not in path.parts)
    trained = train(pod, f"run_dir={pod / 'runs/one'}", "epochs=1")
    assert trained.returncode == 0, trained.stderr
    assert "Traceback" not in trained.stderr
    assert (pod / "runs/one/report.md").is_file()
    said = [line for line in trained.stderr.splitlines() if "no writable home" in line]
    assert len(said) == 1, trained.stderr
    assert str(pod / "tmp") in said[0]
    assert "atplotlib created" not in trained.stderr
    after = sorted(path for path in pod.rglob("*") if "runs" not in path.parts)
    assert {path for path in after if path not in before and "tmp" not in path.parts} == set()
    scores = json.loads((pod / "runs/one/scores.json").read_text())
    assert scores["test"]["MAE"] > 0


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nothing has been chosen, of a user without a home."""
    for name in (*caches.HOMES, "RANK"):
        monkeypatch.setenv(name, "")  # so that what is chosen is undone, also where nothing was set
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/dev/null/nowhere")
    monkeypatch.setattr(caches, "_done", set())
    monkeypatch.setattr("numba.config.CACHE_DIR", numba.config.CACHE_DIR)


@pytest.mark.usefixtures("unset")
def test_what_cannot_be_written_goes_to_a_private_folder_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = tmp_path / "mine"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(mine))
    caches.choose_caches()
    chosen = tmp_path / f"concord-{os.getuid()}"
    assert os.environ["TRITON_CACHE_DIR"] == str(mine)
    assert os.environ["NUMBA_CACHE_DIR"] == str(chosen / "numba")
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(chosen / "torch_extensions")
    assert caches.user_cache() == chosen
    assert chosen.stat().st_mode & 0o777 == 0o700
    caches.choose_caches()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("unset")
def test_with_a_home_nothing_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    caches.choose_caches()
    assert capsys.readouterr().err == ""
    assert not any(name in os.environ for name in caches.HOMES)
    assert caches.user_cache() == tmp_path / ".cache"


@pytest.mark.usefixtures("unset")
def test_compiled_operators_that_cannot_be_locked_are_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    built = tmp_path / "image/deepspeed_shm_comm"
    built.mkdir(parents=True)
    (built / "op.so").write_bytes(b"code")
    (built / "lock").touch()
    (built / "op.so").chmod(0o444)
    monkeypatch.setattr(caches, "is_writable", lambda folder: "image" not in folder.parts)
    copies = []
    for _ in range(2):
        caches._done.clear()
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built.parent))
        caches.choose_caches()
        copies.append(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    assert copies[0] == copies[1] != built.parent
    copied = copies[0] / "deepspeed_shm_comm/op.so"
    assert copied.stat().st_mtime_ns == (built / "op.so").stat().st_mtime_ns
    assert copied.stat().st_mode & 0o200
    assert not copied.with_name("lock").exists()


@pytest.mark.parametrize("what", ["a link", "open to all", "a file"])
def test_a_folder_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / f"concord-{os.getuid()}"
    if what == "a link":
        (tmp_path / "theirs").mkdir()
        planted.symlink_to(tmp_path / "theirs")
    elif what == "open to all":
        planted.mkdir()
        planted.chmod(0o777)
    else:
        planted.touch()
    chosen = caches.private_folder()
    assert chosen is not None
    assert chosen != planted
    assert chosen.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("unset")
def test_where_nothing_can_be_written_loops_are_compiled_in_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from core.kernels import compiled_loop as compiler

    monkeypatch.setattr(caches, "is_writable", lambda folder: False)

    def refusing(*signature: object, cache: bool = False, **options: object):
        def wrap(function):
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return function

        return wrap

    monkeypatch.setattr(compiler, "njit", refusing)
    assert compiler.compiled(len)("ab") == 2
    assert "set TMPDIR" in capsys.readouterr().err
