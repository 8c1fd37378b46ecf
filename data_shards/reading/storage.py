"""Where the files of a data set come from: a folder of this machine. ``remote`` has the same for a
URL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from core.file_access.regular_files import open_regular_file, read_regular_file
from core.files import sha256_of_bytes
from data_shards.reading.checked_files import CheckedFiles
from data_shards.shards.index_table import Index
from data_shards.shards.manifest import (
    MANIFEST,
    DataError,
    Manifest,
    Shard,
    parse_manifest,
    table_in,
)
from data_shards.shards.shard_table import MANY, TableFile
from data_shards.shards.writer import index_name


class Store(Protocol):
    """The files of one data set."""

    name: str  # folder or URL, as the user gave it
    checked_files: CheckedFiles  # of this machine

    @property
    def openers(self) -> int:
        """Shards that are worth opening at the same time."""

    def read_manifest(self) -> bytes: ...

    def open_table(self, table: TableFile) -> Path:
        """A table of shards, on this machine, compared with its checksum."""

    def fetch(self, shard: Shard) -> None:
        """Bring index and tar to this machine, both at a time, where they are elsewhere."""

    def read_index(self, shard: Shard) -> bytes: ...

    def open_rows(self, shard: Shard, index: Index, rows: np.ndarray) -> IO[bytes] | None:
        """A file with holes that has these rows of the tar, compared with their checksums; None
        where the whole tar is as near."""

    def open_tar(self, shard: Shard) -> IO[bytes]:
        """The shard, open on this machine; while it is open it is not removed."""

    def shards_of_wrong_size(self, shards: Sequence[Shard]) -> list[int]:
        """Numbers of the shards that can be seen at once, without reading, to be missing, cut or
        too long."""

    def discard_copy(self, shard: Shard) -> bool:
        """Drop a local copy that turned out wrong; False when there is no other place to get it
        from."""

    def cancel_waiting(self, cancelled: bool) -> None:
        """Stop waiting for a server that does not answer, because nobody waits any more; or wait
        again."""

    def capacity(self) -> float:
        """Bytes of shards that may be open at the same time."""


class Folder:
    """A folder of this machine.

    Args:
        checked_files: which files were compared with their checksum before; by default those that
            the user's cache records.
    """

    openers = 2

    def __init__(self, folder: Path, checked_files: CheckedFiles | None = None):
        self.folder = folder
        self.name = str(folder)
        self.checked_files = checked_files or CheckedFiles.of_user()

    def fetch(self, shard: Shard) -> None:
        """All of it is here."""

    def open_rows(self, shard: Shard, index: Index, rows: np.ndarray) -> IO[bytes] | None:
        return None

    def read_manifest(self) -> bytes:
        try:
            return read_regular_file(self.folder / MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{self.folder} has no {MANIFEST}, so it is no finished shard folder; make one "
                "with: "
                f"python -m data_shards.convert RAW --out {self.folder}, or for foreign tars: "
                f"python -m data_shards.index {self.folder}"
            ) from None

    def open_table(self, table: TableFile) -> Path:
        return table_in(self.folder, table)

    def read_index(self, shard: Shard) -> bytes:
        path = self.folder / index_name(shard.name)
        try:
            return read_regular_file(path)
        except FileNotFoundError as error:
            raise DataError(
                f"{path} is missing; make it again with: python -m data_shards.index {self.name}"
            ) from error

    def open_tar(self, shard: Shard) -> IO[bytes]:
        try:
            return open_regular_file(self.folder / shard.name)
        except FileNotFoundError as error:
            raise DataError(
                f"{self.folder / shard.name} is missing; restore the file or convert again"
            ) from error

    def shards_of_wrong_size(self, shards: Sequence[Shard]) -> list[int]:
        if len(shards) > MANY:  # looking at each would take every rank minutes
            return []
        sizes = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(".tar") and entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
        return [
            number for number, shard in enumerate(shards) if sizes.get(shard.name) != shard.bytes
        ]

    def discard_copy(self, shard: Shard) -> bool:
        return False

    def cancel_waiting(self, cancelled: bool) -> None:
        pass

    def capacity(self) -> float:
        return float("inf")


def open_manifest(store: Store) -> tuple[Manifest, str]:
    """The manifest of a data set, and its SHA-256."""
    body = store.read_manifest()
    manifest = parse_manifest(body, f"{store.name}/{MANIFEST}", store.open_table)
    return manifest, sha256_of_bytes(body)


def open_store(
    source: str | Path,
    cache: Path | None = None,
    cache_gb: float = 50.0,
    options: dict[str, Any] | None = None,
    connections: int = 0,
) -> Store:
    """The folder or URL ``source``. ``cache``, ``cache_gb``, ``options`` (for fsspec) and
    ``connections`` concern URLs only."""
    if "://" not in str(source):
        return Folder(Path(source))
    from data_shards.reading.remote import Remote

    return Remote(str(source), cache, cache_gb, options, connections)
