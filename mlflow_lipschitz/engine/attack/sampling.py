"""Points of a region: its center, corners, and random ones. Every returned point lies in the region, rounding included."""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.region import Box, LpBall, Region
from mlflow_lipschitz.engine.domains.rounding import gamma

# Where points are pulled to; the floats that come out are checked again.
_INSIDE = 1 - 1e-9


def sample(region: Region, count: int, generator: torch.Generator) -> Tensor:
    """(count, points, *input shape): first the center, then corners and uniform points in turn."""
    box = region.box
    t = torch.rand((count, *box.lower.shape), generator=generator, dtype=torch.float64).to(box.lower.device)
    t[1::2] = t[1::2].round()
    t[0] = 0.5
    points = box.lower * (1 - t) + box.upper * t
    if isinstance(region, Box):
        return clip(region, points)
    points[0] = region.center
    return clip(region, points)


def clip(region: Region, points: Tensor) -> Tensor:
    """The nearest known points inside: (samples, points, *input shape), pulled towards the center of a ball."""
    box = region.box
    inside = torch.minimum(torch.maximum(points, box.lower), box.upper)
    if isinstance(region, Box):
        return inside
    offset = inside - region.center
    relative = torch.where(region.radius > 0, offset / region.radius, 0.0)
    norm = torch.linalg.vector_norm(entries(relative, 2), ord=region.norm, dim=-1)
    shrink = (_INSIDE / norm.clamp(min=_INSIDE)).reshape(*norm.shape, *(1,) * (points.dim() - 2))
    # A ball's box contains its center, so shrinking towards the center stays in the box.
    pulled = torch.where(norm.reshape(shrink.shape) > _INSIDE, region.center + offset * shrink, inside)
    pulled = torch.minimum(torch.maximum(pulled, box.lower), box.upper)
    return torch.where(_surely_in_ball(region, pulled).reshape(shrink.shape), pulled, region.center)


def _surely_in_ball(ball: LpBall, points: Tensor) -> Tensor:
    """(samples, points): whether the norm of the floats that came out is at most 1 with its rounding added."""
    relative = entries(torch.where(ball.radius > 0, (points - ball.center).abs() / ball.radius, 0.0), 2)
    norm = torch.linalg.vector_norm(relative, ord=ball.norm, dim=-1)
    return norm * (1 + gamma(4 * relative.shape[-1] + 16)) <= 1
