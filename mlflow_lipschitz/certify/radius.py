"""Certified radii: how far a point may be perturbed before the prediction can change.

A radius r is certified when every margin f_y − f_j stays positive over the ball, either by bounding the margin itself or
because margin(x₀) > r · L(r), with L the margin's local Lipschitz constant over that ball (Hein & Andriushchenko, NeurIPS 2017).
A model that cannot be differentiated has only the first of the two. For the served program (`arithmetic="deployed-float32"`), what
rounding may do to the two outputs over the ball is taken from every margin first.
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

from mlflow_lipschitz.certify.deployed import REAL, ServedProgram, format_of
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
from mlflow_lipschitz.engine.domains.rounding import next_down, next_up
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
        arithmetic: what predicts: `real`, the exact function of the stored weights, or the program that is served in a format,
            `deployed-float32`; then also `margin` and `status` are about that program's outputs.
        served_error: (points,) how far any output of the served program may be from the exact one within `radius`; +inf where
            nothing is known. None for `real`.
    """

    radius: np.ndarray
    margin: np.ndarray
    status: np.ndarray
    norm: str
    arithmetic: str = REAL
    served_error: np.ndarray | None = None


def certified_radius(  # noqa: PLR0913 — the contract's signature
    graph: Graph,
    points: Any,
    labels: Any,
    *,
    norm: str = "linf",
    max_radius: float = 1.0,
    feature_scale: Any = None,
    domain: tuple[Any, Any] | None = None,
    arithmetic: str = REAL,
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
        arithmetic: whose prediction is meant: `real` or `deployed-float32`, `deployed-bfloat16`, `deployed-float16`, see
            deployed.py. Of a model of which `why_unserved` gives a reason, every deployed radius is 0.

    Raises:
        UsageError: unknown norm, label, arithmetic or device, or a max_radius that is not a positive number.
    """
    if norm not in DUAL_NORMS:
        raise UsageError(f"norm={norm!r}: choose one of {', '.join(DUAL_NORMS)}")
    if not (math.isfinite(max_radius) and max_radius > 0):
        raise UsageError(f"max_radius={max_radius!r} must be a positive number")
    form, place = format_of(arithmetic), resolve_device(device)
    flat = flat_output(graph)
    center = torch.as_tensor(np.array(points), dtype=torch.float64)
    if tuple(center.shape[1:]) != graph.input_shape or len(center) == 0:
        raise InvalidRegion(f"points {tuple(center.shape)} must be (points, *{graph.input_shape}), at least one")
    ball = _Ball(center, _unit(center, feature_scale, max_radius), norm, domain)
    rows = _margin_rows(flat.output_shape[0], len(center), labels).to(place)
    start = ball.region(torch.zeros(center.shape[0]))
    served = None if form is None else ServedProgram.of(graph, start, form, place)
    whole = _Part(Problem.of(flat, start, None, place), ball, rows, Refinement(1), served)
    size = chunk_size or default_chunk_size(place, graph)
    with rigorous_arithmetic():
        radius, margin, wrong, error = halving(size, lambda chunk: _in_portions(whole, max_radius, chunk))
    status = np.where(radius > 0, "certified", np.where(wrong, "violated", "undecided"))
    return RadiusCertificate(radius, margin, status, norm, arithmetic, None if form is None else error)


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


@dataclass(frozen=True)
class _Part:
    """Some of the points: the function, the balls around them, and the rows (points, 1, margins, outputs) that judge it."""

    problem: Problem
    ball: _Ball
    rows: Tensor
    refinement: Refinement
    served: ServedProgram | None

    def of(self, start: int, stop: int, refinement: Refinement) -> _Part:
        served = None if self.served is None else self.served.with_rows(start, stop)
        problem, ball = self.problem.with_rows(start, stop), self.ball.rows(start, stop)
        return _Part(problem, ball, self.rows[start:stop], refinement, served)

    def margins(self, radii: Tensor, *, mirrored: bool = False) -> Tensor:
        """(points · grid, margins) lower bounds over the balls, of the served program's outputs where one is meant.

        `radii` are (points · grid,); `mirrored`: of the margins' negatives.
        """
        problem = self.problem.with_region(self.ball.region(radii).to(self.problem.device))
        rows = self._repeated(radii)
        rows = -rows if mirrored else rows
        bounds = bound_nodes(problem, self.refinement)
        lower = -upper_bounds(problem, bounds, problem.graph.output, -rows)[:, 0]
        lower = lower.expand(problem.region.points, rows.shape[2])
        if self.served is None:
            return lower
        return next_down(lower - self.served.errors(problem.region, self.refinement, rows[:, 0], bounds))

    def allowance(self, radii: Tensor) -> Tensor:
        """(points · grid, margins) what rounding may take from every margin in the balls: nothing where none is meant."""
        rows = self._repeated(radii)[:, 0]
        if self.served is None:
            return torch.zeros(rows.shape[:2], dtype=torch.float64, device=rows.device)
        return self._errors(radii, rows)

    def largest_error(self, radii: Tensor) -> Tensor:
        """(points,) of all outputs, in balls of these (points,) radii."""
        return torch.zeros_like(radii) if self.served is None else self._errors(radii).amax(-1).cpu()

    def _errors(self, radii: Tensor, objectives: Tensor | None = None) -> Tensor:
        assert self.served is not None
        return self.served.errors(self.ball.region(radii).to(self.problem.device), self.refinement, objectives)

    def _repeated(self, radii: Tensor) -> Tensor:
        return self.rows.repeat_interleave(radii.shape[0] // self.rows.shape[0], 0)


def _in_portions(whole: _Part, max_radius: float, chunk_size: int) -> tuple[np.ndarray, ...]:
    count = whole.ball.center.shape[0]
    radius, error, margin = np.zeros(count), np.full(count, np.inf), np.full(count, -np.inf)
    wrong = np.zeros(count, dtype=bool)
    sloped = _has_slope(whole.problem.graph)
    for first, last in portions(count, max(1, chunk_size // (8 * _GRID))):
        part, nowhere = whole.of(first, last, Refinement(chunk_size)), torch.zeros(last - first)
        at_center = part.margins(nowhere)
        best = largest_certified(partial(_safe_by_margin, part), last - first, max_radius)
        if sloped:
            # What rounding takes is taken over the whole ball; at its center, nothing yet.
            exact = replace(part, served=None).margins(nowhere) if part.served else at_center
            best = torch.maximum(best, _stretched(partial(_safe_by_lipschitz, part, exact), best, max_radius))
        radius[first:last], margin[first:last] = best.numpy(), at_center.amin(-1).cpu().numpy()
        error[first:last] = part.largest_error(best).numpy()
        # Margins are bounded from below; only a bound from above can show that the label is wrong.
        wrong[first:last] = (-part.margins(nowhere, mirrored=True) <= 0).any(-1).cpu().numpy()
    return radius, margin, wrong, error


def _has_slope(graph: Graph) -> bool:
    """Whether the graph can be differentiated; a model that rounds its activations cannot."""
    try:
        gradient_graph(graph)
    except UnsupportedOperator:
        return False
    return True


def _safe_by_margin(part: _Part, radii: Tensor) -> Tensor:
    """(points, grid): whether every margin's lower bound over the ball is positive."""
    return (part.margins(radii.flatten()) > 0).all(-1).reshape(radii.shape).cpu()


def _safe_by_lipschitz(part: _Part, at_center: Tensor, radii: Tensor) -> Tensor:
    """(points, grid): whether margin(x₀) > r · L(r) for every margin, L over the ball of radius r."""
    grid, ball = radii.shape[1], part.ball
    cotangents = part.rows[:, 0].repeat_interleave(grid, 0)
    region = ball.region(radii.flatten()).to(part.problem.device)
    steepest = lipschitz_upper(
        part.problem.graph, region, cotangents, ball.norm, ball.unit[0].cpu().numpy(), part.refinement.chunk_size
    )
    reach = next_up(steepest * next_up(radii.reshape(-1, 1).to(steepest)))
    lost = next_up(reach + part.allowance(radii.flatten()))
    return (at_center.repeat_interleave(grid, 0) > lost).all(-1).reshape(radii.shape).cpu()


def _stretched(certifies: Certifies, radius: Tensor, max_radius: float) -> Tensor:
    """The largest of a few radii above the one already certified that another test certifies; 0 where none."""
    longer = (radius[:, None] * torch.tensor(_STRETCH, dtype=torch.float64)).clamp(max=max_radius)
    return torch.where(certifies(longer), longer, 0.0).amax(1)


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
