"""Parts of a search that live in the driver only: what Ray stores of them, or copies, is never used."""

from __future__ import annotations

from typing import Any


class Driver:
    """Copies are the thing itself, and stored it is nothing: the journal is what a search goes on from."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Driver:
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()
