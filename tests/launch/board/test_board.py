"""The board: what it finds, what it answers, and what it does not give away."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from made_up_runs import made_up_run

from launch.board.board import main
from launch.board.board_app import make_board_app
from launch.board.survey import Survey, state_of

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    made_up_run(folder / "one")
    made_up_run(folder / "deep" / "study" / "two", "seed=7", off=0.3)
    begun = made_up_run(folder / "begun")
    (begun / "report.md").unlink()
    (begun / "scores.json").unlink()
    (folder / "deep" / "study" / "study.json").write_text(json.dumps({"title": "A study"}))
    (folder / "deep" / "study" / "report.html").write_text("<p>a table</p>")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "report.html").write_text("secret")
    return folder


@pytest.fixture
def client(root: Path) -> TestClient:
    return TestClient(make_board_app(root), base_url=ADDRESS)


def test_all_runs_and_studies_are_found(client: TestClient):
    answer = client.get("/api/runs").json()
    runs = {run["id"]: run for run in answer["runs"]}
    assert set(runs) == {"one", "deep/study/two", "begun", "broken"}
    assert runs["one"]["state"] == "finished"
    assert runs["one"]["scores"]["MAE"] > 0
    assert runs["deep/study/two"]["seed"] == 7
    assert runs["broken"]["state"] == "unreadable"
    assert "config.json" in runs["broken"]["problem"]
    assert answer["studies"] == [{"id": "deep/study", "title": "A study", "page": True}]


def test_a_log_that_is_written_to_is_of_a_running_run(root: Path):
    record = Survey(root).runs()["begun"].record
    assert record is not None
    assert state_of(record) == "running"
    os.utime(root / "begun" / "log.jsonl", (1e9, 1e9))
    assert state_of(record) == "stopped"


def test_curves_follow_the_log(client: TestClient, root: Path):
    before = client.get("/api/curves", params={"run": "begun"}).json()["begun"]["MAE"]
    assert [epoch for epoch, _ in before] == [1, 2, 3]
    log = root / "begun" / "log.jsonl"
    event = json.loads(log.read_text().splitlines()[-1]) | {"epoch": 3, "step": 99, "MAE": 0.5}
    with log.open("a") as file:
        file.write(json.dumps(event) + "\n")
    os.utime(log, (2e9, 2e9))
    after = client.get("/api/curves", params={"run": "begun"}).json()["begun"]["MAE"]
    assert after == [*before, [4, 0.5]]


def test_pages_of_runs_and_studies_are_shown(client: TestClient):
    answer = client.get("/pages/one/report.html")
    assert answer.status_code == 200
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/pages/deep/study/report.html").text == "<p>a table</p>"
    assert "Run of hscl/demo" in client.get("/pages/begun/report.html").text


@pytest.mark.parametrize(
    "place",
    [
        "/pages/../secret/report.html",
        "/pages/%2e%2e/secret/report.html",
        "/pages/one/config.json",
        "/pages/one/../../secret/report.html",
        "/pages/nowhere/report.html",
        "/docs",
    ],
)
def test_nothing_else_is(client: TestClient, place: str):
    answer = client.get(place)
    assert answer.status_code == 404
    assert answer.text != "secret"


def test_chosen_runs_are_compared(client: TestClient):
    answer = client.get("/compare", params={"run": ["one", "deep/study/two"]})
    assert answer.status_code == 200
    assert "Runs beside each other" in answer.text
    assert client.get("/compare", params={"run": ["one"]}).status_code == 400
    assert client.get("/compare", params={"run": ["one", "none"]}).status_code == 404
    assert client.get("/compare").status_code == 422


def test_only_this_machine_asks(client: TestClient):
    assert client.get("/api/runs", headers={"host": "elsewhere.example"}).status_code == 400
    other = {"origin": "http://elsewhere.example"}
    assert client.get("/api/runs", headers=other).status_code == 403


def test_the_page_and_its_parts_are_there(client: TestClient):
    for place in ("/", "/board.js", "/board.css"):
        answer = client.get(place)
        assert answer.status_code == 200
        assert "script-src 'self'" in answer.headers["content-security-policy"]


def test_links_out_of_the_folder_are_not_followed(root: Path, tmp_path: Path):
    made_up_run(tmp_path / "outside" / "run")
    (root / "link").symlink_to(tmp_path / "outside")
    assert "link/run" not in Survey(root).runs()


@pytest.mark.parametrize("words", [["nowhere"], [".", "epochs=3"], [".", "--port", "99999"]])
def test_what_cannot_be_served_is_refused(words: list[str], capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")
