"""Search for points where a scalar of the gradient is large: gradient-norm ascent, through softened kinks, and random moves.

What is found is *attained*: a lower bound of the supremum. It tells how tight an upper bound is and can disprove a claim;
it can never prove one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mlflow_lipschitz.engine.attack.sampling import clip, sample
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.propagation.interpreter import enclose, run
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.smoothing import has_jumps, smoothed

_STARTS = 16
_SHARES = (0.5, 0.25, 0.1, 0.1, 0.05, 0.05)  # of the coordinates that one move changes
_ROUNDS = 6
_ENTRIES = 1 << 22  # numbers in one tensor: how many samples are looked at together
_WIDTHS = (0.02, 0.1, 0.5)  # of the sigmoids that stand for the kinks' derivatives


def ascend(problem: Problem, *, rounds: int = _ROUNDS, seed: int = 0) -> Tensor:
    """Points of the region at which the graph's one-entry output came out largest.

    Returns:
        (points, objectives, *input shape), inside the region.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = sample(problem.region, _STARTS, generator)[:, :, None]
    slopes = [problem] + [problem.with_graph(smoothed(problem.graph, w)) for w in _WIDTHS if has_jumps(problem.graph)]
    x, best = _best(problem, starts.expand(*starts.shape[:2], problem.objectives, *starts.shape[3:]))
    for _ in range(rounds):
        uphill = [step for slope in slopes for step in _uphill(slope, x)]
        tried = torch.cat([x[None], *uphill, _moved(problem, x, generator)])
        candidate, value = _best(problem, tried)
        x, best = torch.where(_as(value > best, x), candidate, x), torch.maximum(best, value)
    return x


def enclose_at(problem: Problem, x: Tensor) -> Interval:
    """Rigorous range of the graph's output at single points: interval propagation over degenerate boxes.

    Args:
        x: (samples, points, objectives, *input shape).

    Returns:
        Interval of shape (samples, points, objectives, *output shape). At a kink it spans the whole Clarke set.
    """
    pieces = [_enclose_piece(problem, piece) for piece in x.split(_samples_at_once(problem, x))]
    return Interval(*(torch.cat([getattr(piece, end) for piece in pieces]) for end in ("lower", "upper")))


def _enclose_piece(problem: Problem, x: Tensor) -> Interval:
    flat = x.flatten(0, 2)
    cotangent = problem.cotangent
    if cotangent is not None:
        spread = cotangent.expand(*x.shape[:3], *cotangent.shape[2:])
        cotangent = spread.flatten(0, 2)[:, None]
    interval = enclose(replace(problem, region=Box(flat, flat), cotangent=cotangent))
    shape = (*x.shape[:3], *problem.graph.output_shape)
    return Interval(interval.lower.reshape(shape), interval.upper.reshape(shape))


def _samples_at_once(problem: Problem, x: Tensor) -> int:
    """How many of (samples, points, objectives, ...) fit into a piece of work."""
    widest = max(math.prod(node.shape) for node in problem.graph.nodes)
    return max(1, _ENTRIES // max(1, widest * x.shape[1] * x.shape[2]))


def sampled_hull(problem: Problem, *, count: int = 24, seed: int = 0) -> Interval:
    """Values that each entry of the output really reaches: attained lower ≥ true infimum, attained upper ≤ true supremum.

    Returns:
        Interval of shape (points, objectives, *output shape) whose `upper` is the largest value known to be reached and
        whose `lower` is the smallest; `lower` may exceed `upper` by the width of the rounding.
    """
    points = sample(problem.region, count, torch.Generator().manual_seed(seed))[:, :, None]
    reached = enclose_at(problem, points.expand(*points.shape[:2], problem.objectives, *points.shape[3:]))
    return Interval(reached.upper.amin(0), reached.lower.amax(0))


def _best(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """The best of (samples, points, objectives, *shape) inputs per point and objective, and its value."""
    pieces = x.split(_samples_at_once(problem, x))
    value = torch.cat([_values(problem, piece) for piece in pieces])
    best, index = torch.where(value.isnan(), -torch.inf, value).max(0)
    return x.gather(0, _as(index, x[0])[None].expand(1, *x.shape[1:]))[0], best


def _values(problem: Problem, x: Tensor) -> Tensor:
    """(samples, points, objectives) values of the one-entry output."""
    samples, points = x.shape[:2]
    cotangent = problem.cotangent
    if cotangent is not None and cotangent.shape[0] > 1:
        cotangent = cotangent.repeat(samples, 1, *(1,) * (cotangent.dim() - 2))
    value = run(problem.graph, problem.weights, x.flatten(0, 1), cotangent).squeeze(-1)
    return value.expand(samples * points, problem.objectives).reshape(samples, points, problem.objectives)


def _as(values: Tensor, x: Tensor) -> Tensor:
    """(points, objectives) values, with axes added to broadcast against x."""
    return values.reshape(*values.shape, *(1,) * (x.dim() - 2))


def _uphill(problem: Problem, x: Tensor) -> list[Tensor]:
    """Steps along the sign of the value's gradient; none where the value does not depend on the point."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = run(problem.graph, problem.weights, leaf, problem.cotangent)
        if not value.requires_grad:
            return []
        (slope,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if slope is None:
        return []
    reach = (problem.region.box.upper - problem.region.box.lower).clamp(max=1e308)[:, None]  # no step may overflow
    steps = torch.stack([x + step * reach * slope.sign() for step in (1.0, 0.25, 0.05)])
    return [_clip(problem, steps)]


def _moved(problem: Problem, x: Tensor, generator: torch.Generator) -> Tensor:
    """Copies with a share of their coordinates thrown to a random end of the box."""
    box = problem.region.box
    shares = torch.tensor(_SHARES, dtype=torch.float64, device=x.device).reshape(-1, *(1,) * x.dim())
    draw = torch.rand((2, len(_SHARES), *x.shape), generator=generator, dtype=torch.float64).to(x.device)
    corner = torch.where(draw[0] < 0.5, box.lower[:, None], box.upper[:, None])
    return _clip(problem, torch.where(draw[1] < shares, corner, x))


def _clip(problem: Problem, x: Tensor) -> Tensor:
    """(samples, points, objectives, *shape) moved into the region."""
    samples, points, objectives = x.shape[:3]
    swapped = x.transpose(1, 2).reshape(samples * objectives, points, *x.shape[3:])
    inside = clip(problem.region, swapped).reshape(samples, objectives, points, *x.shape[3:])
    return inside.transpose(1, 2)
