"""The constants of an op, once per call on the device, split the way bounds need them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.ir.ops import Adjoint, Op


@dataclass(frozen=True)
class Weights:
    """`full` = `positive` + `negative`; all None for an op without a weight. `smallest` is its least nonzero |entry|."""

    full: Tensor | None = None
    positive: Tensor | None = None
    negative: Tensor | None = None
    smallest: Tensor | None = None
    bias: Tensor | None = None


def weights_of(graph: Graph, device: torch.device) -> tuple[Weights, ...]:
    """One `Weights` per node. An op and its adjoint share theirs."""
    shared: dict[int, Weights] = {}
    result = []
    for node in graph.nodes:
        op = node.op.inner if isinstance(node.op, Adjoint) else node.op
        if id(op) not in shared:
            shared[id(op)] = _weights(op, device)
        result.append(shared[id(op)])
    return tuple(result)


def _weights(op: Op, device: torch.device) -> Weights:
    weight, bias = _first(op, "weight", "scale", "step", "kept"), _first(op, "bias", "shift")
    constant = None if bias is None else _tensor(bias, device)
    if weight is None:
        return Weights(bias=constant)
    full = _tensor(weight, device)
    size = full.abs()
    smallest = (
        torch.where(size == 0, torch.inf, size).amin() if size.numel() else torch.tensor(torch.inf, device=device)
    )
    return Weights(full, full.clamp(min=0), full.clamp(max=0), smallest, constant)


def _first(op: Op, *names: str) -> np.ndarray | None:
    return next((getattr(op, name) for name in names if hasattr(op, name)), None)


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.tensor(array, dtype=torch.float64, device=device)
