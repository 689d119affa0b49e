"""Claims about the served program: what float32 (bfloat16, float16) evaluation of a model may add to its exact function.

The served program is handed, for an input x of the region, the number of its format nearest to each entry of x, and evaluates the
model's operators one after another, sums in any order, with or without fused multiply-add, denormal numbers kept or flushed. Not
covered are products by fewer multiplications (Winograd, Strassen, FFT) and formats with fewer bits than named (TF32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.execution import (
    default_chunk_size,
    halving,
    portions,
    resolve_device,
    rigorous_arithmetic,
)
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.served.analysis import served_errors
from mlflow_lipschitz.engine.served.formats import FORMATS, Format, format_named
from mlflow_lipschitz.engine.served.obstacles import obstacle
from mlflow_lipschitz.engine.transforms.objectives import flat_output
from mlflow_lipschitz.errors import InvalidRegion, UsageError

REAL = "real"
DEPLOYED = {f"deployed-{name}": form for name, form in FORMATS.items()}
ARITHMETICS = (REAL, *DEPLOYED)


def served_error_bounds(
    graph: Graph, region: Region, format: str = "float32", *, device: str = "auto", chunk_size: int | None = None
) -> np.ndarray:
    """How far each output of the served program may be from the exact function of the stored weights, anywhere in the region.

    Args:
        graph: the model. One that `trace` made knows the served program's own steps; of one built by hand they are its nodes.
        region: (points, *input shape), where the input ranges.
        format: what the program computes in: float32, bfloat16 or float16.
        device: auto, cpu or cuda.
        chunk_size: linear forms in flight; None takes what fits the device.

    Returns:
        (points, outputs), rounded upward; +inf where nothing is known: `why_unserved` says why, or a number may overflow.

    Raises:
        UsageError: an unknown format or device. InvalidRegion: a region of another shape than the graph's input.
    """
    place, form = resolve_device(device), format_named(format)
    if tuple(region.box.lower.shape[1:]) != graph.input_shape:
        raise InvalidRegion(f"region {tuple(region.box.lower.shape)} must be (points, *{graph.input_shape})")
    served = ServedProgram.of(graph, region, form, place)
    size = chunk_size or default_chunk_size(place, served.problem.graph)
    with rigorous_arithmetic():
        return halving(size, lambda chunk: _in_portions(served, chunk))


def why_unserved(graph: Graph, format: str = "float32") -> str:
    """Why `served_error_bounds` is infinite whatever the region: the node and the reason; empty where nothing stands in the way."""
    return obstacle(graph, format_named(format))


def format_of(arithmetic: str) -> Format | None:
    """What a deployed claim's program computes in; None for `real`. Raises UsageError for another name."""
    if arithmetic not in ARITHMETICS:
        raise UsageError(f"arithmetic={arithmetic!r}: choose one of {', '.join(ARITHMETICS)}")
    return DEPLOYED.get(arithmetic)


@dataclass(frozen=True)
class ServedProgram:
    """The steps of a served program over a region. `shared`: they are those of the graph whose function is bounded."""

    problem: Problem
    form: Format
    shared: bool

    @staticmethod
    def of(graph: Graph, region: Region, form: Format, device: torch.device) -> ServedProgram:
        steps = flat_output(graph.served or graph)
        return ServedProgram(Problem.of(steps, region, None, device), form, graph.served is None)

    def with_rows(self, start: int, stop: int) -> ServedProgram:
        """The program on some of the points."""
        return replace(self, problem=self.problem.with_rows(start, stop))

    def errors(
        self,
        region: Region,
        refinement: Refinement,
        objectives: Tensor | None = None,
        bounds: Sequence[NodeBounds] | None = None,
    ) -> Tensor:
        """(points, objectives) errors over a region.

        Args:
            objectives: (1 or points, objectives, outputs); None: every output.
            bounds: of the nodes of the graph whose function is bounded, over the region, if they are known.
        """
        problem = self.problem.with_region(region)
        if bounds is None or not self.shared:
            bounds = bound_nodes(problem, refinement)
        return served_errors(problem, [node.interval for node in bounds], self.form, objectives)


def _in_portions(served: ServedProgram, chunk_size: int) -> np.ndarray:
    problem, refinement = served.problem, Refinement(chunk_size)
    parts: list[Any] = []
    for first, last in portions(problem.region.points, max(1, chunk_size // 8)):
        part = served.with_rows(first, last)
        parts.append(part.errors(part.problem.region, refinement).cpu().numpy())
    return np.concatenate(parts)
