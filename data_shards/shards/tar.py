"""Walk the members of any tar in memory, strictly: what cannot be read right is refused, with its
byte offset.

Python's ``tarfile`` takes a broken header for the end of the archive. Here an archive ends in zeros
and nothing else. Understood are USTAR, PAX ('x') and GNU ('L') names and sizes. Links, devices,
sparse files, absolute paths and ".." are refused: nothing is ever written to disk from a tar, but
nobody else should fall for it either.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

import numpy as np

from core.file_access.packed_files import HEAD, check_not_packed
from data_shards.shards.manifest import DataError

BLOCK = 512
MAX_EXTENSION = 1 << 20  # bytes of a PAX or GNU header; a hostile one would fill the memory
_ZEROS = bytes(BLOCK)

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE)
_EXTENSIONS = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_WITHOUT_PAYLOAD = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
)


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


@dataclass(frozen=True)
class _Header:
    """One header of 512 bytes."""

    name: str
    size: int
    kind: bytes  # one of tarfile's ...TYPE


def members(tar: mmap | bytes, where: str) -> Iterator[Member]:
    """The files of a tar in order; a DataError gives the byte offset of what is wrong."""
    if len(tar) == 0:
        raise DataError(f"{where} is empty; fetch or write the file again")
    check_not_packed(tar[:HEAD], where)
    position = 0
    # A header may give the one that follows it a longer name or size; both belong to one member.
    extensions: dict[str, str] = {}
    extended_from: int | None = None
    while True:
        block = tar[position : position + BLOCK]
        if len(block) < BLOCK:
            raise _refused(where, position, "the archive is cut off: it ends without its end mark")
        if block == _ZEROS:
            _check_end(tar, position, where)
            if extensions:
                raise _refused(where, position, "the archive is cut off: its end mark is not whole")
            return
        header = _parse_header(block, where, position)
        start = position if extended_from is None else extended_from
        offset = position + BLOCK
        position = _after_payload(tar, offset, header.size, where, position)

        if header.kind in _EXTENSIONS:
            if header.size > MAX_EXTENSION:
                raise _refused(where, start, f"a header of {header.size} bytes")
            body = bytes(tar[offset : offset + header.size])
            extensions |= _parse_extension(header.kind, body, where, start)
            if header.kind != tarfile.XGLTYPE:  # a global header belongs to no member
                extended_from = start
            continue

        size = header.size
        if "size" in extensions:  # of the payload; larger than what fits an old header
            size = _parse_decimal(extensions["size"], where, start)
            position = _after_payload(tar, offset, size, where, start)
        name = extensions.get("path", header.name)
        extensions = {}
        extended_from = None
        if header.kind == tarfile.DIRTYPE:
            continue
        if header.kind not in _FILES:
            raise _refused(
                where,
                start,
                f"{name!r} is no plain file (type {header.kind!r}); links and devices are refused",
            )
        yield Member(_clean_name(name, where, start), start, offset, size)


def _after_payload(tar: mmap | bytes, offset: int, size: int, where: str, position: int) -> int:
    """Where the next header stands; a payload that leaves the archive is refused."""
    if offset + size > len(tar):
        raise _refused(
            where, position, f"a member of {size} bytes reaches past the end of the archive"
        )
    return offset + _padded(size)


def _check_end(tar: mmap | bytes, position: int, where: str) -> None:
    """The first block of zeros must begin at least two, and nothing else may follow."""
    rest = np.frombuffer(tar, np.uint8)[position:]
    if rest.any():
        first = position + int(np.argmax(rest != 0))
        raise _refused(
            where,
            position,
            f"zeros, and then more data at byte {first}: a hole, or archives joined together",
        )
    if len(rest) < 2 * BLOCK:
        raise _refused(where, position, "the archive is cut off: its end mark is not whole")


def _parse_header(block: bytes, where: str, position: int) -> _Header:
    stated = _parse_octal(block[148:156], where, position)
    # the sum counts its own eight bytes as blanks
    total = int(np.frombuffer(block, np.uint8).sum(dtype=np.int64))
    computed = total - sum(block[148:156]) + 8 * ord(" ")
    if stated != computed:
        raise _refused(where, position, "a damaged header: its checksum is wrong")
    name = _decode(block[:100].split(b"\0")[0])
    if block[257:263] == b"ustar\0":
        prefix = _decode(block[345:500].split(b"\0")[0])
        name = f"{prefix}/{name}" if prefix else name
    size = _parse_number(block[124:136], where, position)
    kind = block[156:157]
    if kind in _WITHOUT_PAYLOAD:
        size = 0
    return _Header(name, size, kind)


def _parse_number(field: bytes, where: str, position: int) -> int:
    """Octal digits, or GNU's binary form for sizes over 8 GiB."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _parse_octal(field, where, position)


def _parse_octal(field: bytes, where: str, position: int) -> int:
    digits = field.split(b"\0")[0].strip() or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise _refused(where, position, f"a damaged header: {digits!r} is no octal number")
    return int(digits, 8)


def _parse_extension(kind: bytes, body: bytes, where: str, position: int) -> dict[str, str]:
    """What a header says of the next member: its "path", its "size", both, or neither."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": _decode(body.rstrip(b"\0"))}
    if kind not in _PAX:
        return {}
    records = _parse_pax(body, where, position)
    if kind == tarfile.XGLTYPE and records:
        raise _refused(where, position, "a global header that names or sizes all members")
    return records


def _parse_pax(body: bytes, where: str, position: int) -> dict[str, str]:
    """``path`` and ``size`` from records of the form "<length> <name>=<value>\\n"."""
    records: dict[str, str] = {}
    while body:
        digits, blank, _ = body.partition(b" ")
        if not blank or not digits.isdigit() or len(digits) > 9:
            raise _refused(where, position, "a damaged PAX header")
        length = int(digits)  # of the whole record, these digits included
        if not len(digits) < length <= len(body):
            raise _refused(where, position, "a damaged PAX header")
        record = body[len(digits) + 1 : length]
        body = body[length:]
        name, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not equals:
            raise _refused(where, position, "a damaged PAX header")
        if name.startswith(b"GNU.sparse"):
            raise _refused(where, position, "a sparse file")
        if name in (b"path", b"size"):
            records[name.decode()] = _decode(value)
    return records


def _parse_decimal(text: str, where: str, position: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _refused(where, position, f"a size of {text[:40]!r}")
    return int(text)


def _clean_name(name: str, where: str, position: int) -> str:
    parts = name.removeprefix("./").split("/")
    if name.startswith("/") or ".." in parts or "" in parts or "\0" in name:
        raise _refused(
            where, position, f"the member name {name[:200]!r} leaves the archive or is none"
        )
    return "/".join(parts)


def _decode(raw: bytes) -> str:
    """UTF-8; other bytes stay apart as \\xNN, so that different names stay different."""
    return raw.decode("utf-8", "backslashreplace")


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _refused(where: str, position: int, problem: str) -> DataError:
    return DataError(f"{where}, byte {position}: {problem}; fetch or write the file again")
