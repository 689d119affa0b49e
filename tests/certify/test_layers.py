"""What is said of each layer: norms that can be recomputed, and shares of open units that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch.nn import functional as F

from mlflow_lipschitz.certify import layers
from mlflow_lipschitz.certify.layers import layer_facts
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder


def network(weight: np.ndarray, curve: str = "relu") -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((weight.shape[1],)))
    hidden = builder.add(ops.Elementwise(curve), builder.add(ops.Linear(ops.frozen_array(weight)), x, name="first"))
    out = np.ones((1, weight.shape[0]))
    return builder.build(builder.add(ops.Linear(ops.frozen_array(out)), hidden, name="last"))


def around(center: list[float], radius: float) -> Box:
    return Box.around(np.array([center]), radius)


def test_norms_are_those_of_the_weights() -> None:
    first, last = layer_facts(network(np.diag([3.0, 4.0])), around([1.0, 1.0], 0.1), device="cpu")
    assert (first.name, first.kind, first.size) == ("first", "Linear, relu", "2 → 2")
    assert first.norm == pytest.approx(4.0)
    assert first.condition == pytest.approx(4.0 / 3.0)
    assert first.stable_rank == pytest.approx(1.0 + 9.0 / 16.0)
    assert (last.kind, last.unstable) == ("Linear", None)
    assert last.norm == pytest.approx(math.sqrt(2.0))


def test_a_lost_direction_has_an_infinite_condition() -> None:
    first, _ = layer_facts(network(np.array([[1.0, 1.0], [2.0, 2.0]])), around([1.0, 1.0], 0.1), device="cpu")
    assert first.condition == math.inf
    assert first.stable_rank == pytest.approx(1.0)


@pytest.mark.parametrize(("center", "share"), [([1.0, 1.0], 0.0), ([0.05, 1.0], 0.5), ([0.0, 0.05], 1.0)])
def test_open_units_are_those_whose_side_of_the_kink_is_open(center: list[float], share: float) -> None:
    first, _ = layer_facts(network(np.eye(2)), around(center, 0.1), device="cpu")
    assert (first.unstable, first.smooth) == (share, False)


def test_the_share_is_the_mean_over_the_rows() -> None:
    region = Box.around(np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), 0.1)
    assert layer_facts(network(np.eye(2)), region, device="cpu")[0].unstable == pytest.approx(0.5)


def test_a_smooth_activation_is_said_to_be_one() -> None:
    first, _ = layer_facts(network(np.eye(2), "tanh"), around([1.0, 1.0], 0.1), device="cpu")
    assert first.kind == "Linear, tanh"
    assert first.smooth


def convolution() -> Graph:
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.add(ops.Input((2, 5, 5)))
    weight = ops.frozen_array(rng.normal(size=(3, 2, 3, 3)))
    y = builder.add(ops.Conv(weight, None, (1, 1), ((1, 1), (1, 1)), (1, 1)), x, name="conv")
    flat = builder.add(ops.Reshape((75,)), builder.add(ops.Elementwise("relu"), y))
    return builder.build(flat)


def test_a_convolution_has_the_norm_of_its_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    graph = convolution()
    weight = torch.tensor(np.array(graph.nodes[1].op.weight))  # type: ignore[attr-defined]
    unit = torch.eye(50, dtype=torch.float64).reshape(50, 2, 5, 5)
    values = np.linalg.svd(F.conv2d(unit, weight, padding=1).reshape(50, -1).numpy(), compute_uv=False)
    region = Box.around(np.zeros((1, 2, 5, 5)), 0.1)
    (found,) = layer_facts(graph, region, device="cpu")
    assert found.norm == pytest.approx(values[0])
    assert found.condition == pytest.approx(values[0] / values[-1])
    monkeypatch.setattr(layers, "_DENSE_ENTRIES", 10)
    (large,) = layer_facts(graph, region, device="cpu")
    assert large.condition is None
    assert large.norm is not None
    assert values[0] * 0.98 < large.norm <= values[0] * (1 + 1e-9)


def test_a_layer_of_no_numbers_claims_nothing() -> None:
    first, _ = layer_facts(network(np.array([[np.nan, 1.0], [0.0, 1.0]])), around([1.0, 1.0], 0.1), device="cpu")
    assert (first.norm, first.condition, first.stable_rank) == (None, None, None)
