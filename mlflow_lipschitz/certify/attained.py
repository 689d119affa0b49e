"""What really happens near a row: the steepest point found in its region, and the nearest point found that changes the decision.

Facts about single points, for people to look at beside the bounds. They prove no bound, and nothing is judged by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.execution import rigorous_arithmetic
from mlflow_lipschitz.certify.lipschitz import DUAL_NORMS, check_points, norm_graph
from mlflow_lipschitz.certify.objectives import Outputs, checked_labels, cotangents
from mlflow_lipschitz.engine.attack.ascent import ascend, enclose_at
from mlflow_lipschitz.engine.attack.descent import descend
from mlflow_lipschitz.engine.attack.sampling import sample
from mlflow_lipschitz.engine.domains.region import Box, LpBall, Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.objectives import flat_output

_SAMPLES = 64
_STARTS, _STEPS = 8, 30
_ROUNDS = 3  # of the search for a nearer change, each within the distance of the one before
_HALVINGS = 24


@dataclass(frozen=True)
class Steepest:
    """Per point: where in the region the output was found to change fastest.

    Attributes:
        point: (points, *input shape), in the region.
        slope: (points,) dual norm of the gradient there, rounded down; at a kink the least of what it may mean; 0: none found.
    """

    point: np.ndarray
    slope: np.ndarray


@dataclass(frozen=True)
class Change:
    """Per point: the nearest point found at which the decision is another.

    Attributes:
        found: (points,) whether one was found; its decision was computed with rigorous rounding.
        point: (points, *input shape); the row itself where none was found.
        distance: (points,) in units of the perturbation, rounded up; infinite where none was found.
        decision: (points,) the class there; the row's own where none was found.
    """

    found: np.ndarray
    point: np.ndarray
    distance: np.ndarray
    decision: np.ndarray


@dataclass(frozen=True)
class Perturbations:
    """Distances: the norm (linf, l2, l1), the size of one unit per feature (*input shape), and the domain that is never left."""

    norm: str
    unit: np.ndarray
    domain: tuple[np.ndarray, np.ndarray]

    def ball(self, center: Tensor, distance: Tensor) -> Region:
        """Everything within (points,) distances."""
        reach = torch.as_tensor(self.unit) * distance.reshape(-1, *(1,) * (center.dim() - 1))
        if self.norm == "linf":
            return Box.around(center, reach, self.domain)
        return LpBall(center, reach, norm={"l2": 2, "l1": 1}[self.norm], domain=self.domain)

    def distance(self, center: Tensor, point: Tensor) -> Tensor:
        """(points,), a little more than computed; a feature that does not move adds nothing."""
        unit = torch.as_tensor(self.unit)
        moved = torch.where(unit > 0, (point - center) / torch.where(unit > 0, unit, 1.0), 0.0)
        order = {"linf": math.inf, "l2": 2, "l1": 1}[self.norm]
        return torch.linalg.vector_norm(moved.flatten(1), ord=order, dim=1) * (1 + 1e-12)


def steepest(
    graph: Graph,
    points: np.ndarray,
    region: Region,
    perturbations: Perturbations,
    outputs: Outputs = None,
    labels: Any = None,
) -> Steepest:
    """Look for the largest gradient in each region, of a few points.

    Args:
        points: (points, *input shape); the region's points.
        outputs, labels: what is judged, as `certify_lipschitz` takes them; of several objectives the steepest counts.
    """
    count, dual = check_points(graph, points, region), DUAL_NORMS[perturbations.norm]
    objectives, _ = cotangents(math.prod(graph.output_shape), outputs, count, labels)
    problem = Problem.of(norm_graph(graph, perturbations.norm, perturbations.unit), region, objectives)
    with rigorous_arithmetic():
        if dual.curve is None:
            drawn = sample(region, _SAMPLES, torch.Generator().manual_seed(0))[:, :, None]
            x = drawn.expand(*drawn.shape[:2], problem.objectives, *drawn.shape[3:])
            reached = enclose_at(problem, x)
            value = torch.maximum(reached.lower, -reached.upper).amax(-1)
        else:
            x = ascend(problem)[None]
            value = dual.finish(enclose_at(problem, x).lower[..., 0], up=False)
    value = torch.where(value.isfinite(), value, 0.0).clamp(min=0)
    # (samples, points, objectives): the best of the samples and objectives of each point
    flat = value.transpose(0, 1).flatten(1)
    best = flat.argmax(1)
    candidates = x.transpose(0, 1).flatten(1, 2)
    at = candidates[torch.arange(count), best]
    return Steepest(at.numpy(), flat[torch.arange(count), best].numpy())


def nearest_change(
    graph: Graph, points: np.ndarray, labels: np.ndarray, perturbations: Perturbations, *, within: float
) -> Change:
    """Look for another decision near each of a few points, walking downhill on the margin and then back towards the row.

    Args:
        points: (points, *input shape).
        labels: (points,) the decisions; of a graph with one output 0 or 1, its sign.
        within: the largest distance, in units of the perturbation.

    Raises:
        UsageError: labels that are no decisions of this graph.
    """
    flat = flat_output(graph)
    size = flat.output_shape[0]
    center = torch.from_numpy(np.array(points, dtype=np.float64))
    y = checked_labels(labels, len(center), max(size, 2))
    found = torch.zeros(len(center), dtype=torch.bool)
    best, distance = center.clone(), torch.full((len(center),), float(within), dtype=torch.float64)
    with rigorous_arithmetic():
        for _ in range(_ROUNDS):
            region = perturbations.ball(center, distance)
            problem = Problem.of(flat, region)
            starts = sample(region, _STARTS, torch.Generator().manual_seed(0))
            x, margin = descend(problem, lambda out: _margin(out, y), starts, steps=_STEPS)
            hit = margin < 0
            x = torch.where(_wide(hit, x), _towards(flat, center, x, y), x)
            sure, length = _changed(flat, x, y) & hit, perturbations.distance(center, x)
            nearer = sure & (length <= distance)
            best, distance = torch.where(_wide(nearer, x), x, best), torch.where(nearer, length, distance)
            found |= nearer
    out = evaluate(flat, best)
    decision = torch.where(found, out.argmax(1) if size > 1 else (out[:, 0] > 0).long(), y)
    return Change(found.numpy(), best.numpy(), np.where(found, distance, np.inf), decision.numpy())


def _margin(out: Tensor, y: Tensor) -> Tensor:
    """(samples, points): by how much the decision y leads, of (samples, points, outputs)."""
    if out.shape[-1] == 1:
        return out[..., 0] * (2.0 * y - 1.0)
    own = y.expand(out.shape[:-1])[..., None]
    return out.gather(-1, own)[..., 0] - out.scatter(-1, own, -torch.inf).amax(-1)


def _towards(graph: Graph, center: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The point of the segment to the center, by bisection, at which the decision is still another."""
    near, far = torch.zeros(len(x), dtype=torch.float64), torch.ones(len(x), dtype=torch.float64)
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        changed = _margin(evaluate(graph, center + _wide(middle, x) * (x - center))[None], y)[0] < 0
        near, far = torch.where(changed, near, middle), torch.where(changed, middle, far)
    return center + _wide(far, x) * (x - center)


def _changed(graph: Graph, x: Tensor, y: Tensor) -> Tensor:
    """(points,) whether another class surely leads, whatever the rounding of its computation."""
    reached = enclose_at(Problem.of(graph, Box(x, x)), x[None, :, None])
    lower, upper = reached.lower[0, :, 0], reached.upper[0, :, 0]
    if lower.shape[-1] == 1:
        return torch.where(y == 1, upper[:, 0] <= 0, lower[:, 0] > 0)
    own = y[:, None]
    return lower.scatter(-1, own, -torch.inf).amax(-1) > upper.gather(-1, own)[:, 0]


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """(points,) values, with axes added to broadcast against x."""
    return values.reshape(-1, *(1,) * (x.dim() - 1))
