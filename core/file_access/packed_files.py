"""Files that a packing program made, told by their first bytes: the remedy is a command, not a new
copy."""

from __future__ import annotations

import shlex
from pathlib import Path

from core.command import Refused

HEAD = 16  # bytes that are enough to tell
# First bytes -> what it is, and the command that writes the contents to its standard output.
_MAGIC = {
    b"\x1f\x8b\x08": ("gzip", "gzip -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -dc"),
    b"PK\x03\x04": ("zip", "unzip -p"),
}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # after "BZh" and a digit
_ENDINGS = {".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}


def check_not_packed(head: bytes, path: Path | str) -> None:
    """Refused where ``head``, the first bytes of the file at ``path``, are those of a packed file;
    the message names the command that unpacks it."""
    for magic, (packer, command) in _MAGIC.items():
        if not head.startswith(magic):
            continue
        if packer == "bzip2" and not head[4:].startswith(_BZIP2_BLOCKS):
            continue  # text may begin like this
        raise Refused(
            f"{path} is packed with {packer}; unpack it first: "
            f"{command} {shlex.quote(str(path))} > {shlex.quote(_unpacked_name(Path(path)))}"
        )


def _unpacked_name(path: Path) -> str:
    """A name beside ``path`` for what it holds."""
    if path.suffix == ".tgz":
        return str(path.with_suffix(".tar"))
    if path.suffix in _ENDINGS:
        return str(path.with_suffix(""))
    return str(path.with_name(f"{path.stem}_unpacked{path.suffix}"))
