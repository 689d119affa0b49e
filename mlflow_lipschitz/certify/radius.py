"""Certified radii: how far a point may be perturbed before the prediction can change.

A radius r is certified when every margin f_y − f_j stays positive over the ball, either by bounding the margin itself or
because margin(x₀) > r · L(r), with L the margin's local Lipschitz constant over that ball (Hein & Andriushchenko, NeurIPS 2017).
A model that cannot be differentiated has only the first of the two.
Radii are searched in a batch: each round tests a grid between the largest certified and the smallest refused one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.execution import (
    default_chunk_size,
    halving,
    portions,
    resolve_device,
    rigorous_arithmetic,
)
from mlflow_lipschitz.certify.lipschitz import DUAL_NORMS, lipschitz_upper
from mlflow_lipschitz.certify.objectives import checked_labels, margins
from mlflow_lipschitz.engine.domains.region import Box, LpBall, Region
from mlflow_lipschitz.engine.domains.rounding import next_up
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.backward import upper_bounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.objectives import flat_output, gradient_graph
from mlflow_lipschitz.errors import InvalidRegion, UnsupportedOperator, UsageError

_GRID = 8  # radii per point and round
_STRETCH = (1.02, 1.1, 1.3, 2.0)  # of the radius the margin bound certified, tried with the Lipschitz bound
_ROUNDS = 4  # the answer is within max_radius / 9⁴ of the largest radius the bounds can certify

Certifies = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RadiusCertificate:
    """Per point: the prediction is the label everywhere within `radius`.

    Attributes:
        radius: (points,) certified; 0 where nothing is.
        margin: (points,) certified lower bound of the smallest margin at the point itself; negative: not the label.
        status: (points,) `certified` (radius > 0), `violated` (the point itself is not predicted as its label) or `undecided`.
    """

    radius: np.ndarray
    margin: np.ndarray
    status: np.ndarray
    norm: str
    arithmetic: str = "real"


def certified_radius(  # noqa: PLR0913 — the contract's signature
    graph: Graph,
    points: Any,
    labels: Any,
    *,
    norm: str = "linf",
    max_radius: float = 1.0,
    feature_scale: Any = None,
    domain: tuple[Any, Any] | None = None,
    device: str = "auto",
    chunk_size: int | None = None,
) -> RadiusCertificate:
    """Largest radius found at which no perturbation changes the prediction.

    Args:
        graph: the model; with one output its sign decides between class 0 and class 1.
        points: (points, *input shape).
        labels: (points,) class indices.
        norm: linf, l2 or l1.
        max_radius: the search ends here.
        feature_scale: broadcasts to the input shape; the perturbation of feature i is measured in units of feature_scale[i].
        domain: (lower, upper) that the perturbed input never leaves.

    Raises:
        UsageError: unknown norm, label or device, or a max_radius that is not a positive number.
    """
    if norm not in DUAL_NORMS:
        raise UsageError(f"norm={norm!r}: choose one of {', '.join(DUAL_NORMS)}")
    if not (math.isfinite(max_radius) and max_radius > 0):
        raise UsageError(f"max_radius={max_radius!r} must be a positive number")
    place = resolve_device(device)
    flat = flat_output(graph)
    center = torch.as_tensor(np.array(points), dtype=torch.float64)
    if tuple(center.shape[1:]) != graph.input_shape or len(center) == 0:
        raise InvalidRegion(f"points {tuple(center.shape)} must be (points, *{graph.input_shape}), at least one")
    ball = _Ball(center, _unit(center, feature_scale, max_radius), norm, domain)
    rows = _margin_rows(flat.output_shape[0], len(center), labels).to(place)
    problem = Problem.of(flat, ball.region(torch.zeros(center.shape[0])), None, place)
    size = chunk_size or default_chunk_size(place, graph)
    with rigorous_arithmetic():
        radius, margin, wrong = halving(size, lambda chunk: _in_portions(problem, ball, rows, max_radius, chunk))
    status = np.where(radius > 0, "certified", np.where(wrong, "violated", "undecided"))
    return RadiusCertificate(radius, margin, status, norm)


@dataclass(frozen=True)
class _Ball:
    center: Tensor
    unit: Tensor
    norm: str
    domain: tuple[Any, Any] | None

    def rows(self, start: int, stop: int) -> _Ball:
        return replace(self, center=self.center[start:stop], unit=self.unit[start:stop])

    def region(self, radius: Tensor) -> Region:
        """Regions for (points,) radii, or for (points · grid,) with the grid as the fastest axis."""
        repeat = radius.shape[0] // self.center.shape[0]
        center = self.center.repeat_interleave(repeat, 0)
        reach = self.unit.repeat_interleave(repeat, 0) * radius.reshape(-1, *(1,) * (center.dim() - 1)).to(center)
        # A product rounded down would make the region smaller than the radius that is reported.
        reach = torch.where(reach == 0, 0.0, torch.nextafter(reach, torch.full_like(reach, torch.inf)))
        if self.norm == "linf":
            return Box.around(center, reach, self.domain)
        return LpBall(center, reach, 2 if self.norm == "l2" else 1, self.domain)


def _unit(center: Tensor, feature_scale: Any, max_radius: float) -> Tensor:
    if feature_scale is None:
        return torch.ones_like(center)
    scale = torch.as_tensor(np.array(feature_scale), dtype=torch.float64)
    if not bool(((scale * max_radius).isfinite() & (scale >= 0)).all()):
        raise UsageError("feature_scale must not be negative, and feature_scale times max_radius must be finite")
    return torch.broadcast_to(scale, center.shape[1:]).expand(center.shape)


def _margin_rows(size: int, points: int, labels: Any) -> Tensor:
    """(points, 1, margins, outputs): rows whose products with the output must all stay positive."""
    if size == 1:
        sign = 2.0 * checked_labels(labels, points, 2).to(torch.float64) - 1.0
        return sign[:, None, None, None]
    return margins(size, points, labels)[:, None]


def _in_portions(
    problem: Problem, ball: _Ball, rows: Tensor, max_radius: float, chunk_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = ball.center.shape[0]
    radius, margin, wrong = np.zeros(count), np.full(count, -np.inf), np.zeros(count, dtype=bool)
    refinement, sloped = Refinement(chunk_size), _has_slope(problem.graph)
    for first, last in portions(count, max(1, chunk_size // (8 * _GRID))):
        part, own_rows = problem.with_rows(first, last), rows[first:last]
        at_center = _margin_lower(part, own_rows, refinement)
        by_margin = partial(_safe_by_margin, part, ball.rows(first, last), own_rows, refinement)
        best = largest_certified(by_margin, last - first, max_radius)
        if sloped:
            by_slope = partial(_safe_by_lipschitz, part, ball.rows(first, last), own_rows, at_center, refinement)
            best = torch.maximum(best, _stretched(by_slope, best, max_radius))
        radius[first:last], margin[first:last] = best.numpy(), at_center.amin(-1).cpu().numpy()
        # Margins are bounded from below; only a bound from above can show that the label is wrong.
        wrong[first:last] = (-_margin_lower(part, -own_rows, refinement) <= 0).any(-1).cpu().numpy()
    return radius, margin, wrong


def _has_slope(graph: Graph) -> bool:
    """Whether the graph can be differentiated; a model that rounds its activations cannot."""
    try:
        gradient_graph(graph)
    except UnsupportedOperator:
        return False
    return True


def _safe_by_margin(problem: Problem, ball: _Ball, rows: Tensor, refinement: Refinement, radii: Tensor) -> Tensor:
    """(points, grid): whether every margin's lower bound over the ball is positive."""
    grid = problem.with_region(ball.region(radii.flatten()).to(problem.device))
    margins = _margin_lower(grid, rows.repeat_interleave(radii.shape[1], 0), refinement)
    return (margins > 0).all(-1).reshape(radii.shape).cpu()


def _safe_by_lipschitz(
    problem: Problem, ball: _Ball, rows: Tensor, at_center: Tensor, refinement: Refinement, radii: Tensor
) -> Tensor:
    """(points, grid): whether margin(x₀) > r · L(r) for every margin, L over the ball of radius r."""
    grid, dual = radii.shape[1], DUAL_NORMS[ball.norm]
    cotangents = rows[:, 0].repeat_interleave(grid, 0)
    region = ball.region(radii.flatten()).to(problem.device)
    steepest = lipschitz_upper(
        problem.graph, region, cotangents, dual, ball.unit[0].cpu().numpy(), refinement.chunk_size
    )
    reach = next_up(steepest * next_up(radii.reshape(-1, 1).to(steepest)))
    return (at_center.repeat_interleave(grid, 0) > reach).all(-1).reshape(radii.shape).cpu()


def _stretched(certifies: Certifies, radius: Tensor, max_radius: float) -> Tensor:
    """The largest of a few radii above the one already certified that another test certifies; 0 where none."""
    longer = (radius[:, None] * torch.tensor(_STRETCH, dtype=torch.float64)).clamp(max=max_radius)
    return torch.where(certifies(longer), longer, 0.0).amax(1)


def _margin_lower(problem: Problem, rows: Tensor, refinement: Refinement) -> Tensor:
    """(points, margins) certified lower bounds of rows · output over the region."""
    bounds = bound_nodes(problem, refinement)
    output = problem.graph.output
    linear = -upper_bounds(problem, bounds, output, -rows)[:, 0]
    return linear.expand(problem.region.points, rows.shape[2])


def largest_certified(certifies: Certifies, count: int, max_radius: float) -> Tensor:
    """(points,) the largest tested radius for which `certifies` said yes; 0 where it never did.

    Args:
        certifies: (points, grid) radii → (points, grid) booleans.
        count: number of points.
        max_radius: largest radius tested.
    """
    best = torch.zeros(count, dtype=torch.float64)
    refused = torch.full((count,), math.inf, dtype=torch.float64)
    ceiling = torch.full((count,), max_radius, dtype=torch.float64)
    steps = torch.arange(1, _GRID + 1, dtype=torch.float64) / _GRID
    for turn in range(_ROUNDS):
        # The first grid ends at max_radius; later ones stop short of the radius that was refused.
        fractions = steps if turn == 0 else steps * (_GRID / (_GRID + 1))
        radii = torch.minimum(best[:, None] + (ceiling - best)[:, None] * fractions, ceiling[:, None])
        yes = certifies(radii)
        best = torch.maximum(best, torch.where(yes, radii, 0.0).amax(1))
        above = torch.where(yes | (radii <= best[:, None]), math.inf, radii).amin(1)
        refused = torch.where(above.isfinite(), torch.minimum(refused, above), refused)
        ceiling = torch.where(refused.isfinite(), refused, ceiling)
    return best
