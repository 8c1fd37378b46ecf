"""The image vectors of entities, from a file of one of three kinds, each checked before it is read:
what it holds, of which type and shape, for which entities.

There is at most one vector for each entity, of at most ``WIDEST`` numbers, so a file that claims
more is refused before memory is taken for it.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.command import Refused
from core.file_access.budget import Budget
from core.file_access.regular_files import check_regular_file
from data_shards.shards.manifest import DataError
from data_shards.sources.graphs.entity_views import View
from data_shards.sources.graphs.graph_files import EntityTable
from data_shards.sources.pickles import load_pickle
from data_shards.sources.raw_dataset import as_numbers

WIDEST = 2**16  # numbers of a vector; pooled features have 2,048 or 4,096
Images = tuple[list[int], Sequence[np.ndarray]]  # ids, and a vector of each


def image_vectors(path: Path, table: EntityTable, repairs: Counter[str]) -> View:
    """(N, D) float32 image vectors by row.

    ``.pkl``: a dict of id to vector, as the papers' authors gave them out. ``.npz``: arrays ``ids``
    (M,) and ``vectors`` (M, D). ``.npy``: (N, D) in the order of ids, rows of NaN where there is no
    image. Vectors that are not finite or all zero are left out and counted.
    """
    check_regular_file(path)
    if path.suffix in (".pkl", ".pickle"):
        ids, vectors = _images_of_pickle(path)
    elif path.suffix == ".npz":
        ids, vectors = _images_of_npz(path, table)
    elif path.suffix == ".npy":
        ids, vectors = _images_of_npy(path, table)
    else:
        raise DataError(f"{path}: image vectors come as .pkl, .npz or .npy (docs/data.md)")
    width = len(vectors[0]) if ids else 0
    if width > WIDEST:
        raise DataError(f"{path}: vectors of {width} numbers; at most {WIDEST} are read")
    images = np.zeros((len(table), width), "<f4")
    seen = np.zeros(len(table), bool)
    for number, (entity, vector) in enumerate(zip(ids, vectors, strict=True), 1):
        where = f"{path}, entry {number}"
        row = table.row(entity, where)
        if seen[row]:
            raise DataError(f"{where}: entity {entity} has a vector already; remove one of them")
        seen[row] = True
        if len(vector) != width or not width:
            raise DataError(f"{where}: {len(vector)} numbers for entity {entity}, {width} before")
        marks_no_image = path.suffix == ".npy" and np.isnan(vector).all()
        if np.isfinite(vector).all() and vector.any():
            images[row] = vector
        elif not marks_no_image:
            repairs["image vectors not finite or all zero, left out"] += 1
    return View.of(images)


def _images_of_pickle(path: Path) -> Images:
    loaded = load_pickle(path)
    if not isinstance(loaded, dict):
        raise DataError(
            f"{path} holds a {type(loaded).__name__}; expected a dict of entity id to image vector"
        )
    ids, vectors = [], []
    for number, (entity, vector) in enumerate(loaded.items(), 1):
        where = f"{path}, entry {number}"
        if isinstance(entity, bool) or not isinstance(entity, int | np.integer):
            raise DataError(
                f"{where}: {entity!r:.80} is no entity id; expected a dict of whole number to "
                "image vector"
            )
        ids.append(int(entity))
        vectors.append(as_numbers(vector, "<f4", f"{where}, entity {entity}").reshape(-1))
    return ids, vectors


def _images_of_npz(path: Path, table: EntityTable) -> Images:
    try:
        with zipfile.ZipFile(path) as archive:
            ids = _member(archive, "ids", path, (len(table),))
            vectors = _member(archive, "vectors", path, (len(table), WIDEST))
    except Refused:
        raise
    except Exception as error:  # damaged bytes make NumPy and zipfile raise nearly anything
        raise DataError(f"{path} cannot be read ({error}); write it again") from None
    if ids.dtype.kind not in "iu":
        raise DataError(f"{path}: 'ids' is {ids.dtype}; entity ids are whole numbers")
    if len(ids) != len(vectors):
        raise DataError(f"{path}: {len(ids)} ids for {len(vectors)} image vectors")
    return ids.tolist(), _as_float32(vectors)


def _member(archive: zipfile.ZipFile, name: str, path: Path, most: tuple[int, ...]) -> np.ndarray:
    """An array of numbers in an .npz, with as many axes as ``most``, none longer than it says."""
    members = [member for member in archive.infolist() if member.filename == f"{name}.npy"]
    if len(members) != 1:
        raise DataError(
            f"{path} holds {', '.join(archive.namelist())[:80]}; expected arrays 'ids' and "
            "'vectors', once each"
        )
    (member,) = members
    advice = "if this is meant, write it with np.savez, which does not pack"
    budget = Budget.of_packed(path.stat().st_size, f"{path}: {name!r}", advice)
    budget.claim(member.file_size, "the array unpacked")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
    _check(f"{path}: {name!r}", shape, dtype, most)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise DataError(f"{path}: {name!r} is cut off; write it again")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _images_of_npy(path: Path, table: EntityTable) -> Images:
    try:
        # not np.load, which would open an archive or a pickle as well
        matrix = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header makes NumPy raise nearly anything
        raise DataError(f"{path} is damaged or no .npy ({error}); write it again") from None
    _check(str(path), matrix.shape, matrix.dtype, (len(table), WIDEST))
    if len(matrix) != len(table):
        raise DataError(
            f"{path} has shape {matrix.shape}; expected one row for each of {len(table)} entities"
        )
    return table.known.ids.tolist(), _as_float32(matrix)


def _check(where: str, shape: tuple[int, ...], dtype: np.dtype, most: tuple[int, ...]) -> None:
    """DataError unless an array is of numbers, and no longer than ``most`` along any axis."""
    if dtype.kind not in "iuf":
        raise DataError(f"{where} is an array of {dtype}, not of numbers")
    if len(shape) != len(most):
        raise DataError(f"{where} has shape {shape}; expected {len(most)} axes")
    if any(extent > limit for extent, limit in zip(shape, most, strict=True)):
        raise DataError(f"{where} has shape {shape}; there is room for {most}")


def _as_float32(array: np.ndarray) -> Sequence[np.ndarray]:
    with np.errstate(over="ignore"):  # what becomes infinite is left out, and counted
        return list(array.astype("<f4"))
