"""Monotonicity: the sign of each partial derivative over the whole region.

The region says which features move: with a box in which only feature i has an extent, the claim is about moving that feature alone
(Shi et al., NeurIPS 2022, §4.3); with all features moving it is the stronger claim that this module's callers usually make.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.budget import Budget, check_budget
from mlflow_lipschitz.certify.evidence import Evidence, by_point, slopes_of
from mlflow_lipschitz.certify.execution import (
    default_chunk_size,
    halving,
    portions,
    resolve_device,
    rigorous_arithmetic,
)
from mlflow_lipschitz.certify.lipschitz import check_points
from mlflow_lipschitz.certify.objectives import cotangents
from mlflow_lipschitz.certify.signs import Searched, Slopes, decided, sought
from mlflow_lipschitz.engine.attack.ascent import ascend, enclose_at, sampled_hull
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes, refine_node
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph, signed_entry
from mlflow_lipschitz.errors import UsageError

_SEARCHED_TOGETHER = 256  # points; bounds the memory of a search

DIRECTIONS = {"increasing": 1.0, "decreasing": -1.0}


@dataclass(frozen=True)
class MonotonicityCertificate:
    """Per point and feature: what is known of ∂f/∂x over the region. All arrays are (points, *input shape).

    Attributes:
        sign: +1 nondecreasing, −1 nonincreasing, 0 not certified; a derivative proved to be zero counts as +1.
        lower, upper: certified range of the derivative; infinite where nothing could be proved.
        attained_lower, attained_upper: derivatives reached at points of the region; attained_lower < 0 disproves increasing.
        evidence: what a second program needs to re-prove the range, if that was asked for; and how regions were cut where a search
            was made, whose trees are `searched`'s, not the evidence's.
    """

    sign: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    attained_lower: np.ndarray
    attained_upper: np.ndarray
    output: int
    arithmetic: str = "real"
    evidence: Evidence | None = None
    searched: Searched | None = None


@dataclass(frozen=True)
class Violation:
    """Counterexamples to monotonicity, one search per point.

    Attributes:
        found: (points,) whether a derivative of the wrong sign was proved to occur.
        point: (points, *input shape), in the region; where it occurs (or where the search ended).
        derivative: (points,) the value there, rounded towards zero.
    """

    found: np.ndarray
    point: np.ndarray
    derivative: np.ndarray


def certify_monotonicity(  # noqa: PLR0913 — the contract's signature
    graph: Graph,
    points: Any,
    region: Region,
    *,
    output: int = 0,
    features: Sequence[int] | None = None,
    budget: Budget | None = None,
    device: str = "auto",
    chunk_size: int | None = None,
    evidence: bool = False,
) -> MonotonicityCertificate:
    """Bound every partial derivative of one output over the region of every point.

    Where at most three features move, regions in which a sign stays open are cut into pieces: a derivative that keeps its distance
    from zero is certified in the end.

    Args:
        graph: the model.
        points: (points, *input shape); the region's points.
        region: where the input ranges.
        output: index of the output.
        features: flat indices of the features whose signs a search is about; None for those that move.
        budget: None, one propagation pass, and some pieces where few features move; else branch and bound until each sign is
            certified or disproved (its threshold and gap are not used).
        chunk_size: linear forms in flight; bounds memory.
        evidence: keep what a second program needs to re-prove the bounds.

    Raises:
        UsageError: no such output, feature or device; a budget that is none. InvalidRegion: region and points do not fit.
        UnsupportedOperator: the graph holds an op without a derivative rule.
    """
    check_budget(budget)
    place = resolve_device(device)
    count = check_points(graph, points, region)
    objective, _ = cotangents(math.prod(graph.output_shape), output, count)
    problem = Problem.of(gradient_graph(graph), region, objective, place)
    size = chunk_size or default_chunk_size(place, graph)
    wanted = _wanted(features, math.prod(graph.input_shape), place)
    with rigorous_arithmetic():
        ends, searched, slopes = halving(
            size, lambda chunk: _in_portions(problem, count, (wanted, budget, evidence), chunk)
        )
    lower, upper, attained_lower, attained_upper = (end.reshape(count, *graph.input_shape) for end in ends)
    sign = np.where(lower >= 0, 1, np.where(upper <= 0, -1, 0))
    kept = Evidence(by_point(slopes)) if evidence else None
    trees = Searched.joined(searched) if searched else None
    return MonotonicityCertificate(
        sign, lower, upper, attained_lower, attained_upper, output, evidence=kept, searched=trees
    )


def find_violation(
    graph: Graph, points: Any, region: Region, *, feature: int, direction: str, output: int = 0
) -> Violation:
    """Look for a point of each region where the derivative by `feature` has the wrong sign; what is found is proved.

    Args:
        feature: flat index of the input entry.
        direction: `increasing` or `decreasing`, the claim to be disproved.

    Raises:
        UsageError: an unknown direction, feature or output.
    """
    if direction not in DIRECTIONS:
        raise UsageError(f"direction {direction!r}: choose increasing or decreasing")
    if not 0 <= feature < math.prod(graph.input_shape):
        raise UsageError(f"feature {feature} is not an index of an input of shape {graph.input_shape}")
    count = check_points(graph, points, region)
    sign = DIRECTIONS[direction]
    objective, _ = cotangents(math.prod(graph.output_shape), output, count)
    wrong = signed_entry(gradient_graph(graph), feature, -sign)
    problem = Problem.of(wrong, region, objective)
    slopes, points_found = [], []
    with rigorous_arithmetic():
        for first, last in portions(count, _SEARCHED_TOGETHER):
            part = problem.with_rows(first, last)
            x = sought(part, ascend(part, rounds=12)[:, 0])
            slopes.append(enclose_at(part, x[None, :, None]).lower[0, :, 0, 0].numpy())
            points_found.append(x.numpy())
    slope = np.concatenate(slopes)
    return Violation(slope > 0, np.concatenate(points_found), np.where(slope > 0, -sign * slope, 0.0))


def _wanted(features: Sequence[int] | None, size: int, device: torch.device) -> Tensor | None:
    if features is None:
        return None
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    for feature in features:
        if not 0 <= feature < size:
            raise UsageError(f"feature {feature} is not an index of an input of {size} entries")
        mask[feature] = True
    return mask


def _in_portions(
    problem: Problem, count: int, asked: tuple[Tensor | None, Budget | None, bool], chunk_size: int
) -> tuple[tuple[np.ndarray, ...], list[Searched], list[dict[str, np.ndarray]]]:
    wanted, budget, evidence = asked
    effort, searched, slopes = Effort(Refinement(chunk_size), keep=evidence), [], []
    size = problem.graph.output_shape[0]
    ends = np.stack([np.full((count, size), -np.inf), np.full((count, size), np.inf)] * 2)
    for first, last in portions(count, max(1, chunk_size // 8)):
        part = problem.with_rows(first, last)
        bounds = bound_nodes(part, effort.refinement)
        if evidence:
            slopes.append(slopes_of(part, bounds, "slopes"))
        certified = refine_node(part, bounds, part.graph.output, effort.refinement)
        known = Slopes(_spread(certified, part), _spread(sampled_hull(part), part))
        known = decided(part, [node.interval for node in bounds], known, (wanted, budget), effort)
        searched += [replace(found, point=found.point + first) for found in known.searched]
        rows = (known.certified.lower, known.certified.upper, known.attained.lower, known.attained.upper)
        ends[:, first:last] = torch.stack(rows).cpu().numpy()
    return tuple(ends), searched, slopes


def _spread(x: Interval, problem: Problem) -> Interval:
    """(points, entries)"""
    count = problem.region.points
    return Interval(*(end[:, 0].expand(count, -1).clone() for end in (x.lower, x.upper)))
