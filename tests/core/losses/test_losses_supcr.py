"""SupCR: its definition against sums written out, golden values, labels on a grid, and the model
that trains on it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from core.batch import Utterances
from core.encoders.text import TextConfig
from core.kernels.supcr.grouping import RowError
from core.losses.labels import on_grid
from core.losses.supcr import SupCR, supcr
from core.model import DataSpec
from core.models.hscl import HSCL

torch.set_num_threads(1)


def six_rows() -> tuple[Tensor, Tensor]:
    """Three samples in two views, with the values worked out for them: 1.121675, and 1.391400 in
    HSCL's code."""
    first = torch.tensor([[1, 0], [0, 1], [0.6, 0.8]], dtype=torch.float64)
    second = torch.tensor([[0.8, 0.6], [0.6, 0.8], [1, 1]], dtype=torch.float64)
    return torch.cat([first, second]), torch.tensor([1, -2, 0.5]).repeat(2)


@pytest.mark.parametrize("fused", [False, True])
def test_the_golden_value(fused):
    assert SupCR(0.5, fused=fused)(*six_rows()).item() == pytest.approx(1.121675, abs=5e-7)


def test_the_golden_value_of_the_published_code():
    assert SupCR(0.5, denominator="jk")(*six_rows()).item() == pytest.approx(1.391400, abs=5e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_equal_embeddings_leave_the_sizes_of_the_candidate_sets(fused):
    labels = torch.tensor([0.3, -1.0, 2.2, 0.9, 0.1, -2.0])
    sizes = []
    for i in range(6):
        for j in set(range(6)) - {i}:
            distance = (labels - labels[i]).abs()
            sizes.append(sum(bool(distance[k] >= distance[j]) for k in range(6) if k != i))
    expected = sum(math.log(size) for size in sizes) / 30
    found = SupCR(0.5, fused=fused)(torch.ones(6, 3, dtype=torch.float64), labels)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("denominator", ["ik", "jk"])
def test_the_definition_is_the_sums_it_stands_for(denominator):
    torch.manual_seed(0)
    rows = torch.randn(9, 4, dtype=torch.float64)
    labels = [0, 1, 2, 0, 1, 5, 5, -1, 2]
    total = 0.0
    for i in range(9):
        for j in range(9):
            if i == j:
                continue
            candidates = [
                k
                for k in range(9)
                if k != i and abs(labels[i] - labels[k]) >= abs(labels[i] - labels[j])
            ]
            pivot = i if denominator == "ik" else j
            below = sum(math.exp(rows[pivot] @ rows[k] / 0.7) for k in candidates)
            total -= math.log(math.exp(rows[i] @ rows[j] / 0.7) / below)
    found = supcr(rows, torch.tensor(labels), 0.7, denominator=denominator)
    assert found.item() == pytest.approx(total / 72, rel=1e-12)


def test_labels_may_be_vectors_in_the_definition():
    rows, labels = torch.randn(7, 3, dtype=torch.float64), torch.randint(0, 4, (7,))
    vectors = torch.stack([labels, torch.zeros(7, dtype=torch.int64)], 1)
    assert supcr(rows, vectors, 0.3) == supcr(rows, labels, 0.3)


def test_rows_of_weight_zero_take_no_part():
    rows, labels = torch.randn(12, 4), torch.arange(12) % 3
    weight = (torch.arange(12) % 4 > 0).float()
    rows[0] = math.nan  # not even these
    for loss in (SupCR(0.2), SupCR(0.2, fused=False)):
        assert loss(rows, labels, weight) == loss(rows[weight > 0], labels[weight > 0])


def test_rows_of_zeros_and_half_precision_have_finite_gradients():
    rows = torch.zeros(5, 3, dtype=torch.bfloat16, requires_grad=True)
    loss = SupCR(0.1)(rows, torch.arange(5))
    loss.backward()
    assert loss.dtype == torch.float32
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("step", [0.2, 1 / 3, 1 / 15])
def test_decimal_labels_with_a_resolution_are_exact_ties(step):
    whole = torch.arange(-6, 7).repeat(3)
    rows = torch.randn(39, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = SupCR(0.1)(rows, whole).item()
    assert SupCR(0.1, resolution=step)(rows, whole * step).item() == exact
    broken = SupCR(0.1)(rows, (whole * step).float()).item()
    assert abs(broken / exact - 1) > 1e-5  # what the resolution is there for


def test_labels_off_the_grid_are_compared_as_they_are_with_a_warning():
    labels = torch.tensor([0.2, 0.4, 0.47])
    with pytest.warns(
        UserWarning, match=r"1 of 3 labels are no multiples of resolution 0\.2 \(row 2 is 0\.47\)"
    ):
        assert on_grid(labels, 0.2) is labels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_grid(torch.tensor([0.2, -0.6]), 0.2).tolist() == [1, -3]
        assert on_grid(torch.tensor([3, 4]), 0.2).tolist() == [3, 4]


@pytest.mark.parametrize("step", [0.2, 1 / 3, 1 / 15])
def test_labels_fit_their_own_grid_in_single_precision_and_no_other(step):
    whole = torch.arange(-300, 301)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(on_grid(whole.float() * step, step), whole)
        assert torch.equal(on_grid((whole.double() * step).float(), step), whole)
    labels = whole.float() * 0.07
    with pytest.warns(UserWarning, match=f"are no multiples of resolution {step:g}"):
        assert on_grid(labels, step) is labels
    rows = torch.randn(601, 4, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="comparing labels as floats instead"):
        assert SupCR(0.1, resolution=step)(rows, labels) == SupCR(0.1)(rows, labels)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("resolution", [None, 0.2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_labels_that_are_not_finite_are_refused(fused, resolution, bad):
    with pytest.raises(
        ValueError, match=f"label of row 1 is {bad}; give rows without a label weight 0"
    ):
        SupCR(0.1, resolution=resolution, fused=fused)(
            torch.ones(3, 2), torch.tensor([0.0, bad, 0.4])
        )


def test_a_row_that_is_not_finite_is_named_as_it_was_given():
    rows, weight = torch.randn(9, 4), torch.tensor([1.0, 0, 1, 0, 1, 1, 1, 1, 1])
    rows[6, 2] = math.nan
    for given, row in ((weight, 6), (None, 6)):
        for fused in (False, True):
            with pytest.raises(RowError, match="features of row 6 are not finite") as caught:
                SupCR(0.1, fused=fused)(rows, torch.arange(9), given)
            assert caught.value.row == row
    with pytest.raises(RowError, match="features of row 2 are too long"):
        SupCR(0.1, normalize=False)(torch.tensor([[1.0, 0], [2, 0], [1e30, 1e30]]), torch.arange(3))


@pytest.mark.parametrize("labels", [[2.0], [1.0] * 7, [0.0, 1.0, 1.0, 3.0, -1.0, 0.2, 0.2]])
@pytest.mark.parametrize("temperature", [0.5, 0.005])
def test_the_module_gives_its_definition_for_one_row_equal_labels_and_low_temperatures(
    labels, temperature
):
    found = []
    for fused, dtype in ((True, torch.float32), (False, torch.float64)):
        rows = (
            torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(2))
            .to(dtype)
            .requires_grad_()
        )
        loss = SupCR(temperature, fused=fused)(rows, torch.tensor(labels))
        (3 * loss).backward()
        assert rows.grad.isfinite().all()
        found.append((loss.item(), rows.grad.double()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert (found[0][1] - found[1][1]).norm() <= 2e-5 * found[1][1].norm()


def test_wrong_settings_and_shapes_are_refused():
    for settings in ({"temperature": 0}, {"temperature": 0.1, "resolution": -1.0}):
        with pytest.raises(ValueError, match="positive"):
            SupCR(**settings)
    with pytest.raises(ValueError, match="'ik' or 'jk', got 'ij'"):
        SupCR(0.1, denominator="ij")
    with pytest.raises(ValueError, match=r"got labels \(3, 1\) for features \(3, 2\)"):
        SupCR(0.1)(torch.zeros(3, 2), torch.zeros(3, 1))


def test_hscl_trains_the_same_as_with_the_definition(
    spec: DataSpec, make_utterances: Callable[..., Utterances]
):
    small = HSCL.Config(
        text=TextConfig(width=24, layers=1, heads=4),
        layers=1,
        projection=16,
        hidden=16,
        dropout=0.0,
    )
    courses = []
    for fused in (False, True):
        torch.manual_seed(3)
        model = HSCL(small, spec)
        model.draw.fused = fused
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        course = []
        for step in range(50):
            batch = make_utterances(size=12, seed=step % 5)
            output = model(batch)
            losses = model.losses(output, batch)
            losses |= model.global_batch_losses(
                model.global_batch_rows(output), batch.label, batch.weight
            )
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            course.append([float(losses[name].detach()) for name in sorted(losses)])
        courses.append(torch.tensor(course, dtype=torch.float64))
    torch.testing.assert_close(courses[1], courses[0], rtol=1e-5, atol=1e-8)
    assert courses[0][0].sub(courses[0][45]).abs().max() > 1e-2  # it did learn something
