"""Options of fsspec's file systems: credentials, time limits, connections; and which of their errors
may pass."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import Any

import aiohttp
from tenacity import RetryCallState

from core.environment.credentials import Address, how_to_give, redact
from data_shards.shards.manifest import DataError

log = logging.getLogger(__name__)

_RETRIED_STATUS = (408, 425, 429)  # answers of the 400s that another attempt may change
_FINAL_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_NETWORK_ERRORS = (OSError, aiohttp.ClientError, asyncio.TimeoutError, TimeoutError)


def credential_options(protocol: str, address: Address) -> dict[str, Any]:
    """Options of fsspec that carry a URL's credentials."""
    is_http = protocol in ("http", "https")
    if address.query and not is_http:
        raise DataError(f"{address.public}: no ?... can follow an address of {protocol}://")
    # encoded: a signature holds for these very characters
    options: dict[str, Any] = {"encoded": True} if address.query else {}
    if not (address.user or address.password):
        return options
    if protocol == "gs":
        raise DataError(f"{address.public}: {how_to_give(protocol)}")
    if protocol == "s3":
        return {"key": address.user, "secret": address.password}
    # With each request and not with the session: a redirection to another host must not take it
    # along.
    pair = base64.b64encode(f"{address.user}:{address.password}".encode()).decode()
    return options | {"headers": {"Authorization": f"Basic {pair}"}}


def time_limits(protocol: str, connections: int) -> dict[str, Any]:
    """Options that keep a silent server from stopping a run for ever, and let so many requests be
    under way at a time."""
    if protocol in ("http", "https"):
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol == "s3":
        limits = {"connect_timeout": 30, "read_timeout": 60}
        # Retried by ``Remote`` instead, with one count and one pause, and until cancelled.
        no_retries = {"retries": {"max_attempts": 0}}
        return {"config_kwargs": limits | no_retries | {"max_pool_connections": connections}}
    return {}


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may do better."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in _RETRIED_STATUS
    if isinstance(error, _FINAL_ERRORS):
        return False
    # The errors of the S3 and GCS libraries share no base class with the network's.
    if lacks_credentials(error):
        return False
    module = type(error).__module__
    return isinstance(error, _NETWORK_ERRORS) or module.startswith(("botocore", "gcsfs"))


def lacks_credentials(error: BaseException) -> bool:
    """Whether a library of S3 or GCS found no credentials, or could not use them."""
    module, name = type(error).__module__, type(error).__name__
    return module.startswith("google.auth") or (
        module.startswith("botocore") and "Credentials" in name
    )


def say_fault(url: str, state: RetryCallState) -> None:
    """Before a pause: what went wrong."""
    fault = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    log.warning("%s: %s; trying again in %.1f s", url, describe_fault(fault), pause)


def describe_fault(fault: BaseException | None) -> str:
    return f"{type(fault).__name__}: {redact(str(fault))}"
