"""Against the state of the art's own numbers: never looser than its bounds, never below what is known to be reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlflow_lipschitz.certify import certify_lipschitz
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph, summed
from tests.reference_cases import ReferenceCase, reference_cases

CASES = reference_cases()
pytestmark = pytest.mark.skipif(not CASES, reason="the reference networks are not beside this checkout")


@pytest.mark.parametrize("case", [c for c in CASES if c.row.get("reference_upper")], ids=lambda c: c.name)
def test_bounds_against_the_reference_method(case: ReferenceCase) -> None:
    graph, points = case.graph, case.points
    box = Box.around(points, case.radius)
    upper = certify_lipschitz(graph, points, box, device="cpu").upper
    with torch.no_grad():
        objectives = torch.eye(graph.output_shape[0], dtype=torch.float64)[None]
        plain = bound_nodes(Problem.of(summed(gradient_graph(graph), "abs"), box, objectives), None)[-1].interval.upper
    largest = upper.max(axis=1)
    assert (largest <= case.values("reference_upper") * (1 + 1e-6)).all()
    assert (largest >= case.values("sampled_lower")).all()
    assert (upper <= plain[..., 0].numpy()).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.exact], ids=lambda c: c.name)
def test_bounds_are_never_below_exact_values(case: ReferenceCase) -> None:
    points = case.points
    for known in case.exact:
        row = points[known["point"]][None]
        got = certify_lipschitz(case.graph, row, Box.around(row, case.radius), outputs=known["cls"], device="cpu")
        assert got.upper[0, 0] >= known["exact_lower"]
        if known["status"] == 0:
            assert np.nextafter(got.lower[0, 0], 0) <= known["upper"]
