"""Probes lie in the region, reach its rim, and are the same every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlflow_lipschitz.pipeline.probes import MOST_PROBES, probe_points
from mlflow_lipschitz.pipeline.question import Question

POINTS = np.array([[0.0, 0.0, 5.0], [10.0, -3.0, 5.0]])
UNIT = np.array([1.0, 2.0, 0.0])
QUESTION = Question(
    output=0, norm="linf", unit=UNIT, size=0.5, domain=(np.array([-0.25, -np.inf, 0.0]), np.full(3, np.inf)), columns=(),
    monotone=(), lipschitz_limits=(), max_radius=None,
)  # fmt: skip


def steps(probes: np.ndarray) -> np.ndarray:
    """(probes, 2) how far each is from its row, in units, along the two features that move."""
    nearest = POINTS[np.abs(probes[:, None, :1] - POINTS[None, :, :1]).argmin(axis=1)[:, 0]]
    assert (probes[:, 2] == 5.0).all()
    return (probes - nearest)[:, :2] / (UNIT[:2] * QUESTION.size)


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2), ("l1", 1)])
def test_probes_lie_in_the_region_and_reach_its_rim(norm, order) -> None:
    probes = probe_points(replace(QUESTION, norm=norm), POINTS)
    assert probes.shape == (MOST_PROBES, 3)
    lengths = np.linalg.norm(steps(probes), ord=order, axis=1)
    assert lengths.max() <= 1 + 1e-9
    assert (lengths > 1 - 1e-9).mean() > 0.25
    assert (lengths < 0.9).mean() > 0.1
    assert probes[:, 0].min() == -0.25  # the domain
    assert set(np.abs(probes[:, :1] - POINTS[:, 0]).argmin(axis=1)) == {0, 1}
    np.testing.assert_array_equal(probes, probe_points(replace(QUESTION, norm=norm), POINTS))


def test_few_probes_of_large_inputs() -> None:
    points = np.zeros((3, 3, 400, 400))
    wide = np.full(points.shape[1:], np.inf)
    question = replace(QUESTION, unit=np.ones(points.shape[1:]), domain=(-wide, wide))
    assert probe_points(question, points).shape == (8, 3, 400, 400)
