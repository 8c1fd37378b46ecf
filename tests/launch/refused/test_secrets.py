"""What a run, a search and their failures write and print, searched for the credentials of the
data."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT
from shard_server import Handler, Server, serving
from small_models import small_words
from trained_models import changed_config, untrained_bundle
from training_runs import environment

import concord.notebook
from core.environment.credentials import VARIABLE
from data_shards.shards.manifest import read_manifest
from launch.config import load_recipe, override
from tune.settings import read_search

SIGNATURE = "se=2030&sig=geheim%2Bgeheim"
SECRETS = ("geheim", "sig=", "se=2030")


class Signed(Handler):
    def _answer(self, send: bool) -> None:
        if SIGNATURE not in self.path:
            return self._plain(403)
        return super()._answer(send)


@pytest.fixture
def signed(small_shards: Path) -> Iterator[Server]:
    with serving(Server(small_shards, Signed)) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "")


def run(module: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def tell_tales(folder: Path, *texts: str) -> list[str]:
    """Files, and numbers of texts, that hold some part of the secret."""
    found = [str(number) for number, text in enumerate(texts) if any(s in text for s in SECRETS)]
    for path in folder.rglob("*"):
        if path.is_file() and any(s.encode() in path.read_bytes() for s in SECRETS):
            found.append(str(path))
    return found


@pytest.mark.timeout(300)
def test_a_run_on_a_signed_url_keeps_the_signature_to_itself(signed: Server, tmp_path: Path):
    run_dir = tmp_path / "run"
    words = [
        "baseline/demo",
        f"data={signed.url}?{SIGNATURE}",
        f"cache={tmp_path / 'cache'}",
        f"run_dir={run_dir}",
        *small_words("baseline"),
        "epochs=1",
    ]
    trained = run("launch.train", *words)
    assert trained.returncode == 0, trained.stderr
    recorded = json.loads((run_dir / "config.json").read_text())
    assert recorded["run"]["data"] == signed.url
    assert f"data={signed.url}?***" in recorded["provenance"]["command"]
    assert signed.url in (run_dir / "report.md").read_text()
    # again: without the signature it is one line, with it the run goes on
    refused = run("launch.evaluate", str(run_dir))
    assert refused.returncode == 2
    assert "the server answers 403" in refused.stderr
    assert VARIABLE in refused.stderr
    scored = run("launch.evaluate", str(run_dir), **{VARIABLE: f"{signed.url}?{SIGNATURE}"})
    assert scored.returncode == 0, scored.stderr
    resumed = run("launch.train", *words)
    assert resumed.returncode == 0, resumed.stderr
    outputs = [
        text for done in (trained, refused, scored, resumed) for text in (done.stdout, done.stderr)
    ]
    assert tell_tales(tmp_path, *outputs) == []


def bundle_of(shards: Path, folder: Path) -> Path:
    """A model that says it was trained on data with the vocabulary of these shards."""
    untrained_bundle(folder, with_tokenizer=False)
    schema = json.loads((folder / "config.json").read_text())["schema"]
    schema["tokenizer"] = read_manifest(shards).tokenizer
    changed_config(folder, schema=schema)
    return folder


def test_commands_that_look_at_a_signed_url_keep_the_signature_to_themselves(
    signed: Server,
    small_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = str(bundle_of(small_shards, tmp_path / "bundle"))
    url = f"{signed.url}?{SIGNATURE}"
    out = str(tmp_path / "scores.csv")
    commands = [
        ("data_shards.inspect", [url]),
        ("launch.predict", [bundle, url, "--split", "test", "--out", out]),
    ]
    for module, words in commands:
        main = importlib.import_module(module).main
        assert main(words) == 0, capfd.readouterr().err
        monkeypatch.setenv(VARIABLE, "")  # a signature that was given once is known from then on
        assert main([signed.url if word == url else word for word in words]) == 2
        said = capfd.readouterr()
        assert "the server answers 403" in said.err
        assert tell_tales(tmp_path, said.out, said.err) == []


URL = f"http://me:geheim@127.0.0.1:9/data?{SIGNATURE}"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("launch.train", ["baseline/demo", URL]),
        ("launch.train", ["baseline/demo", f"dta={URL}"]),
        ("launch.train", ["baseline/demo", f"data={URL},{URL}", "epochs=x"]),
        ("launch.train", ["baseline/demo", f"data=ftp://me:geheim@host/?{SIGNATURE}"]),
        ("launch.train", [f"--data={URL}"]),
        ("launch.train", ["baseline/demo", f"@{URL}"]),
        ("launch.train", ["baseline/demo", f"run_dir={URL}"]),
        ("launch.evaluate", [URL]),
        ("launch.predict", [URL, URL, "--out", "o.csv"]),
        ("launch.predict", ["no/such/bundle", "--text", URL]),
        ("launch.export", [URL, "--out", "b"]),
        ("data_shards.verify", [f"ftp://me:geheim@host/?{SIGNATURE}"]),
        ("data_shards.convert", [URL, "--out", "d"]),
        ("data_shards.extract.__main__", [URL, "--out", "d"]),
        ("data_shards.inspect", [f"ftp://me:geheim@host/?{SIGNATURE}"]),
        ("tune.search", ["baseline/demo", f"data={URL}", "storage=s3://K:geheim@bucket/x"]),
        ("tune.search", ["baseline/demo", URL]),
    ],
)
def test_no_refusal_repeats_credentials(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    module: str,
    words: list[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.train.init_processes", lambda *_: None)
    monkeypatch.setattr("launch.evaluate.init_processes", lambda *_: None)
    try:
        code = importlib.import_module(module).main(words)
    except SystemExit as left:
        code = left.code
    assert code == 2
    said = capfd.readouterr()
    assert tell_tales(tmp_path, said.out, said.err) == []
    assert said.err.count("error: ") == 1, said.err


@pytest.mark.parametrize(
    "data", ["https://me:a,geheim@host/d", f"https://host/d?a=1,2&{SIGNATURE}"]
)
def test_no_setting_holds_credentials(data: str, monkeypatch: pytest.MonkeyPatch):
    assert override(load_recipe("baseline/demo"), [f"data={data}"]).data == "https://host/d"
    search = read_search(["baseline/demo", f"data={data}", "space.hidden=choice(4,8)"])
    assert search.changes["data"] == "https://host/d"
    assert search.run().data == "https://host/d"
    started: list[str] = []

    def note(words: list[str], processes: int) -> tuple[int, str]:
        started.extend(words)
        return 2, ""

    monkeypatch.setattr(concord.notebook, "run_processes", note)
    with pytest.raises(concord.notebook.TrainingFailed):
        concord.notebook.train("baseline/demo", data=data)
    assert "data=https://host/d" in started
    assert not any(secret in word for word in started for secret in SECRETS)
