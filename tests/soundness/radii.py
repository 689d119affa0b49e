"""Points within a certified radius at which the prediction might be another one, and whether it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify import RadiusCertificate, certified_radius
from mlflow_lipschitz.engine.attack.sampling import clip, sample
from mlflow_lipschitz.engine.domains.region import Box, LpBall, Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from tests.soundness.claims import Tally, Violation, shown
from tests.soundness.drafts import Rng
from tests.soundness.exact import BeyondTheOracle, number, values_at
from tests.soundness.regions import in_ball

_NORMS: dict[str, int | str] = {"linf": "inf", "l2": 2, "l1": 1}
_STEPS = (1.0, 0.2)


@dataclass(frozen=True)
class RadiusDraw:
    """A question for `certified_radius`, and its answer."""

    graph: Graph
    points: np.ndarray
    labels: np.ndarray
    norm: str
    scale: np.ndarray
    domain: tuple[np.ndarray, np.ndarray] | None
    answer: RadiusCertificate

    def ball(self) -> Region:
        reach = self.answer.radius.reshape(-1, *[1] * (self.points.ndim - 1)) * self.scale
        if self.norm == "linf":
            return Box.around(self.points, reach, self.domain)
        return LpBall(self.points, reach, 2 if self.norm == "l2" else 1, self.domain)

    def contains(self, row: int, x: np.ndarray) -> bool:
        """Whether a point is within the certified radius of a row, decided exactly."""
        if self.domain is not None and not ((self.domain[0] <= x) & (x <= self.domain[1])).all():
            return False
        radius = Fraction(float(self.answer.radius[row]))
        reach = np.array([radius * Fraction(float(s)) for s in self.scale.reshape(-1)], dtype=object)
        return in_ball(self.points[row], reach, _NORMS[self.norm], x)


def ask(rng: Rng, graph: Graph, points: np.ndarray, norm: str) -> RadiusDraw:
    """Certified radii of points under the label predicted, or sometimes another one."""
    outputs = int(np.prod(graph.output_shape))
    values = evaluate(graph, points).reshape(len(points), -1).numpy()
    predicted = values.argmax(1) if outputs > 1 else (values[:, 0] > 0).astype(int)
    other = rng.integers(0, max(2, outputs), len(points))
    labels = np.where(rng.random(len(points)) < 0.1, other, predicted)
    scale = rng.choice([1.0, 1.0, 0.0, 0.3, 2.0], points.shape[1:]) if rng.random() < 0.4 else np.ones(points.shape[1:])
    domain = (points.min(0) - 0.05, points.max(0) + 0.3) if rng.random() < 0.3 else None
    largest = float(rng.choice([1e-6, 0.25, 1.0, 1.0, 100.0]))
    answer = certified_radius(
        graph, points, labels, norm=norm, max_radius=largest, feature_scale=scale, domain=domain, device="cpu"
    )
    return RadiusDraw(graph, points, labels, norm, scale, domain, answer)


def changes(draw: RadiusDraw, row: int, candidates: np.ndarray, tally: Tally) -> Iterator[Violation]:
    """Claims about a row that a point disproves; the candidates (samples, *input shape) are tried in this order."""
    radius, status = float(draw.answer.radius[row]), str(draw.answer.status[row])
    if np.isnan(radius) or (radius > 0) != (status == "certified"):
        yield Violation("status of the radius", row, (), f"{radius!r}, {status}", "the other")
    center = _margin(draw, row, draw.points[row])
    if center is not None:
        yield from _about_the_center(draw, row, center)
    if radius > 0:
        tally.counts["certified radii"] += 1
        for x in islice((x for x in candidates if draw.contains(row, x)), 2):
            margin = _margin(draw, row, x)
            tally.counts["points within a radius"] += 1
            if margin is not None and not margin > 0:
                yield Violation(
                    "certified radius", row, tuple(x.reshape(-1).tolist()), repr(radius), f"margin {shown(margin)}"
                )


def _about_the_center(draw: RadiusDraw, row: int, margin: object) -> Iterator[Violation]:
    point = tuple(draw.points[row].reshape(-1).tolist())
    claimed, status = float(draw.answer.margin[row]), str(draw.answer.status[row])
    if claimed > -np.inf and not number(draw.graph)(claimed) <= margin:  # type: ignore[operator]
        yield Violation("margin at the point", row, point, repr(claimed), shown(margin))
    if status == "violated" and margin > 0:  # type: ignore[operator]
        yield Violation("violated", row, point, status, f"margin {shown(margin)}")


def candidates_of(draw: RadiusDraw, generator: torch.Generator) -> np.ndarray:
    """(points, samples, *input shape): the smallest margin found first."""
    ball = draw.ball()
    x = sample(ball, 24, generator)
    for step in _STEPS:
        x = torch.cat([x, _downhill(draw, ball, x[-24:], step)])
    with torch.no_grad():
        margin = _margins(draw, x).nan_to_num(-torch.inf)
    order = margin.argsort(0)
    return np.stack([x[order[:, row], row].numpy() for row in range(len(draw.points))])


def _downhill(draw: RadiusDraw, ball: Region, x: Tensor, step: float) -> Tensor:
    leaf = x.clone().requires_grad_()
    total = _margins(draw, leaf).sum()
    if not total.requires_grad:
        return x
    (slope,) = torch.autograd.grad(total, leaf, allow_unused=True)
    if slope is None:
        return x
    reach = ball.box.upper - ball.box.lower
    return clip(ball, x - step * reach * slope.nan_to_num(0.0).sign())


def _margins(draw: RadiusDraw, x: Tensor) -> Tensor:
    """(samples, points) smallest margins in float64."""
    y = evaluate(draw.graph, x.flatten(0, 1)).reshape(*x.shape[:2], -1)
    labels = torch.from_numpy(draw.labels)
    if y.shape[-1] == 1:
        return y[..., 0] * (2.0 * labels - 1.0)
    own = y.gather(-1, labels.expand(y.shape[:2])[..., None])
    others = y.scatter(-1, labels.expand(y.shape[:2])[..., None], -torch.inf)
    return own[..., 0] - others.amax(-1)


def _margin(draw: RadiusDraw, row: int, x: np.ndarray) -> object:
    """The smallest margin, exactly; NaN where a value is missing, None where the oracle does not reach."""
    try:
        values = values_at(draw.graph, x)
    except BeyondTheOracle:
        return None
    label = int(draw.labels[row])
    if any(v != v for v in values):
        return float("nan")
    if len(values) == 1:
        return values[0] if label else -values[0]
    return min(values[label] - v for j, v in enumerate(values) if j != label)
