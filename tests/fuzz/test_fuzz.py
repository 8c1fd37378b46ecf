"""Doors under fuzz: each spoilt input is let in, or refused in one line that names its file;
nothing else happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz_workers import DOORS, Workers

FEW, MANY = 60, 2000  # cases of each door


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(2) as running:
        yield running


def refuses_in_one_line(workers: Workers, door: str, seeds: range) -> None:
    tally = workers.run(door, seeds)
    assert tally.cases == len(seeds)
    assert not tally.faults, "\n".join(map(str, tally.faults[:10]))
    # else the cases would be so spoilt, or so little, that they show nothing
    assert 0.2 < tally.refused / tally.cases < 0.98


@pytest.mark.parametrize("door", DOORS)
def test_a_few_spoilt_inputs(workers: Workers, door: str):
    refuses_in_one_line(workers, door, range(1_000_000, 1_000_000 + FEW))


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_many_spoilt_inputs(workers: Workers, door: str):
    refuses_in_one_line(workers, door, range(MANY))
