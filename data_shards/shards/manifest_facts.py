"""What may stand in those parts of a manifest whose keys differ between data sets.

``tokenizer``, ``source`` and ``extras`` are dictionaries that each layout fills as it needs. What
some command reads from them is declared here; other keys may hold any JSON.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
)

LARGEST_ID = 2**24  # of a token, exclusive; a model has a vector for each id

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Facts(BaseModel):
    """Facts of any names, of which those declared have these types."""

    model_config = ConfigDict(strict=True, extra="allow")


class TokenizerFacts(_Facts):
    """Of the tokenizer that made the token ids."""

    name: str = ""
    vocab_size: Annotated[int, Field(ge=0, le=LARGEST_ID)] = 0
    sha256: str = ""  # of the vocabulary
    special: dict[str, NonNegativeInt | None] = {}


class SourceFacts(_Facts):
    """Of the raw data and the conversion."""

    file: str = ""
    sha256: str | None = None
    files: dict[str, Any] = {}  # of an alignment folder
    dataset: str | None = None
    assumed: str = ""
    left_out: list[str] = Field([], alias="left out")
    no_arrays: dict[str, NonNegativeInt] = Field({}, alias="no arrays")
    without_suffix: NonNegativeInt = Field(0, alias="members without suffix")


class ExtraFacts(_Facts):
    """Further files of the folder, and facts that only one task needs."""

    codebook: Sha256 = Field("", alias="codebook.npz")
    noted: list[str] = []


KINDS: dict[str, type[_Facts]] = {
    "tokenizer": TokenizerFacts,
    "source": SourceFacts,
    "extras": ExtraFacts,
}


def first_odd_fact(facts: dict[str, Any]) -> tuple[str, ValidationError] | None:
    """The first part of a manifest that holds something of another kind, and what is wrong there.

    Args:
        facts: part -> what the manifest says there.
    """
    for part, said in facts.items():
        try:
            KINDS[part].model_validate(said)
        except ValidationError as error:
            return part, error
    return None


_TYPE_NAMES = {"string": "str", "dataclass": "dict", "tuple": "list"}  # pydantic's -> JSON's


def first_problem(error: ValidationError) -> str:
    """One line about the first problem: the path of its key, what was expected, what was found."""
    problem = error.errors(include_url=False)[0]
    kind = problem["type"]
    found = f"found {str(problem['input'])[:80]!r}"
    *path, last = map(str, problem["loc"] or ("",))
    if kind == "missing" and last.isdecimal():  # in a list of fixed length
        return ": ".join([*path, f"value {int(last) + 1} is missing"])
    if kind == "missing":
        return ": ".join([*path, f"{last!r} is missing"])
    if kind == "unexpected_keyword_argument":
        return ": ".join([*path, f"unknown {last!r}"])
    if kind == "literal_error":
        expected = problem["ctx"]["expected"]
        return ": ".join([*path, f"unknown {last} {problem['input']!r}; expected {expected}"])
    if kind.endswith("_type"):
        name = kind.removesuffix("_type")
        expected = f"expected {_TYPE_NAMES.get(name, name)}"
    else:
        expected = problem["msg"].removeprefix("Value error, ")
    return ": ".join([*path, last, f"{expected}, {found}"])


def check_range(low: float, high: float, step: float | None) -> None:
    """ValueError unless scores can lie from ``low`` to ``high``, in steps where some are stated."""
    span = high - low
    if not 0 < span < math.inf:
        raise ValueError(f"from {low:g} to {high:g} is no range of scores")
    if step is not None and not 0 < step <= span:
        raise ValueError(f"a range of {span:g} has no steps of {step:g}")
