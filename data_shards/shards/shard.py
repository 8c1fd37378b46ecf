"""One tar of a shard folder as its manifest knows it, and what is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from core.command import Refused

MAX_SHARD_BYTES = 2**50

# In JSON, 1 is no string, true is no number, and a key that nobody knows is an error.
STRICT = ConfigDict(strict=True, extra="forbid")
# never a folder, never hidden
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*\.tar")
SHA256 = re.compile(r"[0-9a-f]{64}")


class DataError(Refused):
    """Data that cannot be used: the message says what is wrong, where, and what to do next."""


@dataclass(frozen=True)
class Shard:
    """One tar file as the manifest knows it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str  # "train-000000.tar"
    samples: int
    bytes: int
    sha256: str
    index_sha256: str  # of "train-000000.idx", the index beside the tar


def check_shard(shard: Shard, where: str) -> None:
    """DataError unless the name is plain, and sizes and checksums are possible."""
    if not SHARD_NAME.fullmatch(shard.name):
        raise refused(f"{where}: this is no plain file name ending in .tar")
    if not 0 < shard.samples <= shard.bytes < MAX_SHARD_BYTES:
        raise refused(f"{where}: {shard.samples} samples in {shard.bytes} bytes")
    for checksum in (shard.sha256, shard.index_sha256):
        if not SHA256.fullmatch(checksum):
            raise refused(f"{where}: {checksum[:80]!r} is no SHA-256")


def refused(problem: str) -> DataError:
    """What is wrong with a manifest, with what to do about it."""
    return DataError(f"{problem}; convert the data again, or restore the file")
