"""Credentials in URLs: split off where they come in, known to the process, and in no text."""

from __future__ import annotations

import os

import pytest

from core.environment.credentials import VARIABLE, Address, recall, redact, remember, split


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("/data/a@b/c?d", Address("/data/a@b/c?d")),
        ("shards", Address("shards")),
        ("https://host/data/", Address("https://host/data/")),
        ("http://host:8080/data", Address("http://host:8080/data")),
        ("http://host:8080/data/me@here", Address("http://host:8080/data/me@here")),
        ("s3://bucket/a@b", Address("s3://bucket/a@b")),
        ("https://me:geheim@host/data/", Address("https://host/data", "me", "geheim")),
        ("https://me:a%40b%3Ac@host:81/d", Address("https://host:81/d", "me", "a@b:c")),
        ("https://me:p@ss@host/data", Address("https://host/data", "me", "p@ss")),
        ("https://me:sl/ash@host/data", Address("https://host/data", "me", "sl/ash")),
        ("https://token@host/data", Address("https://host/data", "token")),
        ("s3://AKIA:wJalr/K7+bPx@bucket/mosi", Address("s3://bucket/mosi", "AKIA", "wJalr/K7+bPx")),
        ("s3://AKIA:a%2Fb@bucket", Address("s3://bucket", "AKIA", "a/b")),
        ("https://host/data?sig=X%2F1", Address("https://host/data", query="sig=X%2F1")),
        ("https://host/data/?a=1&sig=X", Address("https://host/data", query="a=1&sig=X")),
        ("https://me:pw12@host/d?sig=X", Address("https://host/d", "me", "pw12", "sig=X")),
    ],
)
def test_a_url_is_split(url: str, address: Address):
    assert split(url) == address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read https://me:geheim@host/data: no", "cannot read https://***@host/data: no"),
        ("'s3://AKIA:wJalr/K7@bucket/x'", "'s3://***@bucket/x'"),
        ("data=https://token@host/data", "data=https://***@host/data"),
        ("url='https://h/m.json?sig=geheim&e=1'", "url='https://h/m.json?***'"),
        ("GET https://h/a?sig=geheim HTTP", "GET https://h/a?*** HTTP"),
        ("no file http:/me:geheim@host/d", "no file http:/***@host/d"),
        ("write to me@host.org", "write to me@host.org"),
        ("http://127.0.0.1:80/data/me@here", "http://127.0.0.1:80/data/me@here"),
        ("did you mean 'data'?", "did you mean 'data'?"),
    ],
)
def test_a_text_is_shown_without_credentials(text: str, shown: str):
    assert redact(text) == shown


def test_what_is_known_is_left_out_of_any_text_and_handed_to_the_url_it_belongs_to():
    assert remember("https://host/other") == "https://host/other"
    assert recall("https://host/data") == Address("https://host/data")
    assert remember("https://me:geheim@host/data") == "https://host/data"
    assert remember("https://x.org/d?sig=signed-by-us&v=1") == "https://x.org/d"
    assert redact("denied: geheim, signed-by-us, v 1") == "denied: ***, ***, v 1"
    assert recall("https://host/data/train").password == "geheim"
    assert recall("https://host/data/").user == "me"
    assert recall("https://x.org/d").query == "sig=signed-by-us&v=1"
    for stranger in (
        "https://host/data2",
        "https://host.org/data",
        "http://host/data",
        "https://host",
    ):
        assert not recall(stranger).is_secret
    assert remember("https://me:new-one@host/data") == "https://host/data"
    assert recall("https://host/data").password == "new-one"
    assert os.environ[VARIABLE].count("host/data") == 1
