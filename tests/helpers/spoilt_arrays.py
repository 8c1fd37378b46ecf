"""Array files, ``.npy`` and ``.npz``, whose headers and contents lie."""

from __future__ import annotations

import io
import zipfile
from random import Random
from typing import Any

import numpy as np
from fuzzing import OUTSIDE_FILE
from mutations import spoil_array, spoil_bytes

HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '|V8', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (2000000000,), }",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (2000000000,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1099511627776), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<M8[D]', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': 1, 'shape': 3}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}" + " " * 20000,
    "__import__('os').system('touch " + OUTSIDE_FILE + "')",
    "(" * 300,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3.0), }",
    "{'descr': '<c8', 'fortran_order': False, 'shape': (3,), 'more': 1}",
]


class _Touch:
    def __reduce__(self) -> Any:
        return eval, (f"open({OUTSIDE_FILE!r}, 'w')",)


def npy(array: Any, pickled: bool = False) -> bytes:
    """The bytes of an array file."""
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=pickled)
    return file.getvalue()


def npz(arrays: dict[str, Any]) -> bytes:
    """The bytes of a file of several arrays."""
    return zipped({f"{name}.npy": npy(array) for name, array in arrays.items()})


def zipped(members: dict[str, bytes], deflate: bool = True) -> bytes:
    """A zip of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(
        file, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    ) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return file.getvalue()


def forged_npy(rng: Random) -> bytes:
    """A header that promises what does not follow."""
    header = rng.choice(HEADERS).encode()
    version, length = rng.choice([(b"\x01\0", 2), (b"\x02\0", 4), (b"\x03\0", 4)])
    stated = min(len(header), 256**length - 1)
    return b"\x93NUMPY" + version + stated.to_bytes(length, "little") + header + rng.randbytes(24)


def spoil_npy(rng: Random, array: np.ndarray) -> bytes:
    """An array file of another array, with a forged header, or with other bytes."""
    kind = rng.random()
    if kind < 0.25:
        return forged_npy(rng)
    if kind < 0.3:
        return npy(np.array([_Touch(), _Touch()], object), pickled=True)
    if kind < 0.7:
        return npy(spoil_array(rng, array), pickled=True)
    return spoil_bytes(rng, npy(array))


def spoil_npz(rng: Random, arrays: dict[str, Any]) -> bytes:
    """A file of arrays with members spoilt, missing, repeated, or swelling when they are read."""
    kind = rng.random()
    if kind < 0.4:
        return spoil_bytes(rng, npz(arrays))
    members = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    name = rng.choice(list(members))
    if kind < 0.7:
        members[name] = spoil_npy(rng, np.asarray(arrays[name.removesuffix(".npy")]))
    elif kind < 0.76:
        members[name] = _swelling()
    elif kind < 0.85:
        del members[name]
    elif kind < 0.92:
        members[
            rng.choice(("../outside.npy", "/etc/x.npy", "a/b.npy", name.upper(), "", "ids"))
        ] = members.pop(name)
    else:
        members[name] = rng.choice((b"", b"text", b"\x80\x04.", bytes(300)))
    return zipped(members, rng.random() < 0.5)


_SWELLING: list[bytes] = []


def _swelling() -> bytes:
    """Zeros: 40 MB that are 40 KB in the archive."""
    if not _SWELLING:
        _SWELLING.append(npy(np.zeros((10_000_000, 1), np.float32)))
    return _SWELLING[0]
