"""The oracle's short cuts: they give what both sides of every kink give."""

from __future__ import annotations

import numpy as np
import pytest

from tests import cases
from tests.exact import one_sided, value_and_jacobian, values_at


@pytest.mark.parametrize("name", cases.DIFFERENTIABLE)
def test_one_side_is_left_out_only_where_both_are_the_same(name: str) -> None:
    for seed in range(2):
        graph, points = cases.draw(name, seed)
        for point in (points[0], points[0] + 1 / 64):
            try:
                (values, left), (_, right) = (value_and_jacobian(graph, point, side) for side in (False, True))
            except ZeroDivisionError:  # the network has no value there
                continue
            got = list(one_sided(graph, point))
            np.testing.assert_array_equal(got[0], left)
            np.testing.assert_array_equal(got[-1], right)
            np.testing.assert_array_equal(values_at(graph, point), values)


def test_a_kink_has_two_sides() -> None:
    graph, points = cases.draw("maximum of ties", 0)
    assert len(list(one_sided(graph, points[0]))) == 2
