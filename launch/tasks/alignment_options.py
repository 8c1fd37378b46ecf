"""Settings of the alignment task: metrics, seeds, and when the model proposes links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from launch.config import ConfigError, Run

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class AlignmentOptions:
    """``Run.task_options`` of this task."""

    csls: Count = 3  # neighbours; 0: scores without CSLS only
    # where training begins: the links of the data or, unsupervised, the pairs most alike in a view
    seeds: Literal["links", "image", "words", "chars"] = "links"
    num_seeds: Positive = 1000  # of those pairs
    iterate_from: Count = 0  # first epoch after which the model proposes links; 0: never
    propose_every: Positive = 5
    # probation: candidates must stay mutual nearest neighbours since the last restart
    restart_every: Positive = 50
    commit_every: Positive = 50
    # of the neighbours among which links are proposed, found by FAISS; 0: all pairs are compared
    recall: Annotated[float, Field(ge=0, le=1)] = 0.0


def alignment_options(run: Run) -> AlignmentOptions:
    """The run's ``task_options``.

    Raises:
        ConfigError: an option does not exist, or its value is not allowed.
    """
    try:
        unknown = set(run.task_options) - set(AlignmentOptions.__dataclass_fields__)
        if unknown:
            known = ", ".join(AlignmentOptions.__dataclass_fields__)
            raise ConfigError(f"task_options has no {min(unknown)!r}; there are {known}")
        return TypeAdapter(AlignmentOptions).validate_python(run.task_options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["task_options", *map(str, first["loc"])])
        raise ConfigError(f"{key}={first['input']!r}: {first['msg']}") from None
