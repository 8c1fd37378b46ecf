"""The page and its JSON: what is answered, what is refused, and that nothing stays."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from media_files import tone, write_clip
from trained_models import untrained_bundle

from core.command import Refused
from data_shards.extract.extractors.registry import choose
from launch.predicting.trained import open_trained
from launch.serving import analysis, serve
from launch.serving.analysis import Analyst
from launch.serving.app import PAGE, ServeLimits, make_app
from launch.serving.workers import ModelChoice, TimeUp, WorkerLost, Workers, report_of

ADDRESS = "http://127.0.0.1:8000"


class InProcess:
    """The work of a worker, done here."""

    def __init__(self, analyst: Analyst):
        self.analyst = analyst
        self.about = analyst.about()
        self.jobs: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    async def run(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        self.jobs.append(job)
        if self.failure is not None:
            raise self.failure
        return report_of(self.analyst, job)


@pytest.fixture(scope="module")
def analyst(tmp_path_factory: pytest.TempPathFactory) -> Analyst:
    recipe = choose({"text": "given", "audio": "egemaps"}).recipe
    folder = tmp_path_factory.mktemp("served") / "bundle"
    untrained_bundle(folder, widths={"audio": 25}, extraction=asdict(recipe))
    return Analyst(open_trained(str(folder)))


@pytest.fixture
def workers(analyst: Analyst) -> InProcess:
    return InProcess(analyst)


@pytest.fixture
def client(workers: InProcess) -> TestClient:
    app = make_app(workers, ServeLimits(upload=200_000, seconds=5))
    return TestClient(app, base_url=ADDRESS)


def test_the_page_and_its_parts_come_from_here_alone(client: TestClient):
    for place in ("/", "/page.css", "/page.js"):
        answer = client.get(place)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        addresses = set(re.findall(r"https?://[^\s\"')]+", answer.text))
        assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of a language, not a place
    about = client.get("/api/about").json()
    assert (about["low"], about["high"], about["no_clips"]) == (-3.0, 3.0, "")
    for place in ("/docs", "/redoc"):
        assert client.get(place).status_code == 404


def test_what_the_page_shows_has_a_name_for_those_who_do_not_see_it():
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    assert '<html lang="en">' in page
    for control in re.findall(r'<(?:textarea|input) id="([a-z]+)"', page):
        assert f'<label for="{control}">' in page, control
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    for name in re.findall(r'byId\("([a-z-]+)"\)', script):
        assert f'id="{name}"' in page, name
    assert "innerHTML" not in script  # what a clip or a file is called is never markup


def test_a_sentence_is_answered(client: TestClient):
    report = client.post("/api/sentence", json={"text": "the film was great"}).json()
    assert -10 < report["score"] < 10
    assert report["seen"] == ["text"]
    assert report["transcript"] == "the film was great"
    assert report["not_found"] == ["audio: a sentence has none"]
    assert report["curve"] == []


def test_a_clip_is_answered_with_what_each_modality_adds(
    client: TestClient, analyst: Analyst, tmp_path: Path, workers: InProcess
):
    clip = write_clip(tmp_path / "tone.m4a", 1.5, sound=tone(1.5), has_pictures=False)
    before = set(os.listdir(tempfile.gettempdir()))
    words = {"transcript": "the film was great"}
    report = client.post("/api/clip", params=words, content=clip.read_bytes()).json()
    assert report["seen"] == ["text", "audio"]
    assert [share["modality"] for share in report["shares"]] == ["text", "audio"]
    for share in report["shares"]:
        assert share["without"] + share["share"] == pytest.approx(report["score"], abs=1e-5)
    text_alone = analyst.sentence("the film was great")["score"]
    assert report["shares"][1]["without"] == pytest.approx(text_alone, abs=1e-5)
    assert not [
        name for name in set(os.listdir(tempfile.gettempdir())) - before if "concord-" in name
    ]
    assert not os.path.exists(workers.jobs[-1]["file"])


def test_a_long_clip_has_a_curve(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(analysis, "WINDOW", 1.0)
    clip = write_clip(
        tmp_path / "tone.m4a", 2.5, sound=tone(2.5, 8000), rate=8000, has_pictures=False
    )
    report = client.post("/api/clip", content=clip.read_bytes()).json()
    edges = [(point["start"], point["end"]) for point in report["curve"]]
    assert edges == [(0, 1), (1, pytest.approx(2.5, abs=0.2))]
    assert all(point["seen"] == ["audio"] for point in report["curve"])


def test_what_is_no_clip_is_said_to_lack_everything(client: TestClient):
    report = client.post("/api/clip", content=b"no clip at all").json()
    assert report["score"] is None
    assert len(report["not_found"]) == 2


def test_limits_are_kept(client: TestClient, workers: InProcess):
    assert client.post("/api/clip", content=b"x" * 200_001).status_code == 413

    def pieces() -> Any:
        for _ in range(300):
            yield b"x" * 1000

    assert client.post("/api/clip", content=pieces()).status_code == 413  # of no stated length
    assert client.post("/api/clip", content=b"").status_code == 400
    assert client.post("/api/sentence", json={"text": "x" * 10_001}).status_code == 422
    assert client.post("/api/sentence", json={"text": " "}).status_code == 422
    assert not [job for job in workers.jobs if job["kind"] == "clip"]
    for failure, code in ((TimeUp(), 504), (WorkerLost(), 500), (Refused("no"), 422)):
        workers.failure = failure
        answer = client.post("/api/sentence", json={"text": "good"})
        assert answer.status_code == code
        assert isinstance(answer.json()["detail"], str)


def test_other_pages_and_other_names_are_refused(client: TestClient, workers: InProcess):
    asked = {"json": {"text": "good"}}
    elsewhere = client.post("/api/sentence", headers={"Origin": "http://elsewhere"}, **asked)
    assert elsewhere.status_code == 403
    rebound = client.post("/api/sentence", headers={"Host": "elsewhere:8000"}, **asked)
    assert rebound.status_code == 400
    assert workers.jobs == []
    own = client.post("/api/sentence", headers={"Origin": ADDRESS}, **asked)
    assert own.status_code == 200


def test_classes_are_answered_with_probabilities(tmp_path: Path):
    folder = untrained_bundle(tmp_path / "bundle", names=("no", "yes"))
    report = Analyst(open_trained(str(folder))).sentence("the film was great")
    assert report["score"] is None
    assert sum(report["classes"].values()) == pytest.approx(1)


def test_a_model_that_can_be_asked_nothing_is_not_served(tmp_path: Path):
    folder = untrained_bundle(tmp_path / "bundle", with_tokenizer=False)
    with pytest.raises(Refused, match=r"holds no tokenizer.* were not made by concord extract"):
        Analyst(open_trained(str(folder)))


def test_odd_words_of_the_command_are_refused(tmp_path: Path, capsys: Any):
    folder = str(untrained_bundle(tmp_path / "bundle"))
    for words, said in [
        ([folder, "--workers", "0"], "--workers 0: from 1 to"),
        ([folder, "--workers", "100000"], "one for each core"),
        ([folder, "--seconds", "0"], "are positive"),
        ([folder, "epochs=1"], "has no settings"),
        ([str(tmp_path / "nothing")], "neither the directory of a run nor"),
    ]:
        assert serve.main(words) == 2, words
        assert said in capsys.readouterr().err, words


@pytest.mark.slow
def test_a_job_that_takes_too_long_ends_and_another_worker_answers(tmp_path: Path):
    import asyncio

    folder = untrained_bundle(tmp_path / "bundle")
    workers = Workers(ModelChoice(str(folder)), 1)

    async def ask() -> tuple[int, dict[str, Any], int]:
        first = workers.all[0].process.pid
        job = {"kind": "sentence", "text": "the film was great"}
        with pytest.raises(TimeUp):
            await workers.run(job, 0.001)
        report = await workers.run(job, 300)
        os.kill(workers.all[0].process.pid, 9)
        with pytest.raises(WorkerLost):
            await workers.run(job, 300)
        return first, report, workers.all[0].process.pid

    try:
        first, report, last = asyncio.run(ask())
    finally:
        workers.close()
    assert isinstance(report["score"], float)
    assert first != last
    with pytest.raises(Refused, match="neither the directory"):
        Workers(ModelChoice(str(tmp_path / "nothing")), 1)
