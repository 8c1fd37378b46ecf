"""Credentials in the URL of a data set: used, and told to nobody.

``https://USER:PASSWORD@host/data``, ``https://host/data?SIGNATURE`` and
``s3://KEY:SECRET@bucket/data`` are split where they come in. Settings, files and messages know the
public part only; the whole URL is kept in an environment variable of this process, which those that
it starts inherit, and which may be set instead of writing credentials into a command line that
other users can list.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

# URLs with their credentials, between blanks; ``data=`` then holds the same URL without them.
VARIABLE = "CONCORD_DATA_URL"
HIDDEN = "***"
SHORTEST = 4  # characters of a secret that is looked for in texts: "1" is in every number

# In any text: USER:PASSWORD@, also with a slash in the password but not host:80/name@, and ?QUERY.
# One slash is enough: paths join two of them.
_SCHEME = r"(\b[a-z][a-z0-9+.-]+:/+)"
_PASSWORD_WITH_SLASH = re.compile(_SCHEME + r"[^\s/@:'\"]+:(?!\d+/)[^\s@'\"]*@")
_USER_AND_PASSWORD = re.compile(_SCHEME + r"[^\s/?#'\"]*@")
_QUERY = re.compile(_SCHEME + r"([^\s?'\"<>]+)\?[^\s'\"<>]+")


class Address(NamedTuple):
    """A URL and its credentials, which are empty where there are none."""

    public: str  # without credentials and without a slash at the end
    user: str = ""
    password: str = ""
    query: str = ""  # a signature, without its question mark

    @property
    def is_secret(self) -> bool:
        return bool(self.user or self.password or self.query)

    def secrets(self) -> list[str]:
        """Every text that must not be told, the longest first."""
        values = [value for _, value in parse_qsl(self.query)]
        found = {self.password, self.query, *values}
        return sorted((text for text in found if len(text) >= SHORTEST), key=len, reverse=True)


def split(url: str) -> Address:
    """A URL without its credentials, and these."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Address(url)
    rest, _, query = rest.partition("?")
    authority = rest.partition("/")[0]
    _, colon, port = authority.partition(":")
    if "@" in authority:
        pair, _, _ = authority.rpartition("@")
    elif colon and not port.isdigit() and "@" in rest:  # a slash in the password
        pair, _, _ = rest.partition("@")
    else:
        return Address(url if not query else f"{scheme}://{rest}".rstrip("/"), query=query)
    user, _, password = pair.partition(":")
    public = f"{scheme}://{rest[len(pair) + 1 :]}".rstrip("/")
    return Address(public, unquote(user), unquote(password), query)


def remember(url: str) -> str:
    """The public part of a URL, whose credentials this process and those that it starts then
    know."""
    address = split(url)
    if not address.is_secret:
        return url
    others = [known for known in _known_urls() if split(known).public != address.public]
    os.environ[VARIABLE] = " ".join([*others, url])
    return address.public


def recall(url: str) -> Address:
    """A URL with its own credentials, or with those that are known for it or a folder above it."""
    address = split(url)
    if address.is_secret:
        return address
    public = address.public.rstrip("/")
    fitting = []
    for known in map(split, _known_urls()):
        if public == known.public or public.startswith(f"{known.public}/"):
            fitting.append(known)
    if not fitting:
        return Address(public)
    return max(fitting, key=lambda known: len(known.public))._replace(public=public)


def redact(text: str) -> str:
    """A text for people or files: credentials in URLs, and those that are known, are left out."""
    for known in map(split, _known_urls()):
        for secret in known.secrets():
            text = text.replace(secret, HIDDEN)
    for form in (_PASSWORD_WITH_SLASH, _USER_AND_PASSWORD):
        text = form.sub(rf"\1{HIDDEN}@", text)
    return _QUERY.sub(rf"\1\2?{HIDDEN}", text)


def how_to_give(protocol: str) -> str:
    """The end of a sentence about credentials that are missing or wrong."""
    if protocol == "gs":
        return "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account"
    forms = {
        "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write s3://KEY:SECRET@bucket/...",
    }
    form = forms.get(protocol, "write https://USER:PASSWORD@host/... or a signed URL")
    return f"credentials are never stored: {form} as data= or in {VARIABLE}"


def _known_urls() -> list[str]:
    return os.environ.get(VARIABLE, "").split()
