"""Regions of every form, around a network's home and elsewhere."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mlflow_lipschitz.engine.domains.region import Box, LpBall, Region
from tests.soundness.drafts import Rng

_RADII = (0.0, 2.0**-40, 2.0**-20, 0.125, 0.5, 1.0, 8.0)
_FORMS = (
    "point",
    "around",
    "around",
    "one feature",
    "frozen features",
    "home in a corner",
    "cut",
    "uneven",
    "one bit wide",
)


def centers(rng: Rng, home: np.ndarray, count: int) -> np.ndarray:
    """(count, *input shape): home, points of its grid, and anything."""
    points = rng.normal(size=(count, *home.shape))
    points[1::3] = rng.integers(-12, 13, points[1::3].shape) / 8
    points[0::3] = home
    return points


def random_region(rng: Rng, points: np.ndarray) -> tuple[Region, list[str]]:
    """A region with one row for each of the points, and the form of each row."""
    kind = str(rng.choice(["box", "box", "box", "ball 2", "ball 1"]))
    if kind == "box":
        forms = [str(rng.choice(_FORMS)) for _ in points]
        ends = [_box(rng, form, point) for form, point in zip(forms, points, strict=True)]
        return Box(*(np.stack(end) for end in zip(*ends, strict=True))), [f"region: box, {form}" for form in forms]
    radius = rng.choice(_RADII, len(points)).reshape(-1, *[1] * (points.ndim - 1)) * np.ones_like(points)
    radius = radius * rng.choice([1.0, 1.0, 0.0, 0.3], points.shape)
    cut = bool(rng.random() < 0.3)
    below, above = (rng.choice([0.0, 0.05, 2.0], points.shape) for _ in range(2))
    domain = (points - below, points + above) if cut else None
    name = f"region: {kind}{', cut' if cut else ''}"
    return LpBall(points, radius, norm=int(kind[-1]), domain=domain), [name] * len(points)


def _box(rng: Rng, form: str, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reach = np.full(point.shape, rng.choice(_RADII[1:]))
    if form == "point":
        return point, point
    if form == "one feature":
        reach = np.where(np.arange(point.size).reshape(point.shape) == rng.integers(point.size), reach, 0.0)
    if form == "frozen features":
        reach = reach * (rng.random(point.shape) < 0.6)
    if form == "uneven":
        return point - reach * rng.random(point.shape), point + reach * rng.random(point.shape)
    if form == "home in a corner":
        low = rng.random(point.shape) < 0.5
        return np.where(low, point, point - reach), np.where(low, point + reach, point)
    if form == "one bit wide":
        return point, np.nextafter(point, np.inf)
    if form == "cut":
        return np.maximum(point - reach, np.minimum(point, -0.1)), np.minimum(point + reach, np.maximum(point, 0.0))
    return point - reach, point + reach


def contains(region: Region, row: int, x: np.ndarray) -> bool:
    """Whether a point lies in a row of the region, decided exactly."""
    box = region.box
    if not bool((box.lower[row].numpy() <= x).all() and (x <= box.upper[row].numpy()).all()):
        return False
    return isinstance(region, Box) or in_ball(region.center[row].numpy(), region.radius[row].numpy(), region.norm, x)


def in_ball(center: np.ndarray, radius: np.ndarray, norm: int | str, x: np.ndarray) -> bool:
    """‖(x − center) / radius‖ ≤ 1, exactly; norm 1, 2 or "inf", and a radius of 0 does not move."""
    shares = []
    for c, r, v in zip(center.reshape(-1), radius.reshape(-1), x.reshape(-1), strict=True):
        away = abs(Fraction(float(v)) - Fraction(float(c)))
        if away and not r:
            return False
        shares.append(away / Fraction(float(r)) if away else Fraction(0))
    size = {1: sum(shares), 2: sum(s * s for s in shares), "inf": max(shares)}[norm]
    return size <= 1
