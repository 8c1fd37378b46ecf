"""Walk the members of any tar in memory, strictly: what cannot be read right is refused, with its byte offset.

Python's ``tarfile`` takes a broken header for the end of the archive. Here an archive ends in zeros and nothing else.
Understood are USTAR, PAX ('x') and GNU ('L') names and sizes. Links, devices, sparse files, absolute paths and ".."
are refused: nothing is ever written to disk from a tar, but nobody else should fall for it either.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

import numpy as np

from data_shards.shards.manifest import DataError

BLOCK = 512
LONGEST = 1 << 20  # bytes of a PAX or GNU header; a hostile one would fill the memory
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True)
class Member:
    """A file in a tar. Its name is relative and clean."""

    name: str
    start: int  # of its first header
    offset: int  # of its bytes
    size: int

    @property
    def end(self) -> int:
        """After the padding of its last block."""
        return self.offset + _padded(self.size)


def members(held: mmap | bytes, where: str) -> Iterator[Member]:
    """The files of a tar in order; DataError with the byte offset of the first thing that is wrong."""
    position, first = 0, -1
    special: dict[str, str] = {}  # name and size from headers that speak of the next member
    while True:
        block = held[position : position + BLOCK]
        if len(block) < BLOCK:
            raise _refused(where, position, "the archive is cut off: it ends without its end mark")
        if block == _ZEROS:
            return _end(held, position, special, where)
        size, kind, name = _header(block, where, position)
        offset = position + BLOCK
        if offset + size > len(held):
            raise _refused(
                where, position, f"a member of {size} bytes reaches past the end of the archive"
            )
        start = position if first < 0 else first
        position = offset + _padded(size)
        if kind in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        ):
            if size > LONGEST:
                raise _refused(where, start, f"a header of {size} bytes")
            body = bytes(held[offset : offset + size])
            found = _pax(body, where, start) if kind in (tarfile.XHDTYPE, tarfile.XGLTYPE) else {}
            if kind == tarfile.GNUTYPE_LONGNAME:
                found = {"path": _text(body.rstrip(b"\0"))}
            if kind == tarfile.XGLTYPE:
                if found.keys() & {"path", "size"}:
                    raise _refused(where, start, "a global header that names or sizes all members")
                continue
            special |= found
            first = start
            continue
        if "size" in special:  # of the payload; larger than what fits an old header
            size = _decimal(special["size"], where, start)
            if offset + size > len(held):
                raise _refused(
                    where, start, f"a member of {size} bytes reaches past the end of the archive"
                )
            position = offset + _padded(size)
        name, special, first = special.get("path", name), {}, -1
        if kind == tarfile.DIRTYPE:
            continue
        if kind not in _FILES:
            raise _refused(
                where,
                start,
                f"{name!r} is no plain file (type {kind!r}); links and devices are refused",
            )
        yield Member(_clean(name, where, start), start, offset, size)


def _end(held: mmap | bytes, position: int, special: dict[str, str], where: str) -> None:
    rest = np.frombuffer(held, np.uint8)[position:]
    if rest.any():
        at = position + int(np.argmax(rest != 0))
        raise _refused(
            where,
            position,
            f"zeros, and then more data at byte {at}: a hole, or archives joined together",
        )
    if len(rest) < 2 * BLOCK or special:
        raise _refused(where, position, "the archive is cut off: its end mark is not whole")


def _header(block: bytes, where: str, position: int) -> tuple[int, bytes, str]:
    """Size, type and name of a member."""
    said = _octal(block[148:156], where, position)
    blanked = 8 * ord(" ") - sum(block[148:156])
    if said != int(np.add.reduce(np.frombuffer(block, np.uint8), dtype=np.int64)) + blanked:
        raise _refused(where, position, "a damaged header: its checksum is wrong")
    name = _text(block[:100].split(b"\0")[0])
    prefix = _text(block[345:500].split(b"\0")[0]) if block[257:263] == b"ustar\0" else ""
    size = _number(block[124:136], where, position)
    kind = block[156:157]
    if kind in (
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    ):
        size = 0
    return size, kind, f"{prefix}/{name}" if prefix else name


def _number(field: bytes, where: str, position: int) -> int:
    """Octal digits, or GNU's binary form for sizes over 8 GiB."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field, where, position)


def _octal(field: bytes, where: str, position: int) -> int:
    digits = field.split(b"\0")[0].strip() or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise _refused(where, position, f"a damaged header: {digits!r} is no octal number")
    return int(digits, 8)


def _pax(body: bytes, where: str, position: int) -> dict[str, str]:
    """``path`` and ``size`` from records of the form "<length> <name>=<value>\\n"."""
    found: dict[str, str] = {}
    while body:
        length, blank, _ = body.partition(b" ")
        if (
            not blank
            or not length.isdigit()
            or len(length) > 9
            or not len(length) < int(length) <= len(body)
        ):
            raise _refused(where, position, "a damaged PAX header")
        record, body = body[len(length) + 1 : int(length)], body[int(length) :]
        name, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not equals:
            raise _refused(where, position, "a damaged PAX header")
        if name.startswith(b"GNU.sparse"):
            raise _refused(where, position, "a sparse file")
        if name in (b"path", b"size"):
            found[name.decode()] = _text(value)
    return found


def _decimal(text: str, where: str, position: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _refused(where, position, f"a size of {text[:40]!r}")
    return int(text)


def _clean(name: str, where: str, position: int) -> str:
    parts = name.removeprefix("./").split("/")
    if name.startswith("/") or ".." in parts or "" in parts or "\0" in name:
        raise _refused(
            where, position, f"the member name {name[:200]!r} leaves the archive or is none"
        )
    return "/".join(parts)


def _text(raw: bytes) -> str:
    """UTF-8; other bytes stay apart as \\xNN, so that different names stay different."""
    return raw.decode("utf-8", "backslashreplace")


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _refused(where: str, position: int, what: str) -> DataError:
    return DataError(f"{where}, byte {position}: {what}; fetch or write the file again")
