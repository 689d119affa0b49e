"""The inputs that a claim is about, made anew from the points, radii and domain that a certificate states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_lipschitz.checker.arithmetic import FLOATS, Arithmetic, dot


@dataclass(frozen=True, eq=False)
class Ball:
    """‖(x − center) / radius‖_p ≤ 1 for p = 1 or 2; (batch, *input shape) each."""

    center: np.ndarray
    radius: np.ndarray
    norm: int


@dataclass(frozen=True, eq=False)
class Region:
    """lower ≤ x ≤ upper, and x in the ball if there is one."""

    lower: np.ndarray
    upper: np.ndarray
    ball: Ball | None = None

    @staticmethod
    def around(points: Any, radius: Any, norm: str, domain: tuple[Any, Any]) -> Region:
        """Everything within `radius` (a number per feature) of the points, in the norm, that is in the domain; ends go outward.

        Raises:
            ValueError: a number that is none, a negative radius, or a region without a point.
        """
        center, reach = np.broadcast_arrays(np.asarray(points, np.float64), np.asarray(radius, np.float64))
        if not (np.isfinite(center).all() and np.isfinite(reach).all() and (reach >= 0).all()):
            raise ValueError("points and radii must be finite, and no radius negative")
        lower = np.where(reach == 0, center, np.nextafter(center - reach, -np.inf))
        upper = np.where(reach == 0, center, np.nextafter(center + reach, np.inf))
        lower, upper = np.maximum(lower, domain[0]), np.minimum(upper, domain[1])
        # Else the way from a point to another one of its region would leave it, and a ball might be empty.
        if not ((lower <= center) & (center <= upper)).all():
            raise ValueError("the domain excludes a point")
        ball = None if norm == "linf" else Ball(center, reach, {"l2": 2, "l1": 1}[norm])
        return Region(lower, upper, ball)

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        return self.lower, self.upper

    def select(self, index: np.ndarray) -> Region:
        ball = self.ball and Ball(self.ball.center[index], self.ball.radius[index], self.ball.norm)
        return Region(self.lower[index], self.upper[index], ball)

    def cut(self, lower: np.ndarray, upper: np.ndarray) -> Region:
        """The part between two arrays, each (batch, *input shape); it may be empty."""
        return Region(np.maximum(self.lower, lower), np.minimum(self.upper, upper), self.ball)

    def support(self, coeffs: np.ndarray, rounding: Arithmetic) -> np.ndarray:
        """(batch, rows) at least the largest coeffs · x over the region, coefficients (batch, rows, *input shape)."""
        c = coeffs.reshape(*coeffs.shape[:2], -1)
        low, high = (rounding.array(end.reshape(len(end), 1, -1)) for end in self.box)
        gamma = rounding.gamma(2 * c.shape[-1] + 16)
        # c⁺ high + c⁻ low, as two products of matrices.
        size = dot(np.abs(c), np.maximum(np.abs(low), np.abs(high))[:, 0])
        positive = np.maximum(c, 0)
        largest = dot(positive, high[:, 0]) + dot(c - positive, low[:, 0]) + gamma * size + rounding.underflow
        if self.ball is None:
            return largest
        center, reach = (rounding.array(x.reshape(len(x), 1, -1)) for x in (self.ball.center, self.ball.radius))
        weighted = np.abs(c * reach)
        top = weighted.max(-1, initial=0)
        dual = top
        if self.ball.norm == 2:
            scaled = (weighted / np.where(top > 0, top, 1)[..., None]).astype(float)
            # Squares of numbers up to 1, and their root, in float64; the factor covers all that was rounded.
            root = np.sqrt((scaled * scaled).sum(-1)) * (1 + FLOATS.gamma(c.shape[-1] + 8))
            dual = top * rounding.array(np.nextafter(root, np.inf))
        size = np.abs(c * center).sum(-1) + weighted.sum(-1)
        around = (c * center).sum(-1) + dual + gamma * size + rounding.underflow
        return np.minimum(largest, around)
