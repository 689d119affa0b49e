"""What half-spaces leave of a box: never less than there is, and exactly that where it is known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mlflow_lipschitz.engine.search.half_spaces import HalfSpaces, leave_nothing, shrunk


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_case(seed: int, rows: int, inputs: int, scale: float = 1.0) -> tuple[Tensor, Tensor, HalfSpaces]:
    """Boxes, and half-spaces of which most cut the box."""
    rng = np.random.default_rng(seed)
    center, radius = rng.normal(size=(50, inputs)) * scale, rng.uniform(0, 1, size=(50, inputs)) * scale
    coeffs = rng.normal(size=(50, rows, inputs)) * rng.integers(0, 2, size=(50, rows, inputs))
    middle = (coeffs * center[:, None]).sum(-1)
    spread = (np.abs(coeffs) * radius[:, None]).sum(-1)
    threshold = middle + spread * rng.uniform(-1.1, 1.1, size=(50, rows))
    return tensor(center - radius), tensor(center + radius), HalfSpaces(tensor(coeffs), tensor(threshold))


def exactly_inside(x: Tensor, spaces: HalfSpaces, box: int) -> bool:
    values = [Fraction(v) for v in x.tolist()]
    for row, threshold in zip(spaces.coeffs[box].tolist(), spaces.threshold[box].tolist(), strict=True):
        if sum(Fraction(c) * v for c, v in zip(row, values, strict=True)) < Fraction(threshold):
            return False
    return True


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1e-12, 1.0, 1e12]))
def test_no_point_that_is_left_is_lost(seed: int, rows: int, inputs: int, scale: float) -> None:
    lower, upper, spaces = random_case(seed, rows, inputs, scale)
    low, high, empty = shrunk(lower, upper, spaces)
    nothing = leave_nothing(lower, upper, spaces)
    share = torch.rand(40, *lower.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    share[::2] = share[::2].round()  # corners, where it is tight
    x = torch.minimum(torch.maximum(lower * (1 - share) + upper * share, lower), upper)
    left = ((spaces.coeffs * x[:, :, None]).sum(-1) >= spaces.threshold).all(-1)
    for sample, box in left.nonzero().tolist():
        if not exactly_inside(x[sample, box], spaces, box):
            continue
        assert not empty[box] and not nothing[box]
        assert (low[box] <= x[sample, box]).all() and (x[sample, box] <= high[box]).all()


def test_a_box_shrinks_to_what_is_left() -> None:
    # x + y ≥ 1.5 in the unit square leaves [0.5, 1]²; −x ≥ −0.75 then leaves x ≤ 0.75 and y ≥ 0.75.
    spaces = HalfSpaces(tensor([[[1.0, 1.0], [-1.0, 0.0]]]), tensor([[1.5, -0.75]]))
    low, high, empty = shrunk(tensor([[0.0, 0.0]]), tensor([[1.0, 1.0]]), spaces)
    np.testing.assert_allclose(low.numpy(), [[0.5, 0.75]], atol=1e-12)
    np.testing.assert_allclose(high.numpy(), [[0.75, 1.0]], atol=1e-12)
    assert not empty.any() and (low.numpy() <= [[0.5, 0.75]]).all() and (high.numpy() >= [[0.75, 1.0]]).all()


def test_nothing_is_left_beyond_the_corner_and_something_at_it() -> None:
    lower, upper = tensor([[0.0, 0.0]] * 3), tensor([[1.0, 1.0]] * 3)
    spaces = HalfSpaces(tensor([[[1.0, 1.0]]] * 3), tensor([[2.0], [2.0 + 1e-9], [3.0]]))
    assert shrunk(lower, upper, spaces)[2].tolist() == [False, True, True]
    assert leave_nothing(lower, upper, spaces).tolist() == [False, True, True]


def test_half_spaces_that_only_together_leave_nothing() -> None:
    # x + y ≥ 1.01 and x + y ≤ 0.99; each leaves a part of the square.
    spaces = HalfSpaces(tensor([[[1.0, 1.0], [-1.0, -1.0]]]), tensor([[1.01, -0.99]]))
    lower, upper = tensor([[0.0, 0.0]]), tensor([[1.0, 1.0]])
    assert not shrunk(lower, upper, spaces)[2].any()
    assert leave_nothing(lower, upper, spaces).all()
    touching = HalfSpaces(spaces.coeffs, tensor([[1.0, -1.0]]))
    assert not leave_nothing(lower, upper, touching).any()


def test_rows_of_different_size_are_weighed() -> None:
    coeffs = tensor([[[1.0, 1.0], [-1e6, -1e6]]])
    lower, upper = tensor([[0.0, 0.0]]), tensor([[1.0, 1.0]])
    assert leave_nothing(lower, upper, HalfSpaces(coeffs, tensor([[1.2, -0.9e6]]))).all()
    assert not leave_nothing(lower, upper, HalfSpaces(coeffs, tensor([[0.9, -0.9e6]]))).any()


@pytest.mark.parametrize("threshold", [-np.inf, np.nan])
def test_what_is_unknown_rules_nothing_out(threshold: float) -> None:
    lower, upper = tensor([[0.0, 0.0]]), tensor([[1.0, 1.0]])
    spaces = HalfSpaces(tensor([[[1.0, -1.0], [0.0, 0.0]]]), tensor([[threshold, threshold]]))
    low, high, empty = shrunk(lower, upper, spaces)
    assert torch.equal(low, lower) and torch.equal(high, upper) and not empty.any()
    assert not leave_nothing(lower, upper, spaces).any()


def test_coefficients_that_are_no_numbers_rule_nothing_out() -> None:
    lower, upper = tensor([[0.0, 0.0]]), tensor([[1.0, 1.0]])
    for bad in (np.nan, np.inf, -np.inf):
        spaces = HalfSpaces(tensor([[[bad, 1.0]]]), tensor([[0.5]]))
        low, high, empty = shrunk(lower, upper, spaces)
        assert torch.equal(low, lower) and torch.equal(high, upper) and not empty.any()
        assert not leave_nothing(lower, upper, spaces).any()
