"""What propagation knows of one node."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.rules.relaxation import Enclosure


@dataclass(frozen=True)
class NodeBounds:
    """`interval` is (points, 1 or objectives, *shape).

    `relaxation` encloses a nonlinear op by lines; `magnitude` (points, 1 or objectives) bounds the absolute terms that a backward
    step through the op adds up, for the rounding error; `underflow` (points, 1 or objectives) bounds what coefficients that
    underflow in that step may lose. All None where no linear form passes through the node.
    """

    interval: Interval
    relaxation: Enclosure | None = None
    magnitude: Tensor | None = None
    underflow: Tensor | None = None

    def with_interval(self, interval: Interval) -> NodeBounds:
        return replace(self, interval=interval)
