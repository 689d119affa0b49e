"""Where a bound is most likely to be wrong: many points of a region looked at in float64, the worst of them kept.

This only chooses points; whether a bound holds at them is decided in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.engine.attack.sampling import clip, sample
from mlflow_lipschitz.engine.domains.region import Box, Region
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import run
from mlflow_lipschitz.engine.rules.curves.table import facts_of
from mlflow_lipschitz.engine.rules.weights import weights_of
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph
from tests.exact_curves import KINKED
from tests.soundness.regions import contains

_CPU = torch.device("cpu")
_SAMPLES = 24
_SECANTS = 3
_STEPS = (0.5, 0.05)
_TRIES = 4  # of the worst points, until one lies in the region


@dataclass(frozen=True)
class Looked:
    """x (samples, points, *input shape), values (samples, points, outputs), jacobian (…, outputs, inputs) or None; NumPy."""

    x: np.ndarray
    values: np.ndarray
    jacobian: np.ndarray | None

    def worst(self, region: Region, row: int, excess: np.ndarray) -> np.ndarray | None:
        """The point of the region at which `excess` (samples,) of the row is largest; None where none of the worst lies in it."""
        order = np.argsort(np.where(np.isnan(excess), np.inf, excess), kind="stable")[::-1]
        return next((self.x[i, row] for i in order[:_TRIES] if contains(region, row, self.x[i, row])), None)


def look(graph: Graph, region: Region, generator: torch.Generator, *, differentiable: bool) -> Looked:
    """Values and derivatives at points of every kind."""
    with torch.no_grad():
        x = torch.cat(list(_points(graph, region, generator)))
    weights = weights_of(graph, _CPU)
    if not differentiable:
        return Looked(x.numpy(), _run(graph, x).numpy(), None)
    gradient = gradient_graph(graph)
    for step in _STEPS:
        x = torch.cat([x, _uphill(gradient, graph, region, x[-_SAMPLES:], step)])
    with torch.no_grad():
        values = run(graph, weights, x.flatten(0, 1)[:, None], None).reshape(*x.shape[:2], -1)
        jacobian = _jacobian(gradient, graph, x)
    return Looked(x.numpy(), values.numpy(), jacobian.numpy())


def _points(graph: Graph, region: Region, generator: torch.Generator) -> Iterator[Tensor]:
    points = sample(region, _SAMPLES, generator)
    yield points
    yield clip(region, points[:8].mul(8).round() / 8)
    yield clip(region, points[:4].round())
    if not isinstance(region, Box):
        # To the very surface; the exact check drops what rounding put beyond it.
        away = points[1:9] - region.center
        size = torch.linalg.vector_norm(
            torch.where(region.radius > 0, away / region.radius, 0.0).flatten(2), ord=region.norm, dim=-1
        )
        scale = torch.where(size > 0, 1 / size, 0.0).reshape(*size.shape, *[1] * (away.dim() - 2))
        inside = torch.minimum(torch.maximum(region.center + away * scale, region.box.lower), region.box.upper)
        yield inside
    yield from _on_kinks(graph, region, points)


def _on_kinks(graph: Graph, region: Region, points: Tensor) -> Iterator[Tensor]:
    """Points between pairs of points at which some curve's argument changes its side, by secants."""
    arguments = _kink_arguments(graph)
    if arguments is None:
        return
    a, b = points[: _SAMPLES // 2], points[_SAMPLES // 2 :]
    left, right = _run(arguments, a), _run(arguments, b)
    crosses = (left * right <= 0) & left.isfinite() & right.isfinite()
    order = torch.arange(left.shape[-1]).roll(1) if left.shape[-1] > 1 else torch.zeros(1, dtype=torch.long)
    priority = torch.where(crosses, 1.0 + (order + torch.arange(len(a))[:, None, None]) % left.shape[-1], 0.0)
    chosen = priority.argmax(-1, keepdim=True)
    for _ in range(_SECANTS):
        low, high = left.gather(-1, chosen), right.gather(-1, chosen)
        share = torch.where(low != high, low / (low - high), 0.5).clamp(0, 1).nan_to_num(0.5)
        middle = a + (b - a) * share.reshape(*share.shape[:2], *[1] * (a.dim() - 2))
        middle = clip(region, middle)
        at = _run(arguments, middle)
        same = (at.gather(-1, chosen) * low > 0).reshape(*share.shape[:2], *[1] * (a.dim() - 2))
        a, b = torch.where(same, middle, a), torch.where(same, b, middle)
        moved = same.reshape(*share.shape[:2], 1)
        left, right = torch.where(moved, at, left), torch.where(moved, right, at)
    yield middle
    yield clip(region, torch.nextafter(middle, points[: len(middle)]))


def _kink_arguments(graph: Graph) -> Graph | None:
    """The arguments of all kinked curves minus the places of their kinks, as one vector."""
    builder = GraphBuilder(graph)
    flat = []
    for node in graph.nodes:
        if isinstance(node.op, ops.Elementwise) and node.op.curve in KINKED:
            source = node.inputs[0]
            size = int(np.prod(builder.shape(source)))
            for piece in facts_of(node.op.curve, node.op.parameters).pieces[:-1]:
                shifted = builder.add(ops.ScaleShift(shift=ops.frozen_array(-piece.end)), source)
                flat.append(builder.add(ops.Reshape((size,)), shifted))
    return builder.build(builder.add(ops.Concat(0), *flat)) if flat else None


def _run(graph: Graph, x: Tensor) -> Tensor:
    """(samples, points, outputs)"""
    return run(graph, weights_of(graph, _CPU), x.flatten(0, 1)[:, None], None).reshape(*x.shape[:2], -1)


def _jacobian(gradient: Graph, graph: Graph, x: Tensor) -> Tensor:
    """(samples, points, outputs, inputs)"""
    size = int(np.prod(graph.output_shape))
    rows = torch.eye(size, dtype=torch.float64)[None]
    found = run(gradient, weights_of(gradient, _CPU), x.flatten(0, 1)[:, None], rows)
    return found.expand(x.shape[0] * x.shape[1], size, -1).reshape(*x.shape[:2], size, -1)


def _uphill(gradient: Graph, graph: Graph, region: Region, x: Tensor, step: float) -> Tensor:
    """A step that makes the derivatives larger."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        size = _jacobian(gradient, graph, leaf).abs().sum()
        slope = torch.autograd.grad(size, leaf, allow_unused=True)[0] if size.requires_grad else None
    if slope is None:
        return x
    reach = region.box.upper - region.box.lower
    return clip(region, x + step * reach * slope.nan_to_num(0.0).sign())
