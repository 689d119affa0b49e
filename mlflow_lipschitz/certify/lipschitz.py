"""Local Lipschitz constants (Shi et al., NeurIPS 2022): sup over the region of the dual norm of the gradient."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.branching import MORE_FORMS, Bracket, narrowed
from mlflow_lipschitz.certify.budget import Budget, check_budget
from mlflow_lipschitz.certify.evidence import Evidence, Slopes, by_objective, by_point, slopes_of
from mlflow_lipschitz.certify.execution import (
    default_chunk_size,
    halving,
    portions,
    resolve_device,
    rigorous_arithmetic,
)
from mlflow_lipschitz.certify.objectives import Outputs, cotangents
from mlflow_lipschitz.engine.attack.ascent import ascend, enclose_at, sampled_hull
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.domains.rounding import next_down, next_up
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.ir.ops import Multiply
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes, refine_node
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.propagation.slopes import optimized_upper_bounds
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.evidence import SearchEvidence
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph, summed
from mlflow_lipschitz.errors import InvalidRegion, UsageError

# Settings of the free slopes tried in the last pass, where there is one row per objective and a try is cheap.
_SLOPE_STEPS = 2

METHOD = "backward linear propagation on the Clarke Jacobian"


@dataclass(frozen=True)
class DualNorm:
    """The norm of the gradient that belongs to a perturbation norm: Σ curve(gᵢ) and then `finish`, or max |gᵢ|."""

    name: str
    curve: str | None

    def finish(self, value: Tensor, *, up: bool) -> Tensor:
        if self.curve != "square":
            return value
        root = value.clamp(min=0).sqrt()
        # The root of zero is exact: a constant output has the constant 0.
        return torch.where(root == 0, root, next_up(root)) if up else next_down(root).clamp(min=0)

    def unfinished(self, budget: Budget) -> Budget:
        """The budget for what is maximised before `finish`: a square's gap and threshold are those of its root, squared."""
        if self.curve != "square":
            return budget
        gap = budget.target_gap * (2 + budget.target_gap)
        limit = budget.threshold
        # A negative limit is never kept by a norm; any negative number says so.
        return replace(budget, target_gap=gap, threshold=None if limit is None else _clamped(limit * abs(limit)))


def _clamped(value: float) -> float:
    return max(-sys.float_info.max, min(value, sys.float_info.max))


# perturbation norm → dual norm of the gradient
DUAL_NORMS = {"linf": DualNorm("l1", "abs"), "l2": DualNorm("l2", "square"), "l1": DualNorm("linf", None)}


@dataclass(frozen=True)
class LipschitzCertificate:
    """Per point and objective: lower ≤ sup over the region of ‖gradient‖_dual ≤ upper.

    Attributes:
        upper: (points, objectives), certified; +inf where nothing could be proved.
        lower: (points, objectives), attained at a point of the region; 0 where nothing was found.
        status: (points, objectives), `certified` or `undecided`.
        outputs: a name per objective.
        norm: of the perturbation: linf, l2 or l1.
        seconds: (points,) wall-clock time, shared equally within a portion.
        method: how the upper bound was found.
        arithmetic: what the bound is about: `real`, the exact function of the stored weights.
        evidence: what a second program needs to re-prove the upper bounds, if that was asked for.
    """

    upper: np.ndarray
    lower: np.ndarray
    status: np.ndarray
    outputs: tuple[str, ...]
    norm: str
    seconds: np.ndarray
    method: str = METHOD
    arithmetic: str = "real"
    evidence: Evidence | None = None


def certify_lipschitz(  # noqa: PLR0913 — the contract's signature
    graph: Graph,
    points: Any,
    region: Region,
    *,
    norm: str = "linf",
    outputs: Outputs = None,
    labels: Any = None,
    feature_scale: Any = None,
    budget: Budget | None = None,
    device: str = "auto",
    chunk_size: int | None = None,
    evidence: bool = False,
) -> LipschitzCertificate:
    """Bound the local Lipschitz constant of every objective around every point.

    Args:
        graph: the model.
        points: (points, *input shape); the region's points.
        region: where the input ranges.
        norm: of the perturbation, linf, l2 or l1; the gradient is measured in the dual norm l1, l2 or linf.
        outputs: None for all, an index, indices, or "margin" with `labels`.
        feature_scale: broadcasts to the input shape; the perturbation of feature i is measured in units of feature_scale[i].
        budget: None, one propagation pass; else branch and bound follows (for norm="l1" it is one pass either way).
        chunk_size: linear forms in flight; bounds memory.
        evidence: keep what a second program needs to re-prove the bounds.

    Raises:
        UsageError: unknown norm, output, label or device; a budget that is none. InvalidRegion: region and points do not fit.
        UnsupportedOperator: the graph holds an op without a derivative rule.
    """
    if norm not in DUAL_NORMS:
        raise UsageError(f"norm={norm!r}: choose one of {', '.join(DUAL_NORMS)}")
    check_budget(budget)
    place = resolve_device(device)
    count = check_points(graph, points, region)
    objectives, names = cotangents(math.prod(graph.output_shape), outputs, count, labels)
    dual = DUAL_NORMS[norm]
    problem = Problem.of(norm_graph(graph, norm, feature_scale), region, objectives, place)
    size = chunk_size or default_chunk_size(place, graph)
    with rigorous_arithmetic():
        asked = _Asked(count, budget if dual.curve else None, evidence)
        upper, lower, seconds, kept = halving(size, lambda chunk: _in_portions(problem, dual, asked, chunk))
    status = np.where(np.isfinite(upper), "certified", "undecided")
    method = METHOD if budget is None or dual.curve is None else f"{METHOD}, with branch and bound"
    return LipschitzCertificate(upper, lower, status, names, norm, seconds, method, evidence=kept)


class _Asked(NamedTuple):
    """How many points, what may be spent, and whether evidence is kept."""

    points: int
    budget: Budget | None
    evidence: bool


def check_points(graph: Graph, points: Any, region: Region) -> int:
    """Number of points. Raises InvalidRegion unless they are finite, and points, region and graph agree."""
    shape = tuple(np.shape(points))
    if shape[1:] != graph.input_shape or tuple(region.box.lower.shape) != shape:
        raise InvalidRegion(
            f"points {shape} and region {tuple(region.box.lower.shape)} must both be (points, *{graph.input_shape})"
        )
    if shape[0] == 0:
        raise InvalidRegion("there are no points")
    values = points if isinstance(points, Tensor) else torch.from_numpy(np.array(points, dtype=np.float64))
    bad = (~values.isfinite()).nonzero().tolist()
    if bad:
        raise InvalidRegion(f"the point is not finite: point {bad[0][0]}, entry {tuple(bad[0][1:])}")
    return shape[0]


def lipschitz_upper(
    graph: Graph, region: Region, objectives: Tensor, norm: str, feature_scale: Any, chunk_size: int
) -> Tensor:
    """(points, objectives) certified upper bounds in one portion, for (points, objectives, outputs) cotangents."""
    problem = Problem.of(norm_graph(graph, norm, feature_scale), region, objectives, region.box.lower.device)
    dual = DUAL_NORMS[norm]
    return dual.finish(_bound(problem, dual, chunk_size)[0], up=True)


def norm_graph(graph: Graph, norm: str, feature_scale: Any) -> Graph:
    """What is maximised over the region, before the dual norm of a perturbation's norm is finished."""
    gradient = gradient_graph(graph, None if feature_scale is None else np.asarray(feature_scale))
    curve = DUAL_NORMS[norm].curve
    return gradient if curve is None else summed(gradient, curve)


def _in_portions(
    problem: Problem, dual: DualNorm, asked: _Asked, chunk_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Evidence | None]:
    count, each = asked.points, problem.objectives
    upper, lower = np.full((count, each), np.inf), np.zeros((count, each))
    seconds, questions, trees, slopes = np.zeros(count), np.arange(count * each).reshape(count, each), {}, []
    wide = max(1, chunk_size // 8)  # objectives at once; a refined node then has at least four rows per portion
    for first, last in portions(count, max(1, wide // each)):
        started = time.perf_counter()
        part, found_slopes = problem.with_rows(first, last), []
        for left, right in portions(each, wide):
            assert part.cotangent is not None
            piece = replace(part, cotangent=part.cotangent[:, left:right])
            budget = asked.budget
            share = budget and replace(budget, seconds_per_point=budget.seconds_per_point * (right - left) / each)
            found, chosen = _bracket(piece, dual, asked._replace(budget=share), chunk_size)
            place = (slice(first, last), slice(left, right))
            upper[place], lower[place] = found.upper.cpu(), found.lower.cpu()
            trees[tuple(questions[place].flatten().tolist())] = found.evidence
            found_slopes.append(chosen)
        slopes.append(by_objective(found_slopes))
        seconds[first:last] = (time.perf_counter() - started) / (last - first)
    searched = _all_trees(trees) if asked.evidence and asked.budget is not None else None
    return upper, lower, seconds, Evidence(by_point(slopes), searched) if asked.evidence else None


def _all_trees(trees: dict[tuple[int, ...], SearchEvidence | None]) -> SearchEvidence:
    """One tree per question, in order, of trees by portion of the questions."""
    parts = [tree or SearchEvidence.uncut(len(questions)) for questions, tree in trees.items()]
    index = [question for questions in trees for question in questions]
    return SearchEvidence.joined(parts).spread(len(index), index)


def _bracket(problem: Problem, dual: DualNorm, asked: _Asked, chunk_size: int) -> tuple[Bracket, Slopes]:
    """(points, objectives) upper bounds, and values reached in the region, rounded down; and the slopes that led to the former."""
    upper, bounds, last = _bound(problem, dual, chunk_size)
    slopes: Slopes = {}
    if asked.evidence:
        slopes = slopes_of(problem, bounds, "slopes")
        if last is not bounds:
            slopes |= slopes_of(problem, last, "last", only=Multiply)
    if dual.curve is None:
        low = _largest_sampled(problem)
        return Bracket(dual.finish(upper, up=True), low, problem.region.box.lower), slopes
    at = ascend(problem)
    bracket = Bracket(upper, enclose_at(problem, at[None]).lower[0, ..., 0], at)
    if asked.budget is not None:
        effort = Effort(Refinement(MORE_FORMS * chunk_size), keep=asked.evidence)
        ranges = [node.interval for node in bounds]
        bracket = narrowed(problem, ranges, bracket, dual.unfinished(asked.budget), effort)
    low = dual.finish(bracket.lower, up=False)
    low = torch.where(low.isfinite(), low.clamp(min=0), 0.0)
    return replace(bracket, upper=dual.finish(bracket.upper, up=True), lower=low), slopes


def _bound(
    problem: Problem, dual: DualNorm, chunk_size: int
) -> tuple[Tensor, Sequence[NodeBounds], Sequence[NodeBounds]]:
    """(points, objectives) certified upper bounds, before the dual norm is finished; bounds of every node, and those with the
    planes of the last linear form."""
    refinement = Refinement(chunk_size)
    bounds = bound_nodes(problem, refinement)
    points = problem.region.points
    if dual.curve is None:
        worst = refine_node(problem, bounds, problem.graph.output, refinement).magnitude.amax(-1)
        return worst.expand(points, problem.objectives), bounds, bounds
    one = torch.ones((1, 1, 1, 1), dtype=torch.float64, device=problem.device)
    linear, last = optimized_upper_bounds(problem, bounds, problem.graph.output, one, steps=_SLOPE_STEPS)
    interval = bounds[problem.graph.output].interval.upper[..., 0]
    return torch.minimum(linear[..., 0], interval).expand(points, problem.objectives), bounds, last


def _largest_sampled(problem: Problem) -> Tensor:
    """(points, objectives) largest |entry| of the gradient at some sampled points, rounded down."""
    attained = sampled_hull(problem)
    largest = torch.maximum(attained.upper, -attained.lower).amax(-1)
    return torch.where(largest.isfinite(), largest.clamp(min=0), 0.0)
