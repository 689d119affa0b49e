"""Planes around products and curves hold for whatever slopes they are given."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mlflow_lipschitz.checker.arithmetic import FLOATS
from mlflow_lipschitz.checker.planes import Planes, planes_of
from mlflow_lipschitz.engine.ir import ops


@pytest.mark.parametrize("linear_in", [(0, 1), (1,)])
@pytest.mark.parametrize("kind", ["none", "lower ends", "upper ends", "zero", "random"])
def test_planes_around_a_product_cover_its_corners(kind: str, linear_in: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    ends = np.sort(rng.choice([-2.0, -0.1, 0.0, 0.0, 1 / 3, 5.0, 1e-300, 1e150], size=(2, 2, 400, 1)), axis=1)
    x, y = (ends[0, 0], ends[0, 1]), (ends[1, 0], ends[1, 1])
    pairs = {
        "none": None,
        # The slopes that belong to a first factor that is one number, where it is a range.
        "lower ends": (np.zeros_like(x[0]), x[0]),
        "upper ends": (np.zeros_like(x[0]), x[1]),
        "zero": (np.zeros_like(x[0]), np.zeros_like(x[0])),
        "random": (rng.normal(size=x[0].shape), rng.normal(size=x[0].shape)),
    }
    pair = pairs[kind]
    given = None if pair is None else ((pair, pair) if linear_in == (0, 1) else (pair[1:], pair[1:]))
    planes = planes_of(ops.Multiply(linear_in=linear_in), [x, y], given, FLOATS)
    assert isinstance(planes, Planes)
    for entry in range(400):
        for a in (x[0], x[1]):
            for b in (y[0], y[1]):
                operands = {0: Fraction(a[entry, 0]), 1: Fraction(b[entry, 0])}
                product = operands[0] * operands[1]
                for slopes, offset, above in (
                    (planes.above, planes.above_offset, True),
                    (planes.below, planes.below_offset, False),
                ):
                    if not np.isfinite(offset[entry, 0]):
                        continue
                    plane = Fraction(offset[entry, 0])
                    for position, slope in zip(planes.operands, slopes, strict=True):
                        plane += Fraction(slope[entry, 0]) * operands[position]
                    assert (product <= plane) if above else (product >= plane)
