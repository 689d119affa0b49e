"""What is checked of a lowered operator besides its values: its derivative against autograd, its bounds against exact numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch

from mlflow_lipschitz.certify import certify_lipschitz, certify_monotonicity
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate, run
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes, refine_node
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.weights import weights_of
from mlflow_lipschitz.engine.transforms.clarke_jacobian import clarke_jacobian
from mlflow_lipschitz.frontends.lowering import lower
from tests import properties
from tests.frontends.onnx_models import make_model, node


def jacobian(graph: Graph, point: np.ndarray) -> np.ndarray:
    """The element of the Clarke Jacobian that the engine evaluates at a point; (outputs, *input shape) float64."""
    derivative, size = clarke_jacobian(graph), math.prod(graph.output_shape)
    rows = torch.eye(size, dtype=torch.float64).reshape(1, size, *graph.output_shape)
    x = torch.from_numpy(np.asarray(point, dtype=np.float64))[None, None].expand(1, size, *point.shape)
    return run(derivative, weights_of(derivative, x.device), x, rows)[0].numpy()


def assert_agrees_with_torch(
    model: onnx.ModelProto, shape: Sequence[int], function: Callable[[torch.Tensor], torch.Tensor], seed: int = 0
) -> None:
    """Values and derivative of the lowered model are those of `function`, which takes a batch, in float64."""
    point = np.random.default_rng(seed).normal(size=tuple(shape))
    graph = lower(model)
    x = torch.from_numpy(point)[None]
    expected = torch.autograd.functional.jacobian(lambda z: function(z).flatten(), x)[:, 0].numpy()
    np.testing.assert_allclose(evaluate(graph, point[None])[0], function(x).flatten(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(jacobian(graph, point), expected, rtol=1e-9, atol=1e-9)


def between_layers(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: Mapping[str, np.ndarray],
    seed: int,
    opset: int = 20,
) -> Graph:
    """A small network around the nodes, which lead from "a", of this sample shape, to "b": random weights before and after."""
    rng, size = np.random.default_rng(seed), math.prod(shape)
    before = rng.integers(-8, 9, size=(3, size)).astype(np.float32) / 8
    around = {
        "first": before,
        "inner": np.array([0, *shape], dtype=np.int64),
        "flat": np.array([0, -1], dtype=np.int64),
    }
    middle = [node("MatMul", "x first", "m"), node("Reshape", "m inner", "a"), *nodes, node("Reshape", "b flat", "f")]
    size = lower(make_model([*middle, node("Identity", "f")], (3,), {**around, **constants}, opset=opset)).output_shape[
        0
    ]
    after = rng.integers(-8, 9, size=(size, 2)).astype(np.float32) / 8
    return lower(
        make_model([*middle, node("MatMul", "f last")], (3,), {**around, "last": after, **constants}, opset=opset)
    )


def value_bounds(graph: Graph, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Certified lower and upper bounds of the graph's output, (points, *output shape)."""
    problem = Problem.of(graph, box)
    with torch.no_grad():
        values = refine_node(problem, bound_nodes(problem, Refinement(7)), graph.output, Refinement(7))
    return values.lower[:, 0].numpy(), values.upper[:, 0].numpy()


def assert_bounds_hold(graph: Graph, seed: int, radius: float) -> None:
    """Certified values, derivatives and Lipschitz constants contain those at sampled points, in exact arithmetic."""
    rng = np.random.default_rng(seed)
    center = rng.integers(-8, 9, size=(1, *graph.input_shape)) / 8
    box = Box.around(center, radius)
    low, high = value_bounds(graph, box)
    slopes = certify_monotonicity(graph, center, box, output=1, device="cpu")
    constant = certify_lipschitz(graph, center, box, device="cpu")
    lower_end, upper_end = box.lower[0].numpy(), box.upper[0].numpy()
    corner = np.where(rng.random(graph.input_shape) < 0.5, lower_end, upper_end)
    for point in (center[0], corner, lower_end + (upper_end - lower_end) * rng.random(graph.input_shape)):
        properties.values_lie_within(graph, low[0], high[0], point)
        properties.derivatives_lie_within(graph, slopes, 0, point)
        properties.lipschitz_is_not_exceeded(graph, constant, 0, point)
