"""Search for points where a scalar of the gradient is large: gradient ascent, and random moves where its gradient is zero.

What is found is *attained*: a lower bound of the supremum. It tells how tight an upper bound is and can disprove a claim;
it can never prove one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mlflow_lipschitz.engine.attack.sampling import clip, sample
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.propagation.interpreter import run
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem

_STARTS = 16
_MOVES = 6
_ROUNDS = 6


def ascend(problem: Problem, *, rounds: int = _ROUNDS, seed: int = 0) -> Tensor:
    """Points of the region at which the graph's one-entry output came out largest.

    Returns:
        (points, objectives, *input shape), inside the region.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = sample(problem.region, _STARTS, generator)
    values = torch.stack([_value(problem, start[:, None]) for start in starts])
    best, index = values.max(0)
    x = _pick(starts, index)
    for _ in range(rounds):
        for candidate in (*_uphill(problem, x), *_moved(problem, x, generator)):
            value = _value(problem, candidate)
            better = value > best
            best = torch.where(better, value, best)
            x = torch.where(better.reshape(*better.shape, *(1,) * (x.dim() - 2)), candidate, x)
    return x


def enclose_at(problem: Problem, x: Tensor) -> Interval:
    """Rigorous range of the graph's output at single points: interval propagation over degenerate boxes.

    Args:
        x: (points, objectives, *input shape).

    Returns:
        Interval of shape (points, objectives, *output shape). At a kink it spans the whole Clarke set.
    """
    points, objectives = x.shape[:2]
    flat = x.reshape(points * objectives, *x.shape[2:])
    cotangent = problem.cotangent
    if cotangent is not None:
        spread = cotangent.expand(points, objectives, *cotangent.shape[2:])
        cotangent = spread.reshape(points * objectives, 1, *cotangent.shape[2:])
    interval = bound_nodes(replace(problem, region=Box(flat, flat), cotangent=cotangent), None)[-1].interval
    shape = (points, objectives, *problem.graph.output_shape)
    return Interval(interval.lower.reshape(shape), interval.upper.reshape(shape))


def sampled_hull(problem: Problem, *, count: int = 24, seed: int = 0) -> Interval:
    """Values that each entry of the output really reaches: attained lower ≥ true infimum, attained upper ≤ true supremum.

    Returns:
        Interval of shape (points, objectives, *output shape) whose `upper` is the largest value known to be reached and whose
        `lower` is the smallest; `lower` may exceed `upper` by the width of the rounding.
    """
    largest = smallest = None
    for point in sample(problem.region, count, torch.Generator().manual_seed(seed)):
        reached = enclose_at(problem, point[:, None].expand(-1, problem.objectives, *point.shape[1:]))
        largest = reached.lower if largest is None else torch.maximum(largest, reached.lower)
        smallest = reached.upper if smallest is None else torch.minimum(smallest, reached.upper)
    assert largest is not None and smallest is not None
    return Interval(smallest, largest)


def _value(problem: Problem, x: Tensor) -> Tensor:
    value = run(problem.graph, problem.weights, x, problem.cotangent).squeeze(-1)
    value = value.expand(problem.region.points, problem.objectives)
    return torch.where(value.isnan(), -torch.inf, value)


def _pick(starts: Tensor, index: Tensor) -> Tensor:
    """starts (samples, points, *shape) at index (points, objectives) → (points, objectives, *shape)."""
    rows = torch.arange(index.shape[0], device=index.device)[:, None]
    return starts[index, rows]


def _uphill(problem: Problem, x: Tensor) -> list[Tensor]:
    """Steps along the sign of the value's gradient; none for piecewise linear networks, whose gradient's gradient is zero."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = run(problem.graph, problem.weights, leaf, problem.cotangent)
        if not value.requires_grad:
            return []
        (slope,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if slope is None:
        return []
    reach = (problem.region.box.upper - problem.region.box.lower)[:, None]
    return [_clip(problem, x + step * reach * slope.sign()) for step in (1.0, 0.25, 0.05)]


def _moved(problem: Problem, x: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Copies with a share of their coordinates thrown to a random end of the box."""
    box = problem.region.box
    moves = []
    for share in [0.5, 0.25, 0.1, 0.1, 0.05, 0.05][:_MOVES]:
        draw = torch.rand((2, *x.shape), generator=generator, dtype=torch.float64).to(x.device)
        corner = torch.where(draw[0] < 0.5, box.lower[:, None], box.upper[:, None])
        moves.append(_clip(problem, torch.where(draw[1] < share, corner, x)))
    return moves


def _clip(problem: Problem, x: Tensor) -> Tensor:
    return clip(problem.region, x.transpose(0, 1)).transpose(0, 1)
