"""Properties of many inputs: boxes cannot be cut small, so values inside the network are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mlflow_lipschitz.certify.branching import rows_at, with_tighter_values
from mlflow_lipschitz.certify.budget import Budget
from mlflow_lipschitz.certify.property_numbers import PropertyNumbers
from mlflow_lipschitz.engine.attack.ascent import enclose_at
from mlflow_lipschitz.engine.attack.sampling import clip
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.domains.rounding import next_down
from mlflow_lipschitz.engine.propagation.backward import upper_bounds
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.input_splitting import Coverage
from mlflow_lipschitz.engine.search.parts import Rows, lowest
from mlflow_lipschitz.engine.search.search import Limits, search

# Up to this many entries of an input that move, boxes are cut.
MANY_INPUTS = 20
# More boxes than this are worked off better one batch after the other.
MANY_CASES = 32
_STEPS = 10
_BATCH = 128

Look = Callable[[Tensor, Tensor], None]  # cases, and points in their boxes (points, *input shape)


def is_for_units(numbers: PropertyNumbers) -> bool:
    """Whether this is a property for this module: many inputs move, and no conjunction needs several half-spaces together."""
    moving = int((numbers.lower < numbers.upper).flatten(1).sum(1).amax())
    alone = bool((numbers.limits.isfinite().sum(-1) <= 1).all())
    return moving > MANY_INPUTS and len(numbers.lower) <= MANY_CASES and alone


def prove(
    problem: Problem, numbers: PropertyNumbers, look: Look, stop: Callable[[], bool], asked: tuple[int, float]
) -> Coverage:
    """Prove every conjunction of every case impossible.

    Args:
        problem: the model, one output vector.
        look: told of points where the bounds are worst.
        stop: asked after every batch.
        asked: linear forms in flight, and the time (of `time.monotonic`) after which no work begins.
    """
    chunk_size, deadline = asked
    part = problem.with_region(Box(numbers.lower, numbers.upper))
    bounds = bound_nodes(part, Refinement(chunk_size))
    case, rows, limits, known = _chosen(part, numbers, upper_of(part, bounds, numbers))
    ranges: list[Interval] = [node.interval for node in bounds]
    # −row · y < −limit, strictly: a value at the limit is unsafe.
    thresholds = next_down(-limits)
    left = (known > thresholds).nonzero()[:, 0]
    if len(left) == 0:
        return Coverage(True, len(numbers.lower))
    case, rows, thresholds, known = case[left], rows[left], thresholds[left], known[left]
    cases = case.unique()
    effort = Effort(Refinement(chunk_size), steps=_STEPS, cuts="multipliers")
    seconds = max(0.0, deadline - time.monotonic()) / len(cases)
    ranges, _ = with_tighter_values(part, ranges, cases, Budget(seconds), effort)
    asked_rows = rows_at(part, ranges, (case, torch.zeros_like(case)), -rows[:, None, None])
    found = search(
        asked_rows,
        (known, torch.full_like(known, -torch.inf), asked_rows.problem.region.box.lower.clone()),
        lambda owner, x: _reached(asked_rows, case, look, owner, x),
        effort,
        Limits(max(0.0, deadline - time.monotonic()), 0.0, thresholds, _BATCH, stop=stop),
    )
    if bool((found.upper <= thresholds).all()):
        return Coverage(True, found.parts)
    return Coverage(False, found.parts, "stopped")


def upper_of(part: Problem, bounds: Sequence[NodeBounds], numbers: PropertyNumbers) -> Tensor:
    """(cases, conjunctions, half-spaces) upper bounds of −row · y."""
    rows = numbers.rows.flatten(1, 2)[:, None]
    return upper_bounds(part, bounds, part.graph.output, -rows)[:, 0].reshape(numbers.limits.shape)


def _chosen(part: Problem, numbers: PropertyNumbers, known: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per conjunction: its case, and of its half-space the row, the limit, and the upper bound of −row · y."""
    case, conjunction = (numbers.limits > -torch.inf).all(-1).nonzero().unbind(1)
    # One without any limit has no half-space to prove impossible: its limit is infinite, and it stays.
    half = numbers.limits[case, conjunction].argmin(-1)
    rows, limits, upper = (x[case, conjunction, half] for x in (numbers.rows, numbers.limits, known))
    return case, rows, limits, upper


def _reached(rows: Rows, case: Tensor, look: Look, owner: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Rigorous lower bounds of coeffs · value at the corners, which are shown around as well."""
    problem = rows.problem.select(owner, torch.zeros_like(owner))
    x = clip(problem.region, corner[None])[0]
    look(case[owner], x)
    value = enclose_at(problem, x[None, :, None])
    return lowest(rows.coeffs[owner][:, 0, 0], Interval(value.lower[0, :, 0], value.upper[0, :, 0])), x
