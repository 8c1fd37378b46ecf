"""Folders of small shards, and a server of one that fails when told to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tenacity
from shard_server import SIZES as SERVED
from shard_server import Server, serving
from streams import SIZES

from data_shards.reading import remote


@pytest.fixture(scope="module")
def shards(make_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder, SIZES)
    return folder


@pytest.fixture
def impatient(monkeypatch) -> None:
    retry = {"stop": tenacity.stop_after_attempt(4), "wait": tenacity.wait_none()}
    monkeypatch.setattr(remote, "RETRY", retry)


@pytest.fixture
def server(impatient, make_shards, tmp_path) -> Iterator[Server]:
    make_shards(tmp_path / "origin", SERVED)
    with serving(Server(tmp_path / "origin")) as made:
        yield made
