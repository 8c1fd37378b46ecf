"""What files of image and word vectors must not hold: refused with file, entry or line, and
value."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from graph_edits import check_refused, holds, npz, unchanged
from graph_folder import write_folder


def archive(*names: str) -> bytes:
    """An .npz in which every member is named, whatever it holds."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as file:
        for name in names:
            file.writestr(name, b"no array")
    return body.getvalue()


def claiming(shape: str, follows: bytes = b"") -> bytes:
    """An .npz whose vectors claim a shape, whatever follows."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as file:
        ids = io.BytesIO()
        np.save(ids, np.arange(1))
        file.writestr("ids.npy", ids.getvalue())
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        file.writestr(
            "vectors.npy",
            b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + follows,
        )
    return body.getvalue()


ONE = np.ones((1, 3), np.float32)
RECORDS = np.zeros(1, [("id", "<i8"), ("name", "<i8")])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (npz(ids=np.array([0.9]), vectors=ONE), r"'ids' is float64; entity ids are whole numbers"),
        (npz(ids=np.array([True]), vectors=ONE), r"images.npz: 'ids' is .*bool"),
        (npz(ids=np.array(["0"]), vectors=ONE), r"images.npz: 'ids' is an array of <U1, not of nu"),
        (npz(ids=RECORDS, vectors=ONE), r"images.npz"),
        (npz(ids=np.arange(1), vectors=RECORDS), r"images.npz"),
        (
            npz(ids=np.array([0, 1, 0]), vectors=np.ones((3, 2))),
            r"images.npz, entry 3: entity 0 has",
        ),
        (
            npz(ids=np.array([0, 4999]), vectors=np.ones((2, 3))),
            r"entry 2: there is no entity 4999",
        ),
        (npz(ids=np.array([-1]), vectors=ONE), r"images.npz, entry 1: there is no entity -1"),
        (
            npz(ids=np.array([2**64 - 1], np.uint64), vectors=ONE),
            r"entry 1: there is no entity 18446",
        ),
        (npz(ids=np.arange(2), vectors=ONE), r"images.npz: 2 ids for 1 image vectors"),
        (npz(ids=np.array(0), vectors=ONE), r"'ids' has shape \(\)"),
        (npz(ids=np.arange(1), vectors=np.ones(3)), r"'vectors' has shape \(3,\)"),
        (npz(ids=np.arange(1), vectors=np.ones((1, 0))), r"images.npz, entry 1: 0 numbers"),
        (
            npz(ids=np.arange(1), vectors=np.ones((1, 2), complex)),
            r"'vectors' is an array of complex",
        ),
        (npz(ids=np.arange(1), vectors=np.array([["a"]])), r"'vectors' is an array of <U1"),
        (npz(ids=np.arange(1)), r"images.npz holds ids.npy; expected arrays 'ids' and 'vectors'"),
        (archive("ids.npy", "vectors.npy"), r"images.npz cannot be read"),
        (claiming("(1, 1099511627776)"), r"'vectors' has shape \(1, 1099511627776\)"),
        (claiming("(1099511627776, 1)"), r"'vectors' has shape \(1099511627776, 1\)"),
        (claiming("(1, 60000)"), r"images.npz: 'vectors' is cut off"),
        (claiming("(1, 3"), r"images.npz cannot be read"),
        (claiming("(1, 3)", bytes(100 << 20)), r"'vectors': the array unpacked asks for 104857"),
        (b"", r"images.npz"),
        (b"PK\x03\x04 and no more", r"images.npz"),
        (npz(ids=np.arange(1), vectors=ONE)[:-30], r"images.npz"),
    ],
)
def test_an_archive_of_images_has_a_vector_of_numbers_for_known_ids(
    tmp_path: Path, images: bytes, message: str
) -> None:
    check_refused(write_folder(tmp_path / "raw"), holds("images.npz", images), message)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({0.9: ONE[0]}, r"entry 1: 0.9 is no entity id"),
        ({"0": ONE[0]}, r"entry 1: '0' is no entity id"),
        ({True: ONE[0]}, r"entry 1: True is no entity id"),
        ({0: ONE[0], 4999: ONE[0]}, r"entry 2: there is no entity 4999"),
        ({0: ONE[0], 1: np.ones(2)}, r"entry 2: 2 numbers for entity 1, 3 before"),
        ({0: "a picture"}, r"entry 1, entity 0: no array of numbers"),
        ({0: [[1.0], [2.0, 3.0]]}, r"entry 1, entity 0: no array of numbers"),
        ({0: np.ones(2, complex)}, r"entry 1, entity 0: no array of numbers"),
        ([ONE], r"x.pkl holds a list"),
    ],
)
def test_a_dict_of_images_has_a_vector_of_numbers_for_known_ids(
    tmp_path: Path, images: object, message: str
) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(images))
    check_refused(write_folder(tmp_path / "raw"), unchanged, message, images=str(path))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ({"a": np.ones(3)}, r"x.npy is damaged or no .npy"),
        (np.ones((3, 2)), r"x.npy has shape \(3, 2\); expected one row for each of 80 entities"),
        (np.ones(80), r"x.npy has shape \(80,\)"),
        (np.array([["a"]] * 80), r"x.npy is an array of <U1"),
        (np.zeros(80, RECORDS.dtype), r"x.npy is an array of"),
        (b"not an array", r"x.npy is damaged or no .npy"),
    ],
)
def test_a_matrix_of_images_has_a_row_for_each_entity(
    tmp_path: Path, array: np.ndarray | bytes | dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "x.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif isinstance(array, dict):  # an archive of another name
        with path.open("wb") as file:
            np.savez(file, **array)
    else:
        np.save(path, array)
    raw = write_folder(tmp_path / "raw")
    check_refused(raw, unchanged, message, images=str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"--word-vectors .*glove.txt: it gives no entity a vector"),
        ("2 3\n", r"--word-vectors .*glove.txt: it gives no entity a vector"),
        ("unheard 1 2\n", r"--word-vectors .*glove.txt: it gives no entity a vector"),
        ("the\n", r"glove.txt, line 1: 0 numbers for 'the'"),
        ("the 1 2\nother 1\n", r"glove.txt, line 2: 1 numbers for 'other', 2 before"),
        ("the 1 two\n", r"glove.txt, line 1: the vector of 'the' is not of numbers"),
        ("the 1 nan\n", r"glove.txt, line 1: the vector of 'the' is not finite"),
        ("the 1 1e99\n", r"glove.txt, line 1: the vector of 'the' is not finite"),
        ("the 1 2\nthe 3 4\n", r"glove.txt, line 2: 'the' has a vector already"),
        (b"the \xff 1\n", r"glove.txt is not UTF-8"),
    ],
)
def test_word_vectors_are_numbers_for_words_of_the_names(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    vectors = tmp_path / "glove.txt"
    vectors.write_bytes(text if isinstance(text, bytes) else text.encode())
    raw = write_folder(tmp_path / "raw")
    check_refused(raw, unchanged, message, word_vectors=str(vectors))
