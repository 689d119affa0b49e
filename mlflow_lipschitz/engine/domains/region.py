"""The inputs considered: boxes, and weighted ℓp balls cut by a box.

A ball's `radius` has one entry per input feature: the region is {x : ‖(x − center) / radius‖_p ≤ 1}. A feature of radius 0 does not
move. Regions are float64, on one device, with points as the leading axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.rounding import error_bound, next_down, next_up
from mlflow_lipschitz.errors import InvalidRegion

Array = Any  # a NumPy array, a torch tensor, a nested list or a number


@dataclass(frozen=True)
class Box:
    """All x with lower ≤ x ≤ upper, both (points, *input shape).

    Raises:
        InvalidRegion: shapes differ, an entry is not finite, or some lower exceeds its upper; the message names the point.
    """

    lower: Tensor
    upper: Tensor

    def __init__(self, lower: Array, upper: Array) -> None:
        low, high = _float64(lower), _float64(upper)
        if low.shape != high.shape or low.dim() < 2:
            raise InvalidRegion(
                f"a box needs two (points, *input shape) arrays, got {tuple(low.shape)}, {tuple(high.shape)}"
            )
        _refuse(~(low.isfinite() & high.isfinite()), "the box is not finite")
        _refuse(low > high, "the box is empty (lower > upper)")
        object.__setattr__(self, "lower", low)
        object.__setattr__(self, "upper", high)

    @staticmethod
    def around(points: Array, radius: Array, domain: tuple[Array, Array] | None = None) -> Box:
        """The ℓ∞ ball: every float64 rounding goes outward, and radius 0 is exactly the point.

        The region is the resulting box of float64 ends, which contains the ball and exceeds it by at most one unit in the last
        place at each end; attained values may lie in that margin.

        Args:
            points: (points, *input shape).
            radius: a number, or an array that broadcasts to the points.
            domain: (lower, upper) that the perturbed input never leaves; each broadcasts to the points.
        """
        center, reach = _center_and_radius(points, radius)
        lower = torch.where(reach == 0, center, next_down(center - reach))
        upper = torch.where(reach == 0, center, next_up(center + reach))
        return _cut(lower, upper, domain)

    @property
    def points(self) -> int:
        return self.lower.shape[0]

    @property
    def box(self) -> Box:
        """The smallest box known to contain the region: itself."""
        return self

    def to(self, device: torch.device) -> Box:
        return _box(self.lower.to(device), self.upper.to(device))

    def rows(self, start: int, stop: int) -> Box:
        """The region of some of the points."""
        return _box(self.lower[start:stop], self.upper[start:stop])

    def select(self, index: Tensor) -> Box:
        """The regions of the points with these numbers, which may repeat."""
        return _box(self.lower[index], self.upper[index])

    def cut(self, lower: Tensor, upper: Tensor) -> Box:
        """The part of every region between two (points, *input shape) tensors, which must not be empty."""
        return _box(torch.maximum(self.lower, lower), torch.minimum(self.upper, upper))

    def support(self, coeffs: Tensor) -> Tensor:
        """Upper bound of max over the region of coeffs · x.

        Args:
            coeffs: (points or 1, objectives, rows, *input shape).

        Returns:
            (points, objectives, rows), rounded upward.
        """
        low, high = self.lower[:, None, None], self.upper[:, None, None]
        size = coeffs.abs()
        # Center and half width round as well, by at most one unit each of the reach that `spread` weighs.
        value = _dot(coeffs, low / 2 + high / 2) + _dot(size, high / 2 - low / 2)
        spread = _dot(size, torch.maximum(low.abs(), high.abs()))
        # A half of a subnormal end loses its last bit, which a coefficient may weigh.
        lost = entries(size, 3).sum(-1) * 2.0**-1070
        return value + error_bound(spread, 2 * coeffs.shape[3:].numel() + 8) + lost + 2.0**-960


@dataclass(frozen=True)
class LpBall:
    """All x with ‖(x − center) / radius‖_p ≤ 1 for p = 1 or 2, cut by a domain box.

    Raises:
        InvalidRegion: another norm, shapes that do not fit, a negative or non-finite radius, an empty intersection.
    """

    center: Tensor
    radius: Tensor
    norm: int
    box: Box

    def __init__(self, points: Array, radius: Array, norm: int = 2, domain: tuple[Array, Array] | None = None) -> None:
        if norm not in (1, 2):
            raise InvalidRegion(f"LpBall knows the norms 1 and 2, not {norm!r}; for the maximum norm use Box.around")
        center, reach = _center_and_radius(points, radius)
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "radius", reach)
        object.__setattr__(self, "norm", norm)
        box = Box.around(center, reach, domain)
        _refuse((center < box.lower) | (center > box.upper), "the domain excludes the center of the ball")
        object.__setattr__(self, "box", box)

    @property
    def points(self) -> int:
        return self.center.shape[0]

    def to(self, device: torch.device) -> LpBall:
        return self._with(self.center.to(device), self.radius.to(device), self.box.to(device))

    def rows(self, start: int, stop: int) -> LpBall:
        """The region of some of the points."""
        return self._with(self.center[start:stop], self.radius[start:stop], self.box.rows(start, stop))

    def select(self, index: Tensor) -> LpBall:
        """The regions of the points with these numbers, which may repeat."""
        return self._with(self.center[index], self.radius[index], self.box.select(index))

    def cut(self, lower: Tensor, upper: Tensor) -> LpBall:
        """The part of every region between two (points, *input shape) tensors, which must not be empty."""
        return self._with(self.center, self.radius, self.box.cut(lower, upper))

    def support(self, coeffs: Tensor) -> Tensor:
        """As `Box.support`: the smaller of the ball's dual-norm value and the box's."""
        a = entries(coeffs, 3)
        center, reach = entries(self.center, 1)[:, None, :, None], entries(self.radius, 1)[:, None, None, :]
        weighted = (a * reach).abs()
        largest = weighted.amax(-1)
        # Scaled by the largest entry, no square underflows that matters.
        scaled = weighted / torch.where(largest > 0, largest, 1.0)[..., None]
        dual = largest if self.norm == 1 else largest * torch.linalg.vector_norm(scaled, dim=-1)
        size = (a.abs() @ center.abs()).squeeze(-1) + weighted.sum(-1)
        ball = (a @ center).squeeze(-1) + dual + error_bound(size, 2 * a.shape[-1] + 16) + 2.0**-960
        return torch.minimum(ball, self.box.support(coeffs))

    def _with(self, center: Tensor, radius: Tensor, box: Box) -> LpBall:
        ball = object.__new__(LpBall)
        for name, value in (("center", center), ("radius", radius), ("norm", self.norm), ("box", box)):
            object.__setattr__(ball, name, value)
        return ball


Region = Box | LpBall


def _dot(coeffs: Tensor, values: Tensor) -> Tensor:
    return entries(coeffs * values, 3).sum(-1)


def _box(lower: Tensor, upper: Tensor) -> Box:
    """A box whose ends were checked before."""
    box = object.__new__(Box)
    object.__setattr__(box, "lower", lower)
    object.__setattr__(box, "upper", upper)
    return box


def _cut(lower: Tensor, upper: Tensor, domain: tuple[Array, Array] | None) -> Box:
    if domain is None:
        return Box(lower, upper)
    floor, ceiling = (torch.broadcast_to(_float64(side).to(lower.device), lower.shape) for side in domain)
    low, high = torch.maximum(lower, floor), torch.minimum(upper, ceiling)
    _refuse(low > high, "the domain excludes the whole region")
    return Box(low, high)


def _center_and_radius(points: Array, radius: Array) -> tuple[Tensor, Tensor]:
    center, reach = _float64(points), _float64(radius)
    if center.dim() < 2:
        raise InvalidRegion(f"points must be (points, *input shape), got {tuple(center.shape)}")
    try:
        reach = torch.broadcast_to(reach.to(center.device), center.shape)
    except RuntimeError as error:
        raise InvalidRegion(
            f"a radius of shape {tuple(reach.shape)} does not fit points {tuple(center.shape)}"
        ) from error
    _refuse(~center.isfinite(), "the point is not finite")
    _refuse(~(reach.isfinite() & (reach >= 0)), "the radius is negative or not finite")
    return center, reach


def _float64(values: Array) -> Tensor:
    tensor = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.float64))
    return tensor.to(torch.float64)


def _refuse(bad: Tensor, message: str) -> None:
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise InvalidRegion(f"{message}: point {place[0]}, entry {tuple(place[1:])}")
