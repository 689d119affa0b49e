"""Points of the audited region besides its rows, on which the graph is compared with the model before anything is bounded.

The rows alone may all lie on one side of a kink that their regions reach across. Probes prove nothing; they are there to
find a graph that is not the model where the rows cannot show it.
"""

from __future__ import annotations

import numpy as np
import torch

from mlflow_lipschitz.engine.domains.region import Box, LpBall
from mlflow_lipschitz.pipeline.question import Question

MOST_PROBES = 256
MOST_ENTRIES = 1 << 22  # of all probes together: fewer probes of large inputs


def probe_points(question: Question, points: np.ndarray) -> np.ndarray:
    """(probes, *input shape) points in the regions around rows spread over `points`, (rows, *input shape).

    Every other one is as far out as it can be in some direction: a corner of a box, the surface of a ball. The same rows
    always have the same probes.
    """
    size = max(1, int(np.prod(points.shape[1:])))
    count = int(np.clip(MOST_ENTRIES // size, 4, MOST_PROBES))
    chosen = np.linspace(0, len(points) - 1, min(count, len(points))).round().astype(int)
    rows = np.sort(np.resize(chosen, count))
    region = question.region(points[rows])
    random = np.random.default_rng(0)
    return _in_box(region, random) if isinstance(region, Box) else _in_ball(region, random)


def _in_box(box: Box, random: np.random.Generator) -> np.ndarray:
    low, high = box.lower.numpy(), box.upper.numpy()
    share = random.random(low.shape)
    share[::2] = share[::2].round()
    return np.asarray(np.clip(low + share * (high - low), low, high))


def _in_ball(ball: LpBall, random: np.random.Generator) -> np.ndarray:
    center, reach = ball.center.numpy(), ball.radius.numpy()
    axes = tuple(range(1, center.ndim))
    direction = (random.normal(size=center.shape) if ball.norm == 2 else random.laplace(size=center.shape)) * (
        reach > 0
    )
    length = (np.abs(direction) ** ball.norm).sum(axis=axes, keepdims=True) ** (1 / ball.norm)
    length[length == 0] = 1.0
    depth = random.random((len(center), *(1,) * len(axes)))
    depth[::2] = 1.0
    inside = torch.from_numpy(center + reach * direction * depth / length)
    # The domain holds the center, so moving into it moves toward the center and stays in the ball.
    return torch.minimum(torch.maximum(inside, ball.box.lower), ball.box.upper).numpy()
