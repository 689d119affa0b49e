"""Walk inputs downhill on a value of the outputs: projected sign gradient steps that get shorter (Madry et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mlflow_lipschitz.engine.attack.sampling import clip
from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.propagation.interpreter import run
from mlflow_lipschitz.engine.propagation.problem import Problem

_FIRST, _LAST = 0.25, 0.002  # lengths of the first and the last step, as shares of the box's widths

Value = Callable[[Tensor], Tensor]


def outputs_at(problem: Problem, x: Tensor) -> Tensor:
    """(samples, points, outputs) values of the graph, in float64, at (samples, points, *input shape)."""
    values = run(problem.graph, problem.weights, x.flatten(0, 1)[:, None], None)
    return entries(values, 2).reshape(*x.shape[:2], -1)


def descend(
    problem: Problem, value: Value, starts: Tensor, *, steps: int, stop: Callable[[], bool] | None = None
) -> tuple[Tensor, Tensor]:
    """The inputs met on the way where the value was smallest.

    Args:
        problem: graph and region, one box per point.
        value: (samples, points, outputs) → (samples, points).
        starts: (samples, points, *input shape).
        steps: gradient steps.
        stop: asked after every step; the walk ends when it says yes.

    Returns:
        (points, *input shape), inside the region, and their values (points,); +inf where none was a number.
    """
    width = problem.region.box.upper - problem.region.box.lower
    x = clip(problem.region, starts)
    best, lowest = x[0], torch.full(x.shape[1:2], torch.inf, dtype=torch.float64, device=x.device)
    for step in range(steps + 1):
        reached, slope = _slope(problem, value, x)
        now, index = torch.where(reached.isnan(), torch.inf, reached).min(0)
        chosen = x.gather(0, _as(index, x[0])[None].expand(1, *x.shape[1:]))[0]
        best, lowest = torch.where(_as(now < lowest, x[0]), chosen, best), torch.minimum(now, lowest)
        if slope is None or step == steps or (stop is not None and stop()):
            break
        length = _FIRST * (_LAST / _FIRST) ** (step / max(1, steps - 1))
        x = clip(problem.region, x - length * width * slope.nan_to_num(0.0).sign())
    return best, lowest


def _slope(problem: Problem, value: Value, x: Tensor) -> tuple[Tensor, Tensor | None]:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        reached = value(outputs_at(problem, leaf))
        if not reached.requires_grad:
            return reached.detach(), None
        (slope,) = torch.autograd.grad(reached.sum(), leaf, allow_unused=True)
    return reached.detach(), slope


def _as(values: Tensor, x: Tensor) -> Tensor:
    """(points,) values, with axes added to broadcast against x."""
    return values.reshape(-1, *(1,) * (x.dim() - 1))
