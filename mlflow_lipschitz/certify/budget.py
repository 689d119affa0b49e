"""How much time a certification may spend beyond one propagation pass, and when it is good enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlflow_lipschitz.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """Branch and bound for every point, until one of these holds.

    Attributes:
        seconds_per_point: wall-clock seconds a point, shared by the points that are worked on together.
        target_gap: stop where upper ≤ (1 + target_gap) · lower.
        parts_per_point: stop after about that many parts a point; unlike a time, it makes a result repeatable. None: no such limit.
        threshold: stop as soon as it is known on which side of this number the constant lies, the largest of a point's objectives
            if there are several; None asks for the number itself.

    Raises:
        UsageError: a negative or non-finite number.
    """

    seconds_per_point: float = 5.0
    target_gap: float = 0.02
    threshold: float | None = None
    parts_per_point: int | None = None

    def __post_init__(self) -> None:
        for name in ("seconds_per_point", "target_gap"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be a number that is not negative, got {value!r}")
        if self.parts_per_point is not None and self.parts_per_point < 0:
            raise UsageError(f"parts_per_point must not be negative, got {self.parts_per_point!r}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UsageError(f"threshold must be a finite number or None, got {self.threshold!r}")


def check_budget(budget: object) -> None:
    """Raises UsageError for what is neither a Budget nor None."""
    if budget is not None and not isinstance(budget, Budget):
        raise UsageError(f"budget={budget!r}: pass mlflow_lipschitz.Budget(seconds_per_point=...) or None")
