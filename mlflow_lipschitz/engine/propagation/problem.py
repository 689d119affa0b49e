"""What a propagation works on: a graph with its constants on a device, a region, and the objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.ir.ops import Input, Op
from mlflow_lipschitz.engine.rules.weights import Weights, weights_of


@dataclass(frozen=True)
class Problem:
    """Frozen; algorithms are functions of it.

    Attributes:
        graph: what is bounded.
        weights: per node, on the device.
        region: where the input ranges, on the device.
        cotangent: (1 or points, objectives, *output shape) values of the graph's `Cotangent`, or None without one.
    """

    graph: Graph
    weights: tuple[Weights, ...]
    region: Region
    cotangent: Tensor | None = None

    @staticmethod
    def of(
        graph: Graph, region: Region, cotangent: Tensor | None = None, device: torch.device | None = None
    ) -> Problem:
        """Put everything on the device (default: the CPU) in float64."""
        place = device or torch.device("cpu")
        lifted = None if cotangent is None else cotangent.to(place, torch.float64)
        return Problem(graph, weights_of(graph, place), region.to(place), lifted)

    def given(self, op: Op) -> Interval:
        """The interval of a node that is given, not computed: the input or the cotangent."""
        if isinstance(op, Input):
            return Interval(self.region.box.lower[:, None], self.region.box.upper[:, None])
        assert self.cotangent is not None
        return Interval(self.cotangent, self.cotangent)

    def with_rows(self, start: int, stop: int) -> Problem:
        """The same problem for some of the points."""
        cotangent = self.cotangent
        if cotangent is not None and cotangent.shape[0] > 1:
            cotangent = cotangent[start:stop]
        return replace(self, region=self.region.rows(start, stop), cotangent=cotangent)

    def select(self, points: Tensor, objectives: Tensor) -> Problem:
        """One point with one objective for every pair of indices."""
        cotangent = self.cotangent
        if cotangent is not None:
            cotangent = cotangent[points if cotangent.shape[0] > 1 else torch.zeros_like(points), objectives][:, None]
        return replace(self, region=self.region.select(points), cotangent=cotangent)

    def with_region(self, region: Region) -> Problem:
        return replace(self, region=region)

    def with_graph(self, graph: Graph) -> Problem:
        return replace(self, graph=graph, weights=weights_of(graph, self.device))

    @property
    def device(self) -> torch.device:
        return self.region.box.lower.device

    @property
    def objectives(self) -> int:
        return 1 if self.cotangent is None else self.cotangent.shape[1]
