"""The convolution of the GPU, checked on a CPU: small whole numbers leave no room for rounding, so both must agree exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.rules.convolution import (
    by_places,
    convolve,
    convolve_transposed,
    transposed_by_places,
)


@pytest.mark.parametrize(
    ("axes", "groups", "stride", "dilation", "kernel"),
    list(itertools.product((1, 2, 3), (1, 2), (1, 2, 3), (1, 2), (1, 2, 3))),
)
def test_one_product_per_place_is_the_convolution(
    axes: int, groups: int, stride: int, dilation: int, kernel: int
) -> None:
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.integers(-8, 9, (4, 3, *(kernel,) * axes)).astype(float))
    op = ops.Conv(weight.numpy(), None, (stride,) * axes, ((0, 0),) * axes, (dilation,) * axes, groups)
    x = torch.from_numpy(rng.integers(-8, 9, (5, 3 * groups, *(7, 8, 6)[:axes])).astype(float))
    y = convolve(op, weight, x)
    assert torch.equal(by_places(op, weight, x), y)
    assert torch.equal(transposed_by_places(op, weight, y), convolve_transposed(op, weight, y))
