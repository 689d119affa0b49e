"""Projected Adam (Kingma and Ba, 2015) for free numbers of bounds: many small independent problems in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Few steps are taken, so little is remembered.
_MEAN, _SQUARE = 0.7, 0.9
_SMALL = 1e-30


class Adam:
    """Steps downhill, each `decay` times as long as the last, for leaves that stay within their limits (lowest, highest)."""

    def __init__(
        self, leaves: Sequence[Tensor], limits: Sequence[tuple[float, float]], rate: float, decay: float = 1.0
    ) -> None:
        self._leaves, self._limits, self._rate, self._decay, self._count = leaves, limits, rate, decay, 0
        self._moments = [(torch.zeros_like(leaf), torch.zeros_like(leaf)) for leaf in leaves]

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Change the leaves in place; one without a gradient stays."""
        self._count += 1
        with torch.no_grad():
            for leaf, gradient, limits, (mean, square) in zip(
                self._leaves, gradients, self._limits, self._moments, strict=True
            ):
                if gradient is None:
                    continue
                known = gradient.nan_to_num(0.0, 0.0, 0.0)
                mean.lerp_(known, 1 - _MEAN)
                square.lerp_(known * known, 1 - _SQUARE)
                size = (square / (1 - _SQUARE**self._count)).sqrt() + _SMALL
                leaf.sub_(
                    self._rate * self._decay ** (self._count - 1) * (mean / (1 - _MEAN**self._count)) / size
                ).clamp_(*limits)
