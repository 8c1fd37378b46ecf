"""Servers that want credentials get them; names, messages, logs and caches do not."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from shard_server import TAR, Handler, Server, everything, read_all, serving

from core.environment.credentials import VARIABLE
from data_shards.reading.remote import Remote
from data_shards.shards.manifest import DataError

SECRET, SIGNATURE = "geheim/2+2", "se=2030-01-01T00%3A00%3A00Z&sig=gehei%2Fm%2B"


class Guarded(Handler):
    """Answers 401 without the password, and 403 without the signature, where one of them is
    wanted."""

    wants = "password"

    def _answer(self, send: bool) -> None:
        pair = base64.b64encode(f"me:{SECRET}".encode()).decode()
        if self.wants == "password" and self.headers.get("Authorization") != f"Basic {pair}":
            return self._plain(401)
        if self.wants == "signature" and urlsplit(self.path).query != SIGNATURE:
            return self._plain(403)
        return super()._answer(send)


class Signed(Guarded):
    wants = "signature"


@pytest.fixture(params=[Guarded, Signed])
def guarded(request, impatient, make_shards, tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv(VARIABLE, "")
    make_shards(tmp_path / "origin", (4, 3, 5))
    with serving(Server(tmp_path / "origin", request.param)) as made:
        yield made


def whole_url(server: Server) -> str:
    if server.RequestHandlerClass is Signed:
        return f"{server.url}?{SIGNATURE}"
    return server.url.replace("http://", "http://me:geheim%2F2%2B2@")


def tells(text: str) -> bool:
    """Whether it has some part of the secret."""
    return "geheim" in text or "gehei%2F" in text or "gehei/m" in text or "sig=" in text


@pytest.mark.parametrize("given", ["in the url", "in the environment"])
def test_credentials_open_the_door_and_are_in_no_name(
    guarded: Server, tmp_path: Path, monkeypatch, given: str
):
    url = whole_url(guarded)
    if given == "in the environment":
        monkeypatch.setenv(VARIABLE, f"https://else:where@example.org {url}")
        url = guarded.url
    cache = tmp_path / "cache"
    assert read_all(url, cache) == everything(guarded)
    store = Remote(url, cache, 1.0)
    assert store.name == guarded.url
    before = len(guarded.asked)
    assert read_all(whole_url(guarded), cache) == everything(guarded)
    assert {name for name, _ in guarded.asked[before:]} == {"manifest.json"}


def test_missing_credentials_are_one_line_that_says_how_to_give_them(
    guarded: Server, tmp_path: Path
):
    with pytest.raises(ConnectionError) as refused:
        read_all(guarded.url, tmp_path / "cache")
    said = str(refused.value)
    assert "the server answers 40" in said
    assert f"write https://USER:PASSWORD@host/... or a signed URL as data= or in {VARIABLE}" in said
    assert "\n" not in said


@pytest.mark.parametrize("fault", ["500", "403", "reset", "truncated", "wrong"])
def test_no_message_or_log_of_a_failure_has_the_secret(
    guarded: Server, tmp_path: Path, caplog, fault: str
):
    guarded.always[TAR] = guarded.always["train-000001.tar"] = fault
    with caplog.at_level(logging.INFO), pytest.raises((ConnectionError, DataError)) as failed:
        read_all(whole_url(guarded), tmp_path / "cache")
    seen: list[str] = [caplog.text]
    error: BaseException | None = failed.value
    while error is not None:  # a traceback shows them all
        seen.append(f"{error} {error.args}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert guarded.url in str(failed.value)
    assert not any(map(tells, seen)), seen


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "s3://KEY:geheim@bucket/a?sig=geheim",
            r"s3://bucket/a: no \?... can follow an address of s3",
        ),
        ("gs://me:geheim@bucket/a", "gs://bucket/a: set GOOGLE_APPLICATION_CREDENTIALS"),
        ("ftp://me:geheim@host/a", "cannot read 'ftp://host/a'"),
    ],
)
def test_credentials_where_none_can_be_used(tmp_path: Path, url: str, said: str):
    with pytest.raises(ValueError, match=said) as refused:
        Remote(url, tmp_path, 1.0)
    assert not tells(str(refused.value))


def test_the_key_and_secret_of_s3_come_from_the_url(tmp_path: Path):
    pytest.importorskip("s3fs")
    store = Remote("s3://AKIA:wJalr/K7+x@bucket/mosi", tmp_path, 1.0)
    assert (store.name, store.files.key, store.files.secret) == (
        "s3://bucket/mosi",
        "AKIA",
        "wJalr/K7+x",
    )


def test_s3_without_any_credentials_is_one_line(impatient, tmp_path: Path, monkeypatch):
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = Remote("s3://bucket/mosi", tmp_path, 1.0, {"anon": False})
    with pytest.raises(
        ConnectionError, match=r"s3://bucket/mosi/manifest.json: .*AWS_ACCESS_KEY_ID"
    ):
        store.read_manifest()
