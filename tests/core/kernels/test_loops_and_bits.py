"""Compiled loops shared by threads, and dropout's bits made by one of them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from core.dropout import keep_mask, sample_masks
from core.kernels import compiled_loop
from core.kernels.dropout import formula

CPU = torch.device("cpu")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "shape", [(32, 10, 64), (7, 3, 5, 11), (2, 300, 300), (4,), (0, 3), (3, 0)]
)
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9999999])
def test_compiled_bits_are_those_of_the_formula(
    shape: tuple[int, ...], p: float, threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiled_loop, "FEWEST_ELEMENTS", 1)
    monkeypatch.setattr(compiled_loop, "num_threads", lambda: threads)
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[: shape[0]]
    for seed, step, layer in ((1111, 0, 1), (5, 77, 12)):
        key = formula.hash64(seed, step)
        state = formula.mix_states(formula.mix_states(index + key) + layer)
        positions = formula.positions_of(torch.Size(shape[1:]), CPU)
        bound = round(p * 2.0**32) - 2**31
        expected = formula.keep_bits(torch.Size(shape), state, positions, bound)
        with sample_masks(seed, step, index):
            assert torch.equal(keep_mask(torch.Size(shape), p, layer, CPU), expected)


@compiled_loop.loop("mask rows")
def count_up(lower, upper, mask):
    for row in range(lower, upper):
        mask[row] += 1


@compiled_loop.loop("mask rows")
def refuse(lower, upper, mask):
    if upper == len(mask):
        raise ValueError("of the last part")
    mask[lower:upper] = 1


@pytest.mark.parametrize(("rows", "threads"), [(0, 3), (1, 3), (2, 3), (7, 3), (100, 1), (100, 8)])
def test_each_unit_is_done_once(rows: int, threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled_loop, "FEWEST_ELEMENTS", 1)
    monkeypatch.setattr(compiled_loop, "num_threads", lambda: threads)
    mask = np.zeros((rows, 2), np.int64)
    count_up(mask=mask)
    assert (mask == 1).all()


def test_a_fault_of_any_thread_comes_out_after_all_have_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled_loop, "FEWEST_ELEMENTS", 1)
    monkeypatch.setattr(compiled_loop, "num_threads", lambda: 3)
    mask = np.zeros((9, 1), np.int64)
    with pytest.raises(ValueError, match="of the last part"):
        refuse(mask=mask)
    assert mask[:6].all()


def test_a_forked_process_makes_threads_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled_loop, "FEWEST_ELEMENTS", 1)
    monkeypatch.setattr(compiled_loop, "num_threads", lambda: 2)
    mask = np.zeros((8, 1), np.int64)
    count_up(mask=mask)
    child = os.fork()
    if child == 0:
        count_up(mask=mask)
        os._exit(0 if (mask == 2).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("torch_has", "numba_has", "threads"), [(1, 8, 1), (2, 8, 2), (4, 1, 1)])
def test_loops_use_no_more_threads_than_torch_and_the_user_have(
    torch_has: int, numba_has: int, threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiled_loop.torch, "get_num_threads", lambda: torch_has)
    monkeypatch.setattr(compiled_loop.numba.config, "NUMBA_NUM_THREADS", numba_has)
    assert compiled_loop.num_threads() == threads
