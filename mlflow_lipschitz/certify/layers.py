"""Layer by layer: how much each one can stretch its input, and how much of what it computes the proof has to guess.

The norms say where a large constant comes from; the share of unstable units says where a loose one does: only an entry whose
activation may be on either side of a kink is enclosed instead of computed. The norms are plain computations, not proofs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mlflow_lipschitz.certify.execution import (
    default_chunk_size,
    halving,
    portions,
    resolve_device,
    rigorous_arithmetic,
)
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, Node
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.affine_maps import affine_map
from mlflow_lipschitz.engine.rules.registry import rule_for
from mlflow_lipschitz.engine.rules.weights import Weights, weights_of

_DENSE_ENTRIES = 1 << 18
"""Up to this many entries a layer's matrix is written out and all its singular values are computed."""

_STEPS = 30  # of the power iteration, for larger ones

_COPIES = (ops.Reshape, ops.Transpose)


@dataclass(frozen=True)
class Layer:
    """One layer: a linear map, the activation behind it, or both. What a layer does not have is None.

    Attributes:
        name: of the node in the user's model.
        kind: `Linear`, `Conv` or `scale`, and the activation's name.
        size: `entries in → entries out`.
        norm: largest singular value: the most by which the linear map stretches a Euclidean distance.
        condition: largest over smallest singular value of a map between its ranks; infinite where it loses a direction.
        stable_rank: sum of squared singular values over the largest one's: in how many directions it stretches about equally.
        unstable: mean share of the activation's entries whose side of a kink is open over the region, 0 to 1.
        smooth: the activation is curved everywhere, so that every entry is enclosed.
    """

    name: str
    kind: str
    size: str
    norm: float | None = None
    condition: float | None = None
    stable_rank: float | None = None
    unstable: float | None = None
    smooth: bool = False


def layer_facts(graph: Graph, region: Region, *, device: str = "auto") -> tuple[Layer, ...]:
    """What is known of each layer, in the order of the graph; the shares are means over the region's points.

    Args:
        graph: the model.
        region: where the input ranges, with a few points: one propagation pass is made of each.

    Raises:
        UsageError: no such device. UnsupportedOperator: the graph holds an op without a rule.
    """
    place = resolve_device(device)
    problem = Problem.of(graph, region, None, place)
    size = default_chunk_size(place, graph)
    with rigorous_arithmetic():
        shares = halving(size, lambda chunk: _open_shares(problem, chunk))
    rows: dict[int, Layer] = {}
    behind: dict[int, int] = {}  # node -> the linear layer that it only rearranges
    weights = weights_of(graph, torch.device("cpu"))
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, _COPIES) and node.inputs[0] in behind:
            behind[index] = behind[node.inputs[0]]
        elif _has_weights(node.op):
            rows[index] = _linear(graph, node, weights[index])
            behind[index] = index
        elif index in shares:
            source = behind.get(node.inputs[0]) if isinstance(node.op, ops.Elementwise) else None
            smooth = rule_for(node.op).is_smooth(node.op)
            if source is not None and rows[source].unstable is None:
                kind = f"{rows[source].kind}, {_activation(node.op)}"
                rows[source] = replace(rows[source], kind=kind, unstable=shares[index], smooth=smooth)
            else:
                extent = f"{math.prod(graph.nodes[node.inputs[0]].shape)} → {math.prod(node.shape)}"
                rows[index] = Layer(node.name, _activation(node.op), extent, unstable=shares[index], smooth=smooth)
    return tuple(rows[index] for index in sorted(rows))


def _open_shares(problem: Problem, chunk_size: int) -> dict[int, float]:
    """Per nonlinear node, the mean share of entries that its enclosure depends on the range of."""
    count, total = problem.region.points, dict[int, float]()
    for first, last in portions(count, max(1, chunk_size // 8)):
        part = problem.with_rows(first, last)
        bounds = bound_nodes(part, Refinement(chunk_size))
        for index, share in _shares(part.graph, bounds):
            total[index] = total.get(index, 0.0) + share * (last - first) / count
    return total


def _shares(graph: Graph, bounds: Sequence[NodeBounds]) -> Iterator[tuple[int, float]]:
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, (ops.Input, ops.Cotangent)):
            continue
        rule = rule_for(node.op, node.name)
        inputs = [bounds[i].interval for i in node.inputs]
        masks = [rule.imprecise(node.op, position, *inputs) for position in rule.operands(node.op, len(inputs))]
        shares = [float(mask.to(torch.float64).mean()) for mask in masks if mask is not None]
        if shares:
            yield index, max(shares)


def _has_weights(op: ops.Op) -> bool:
    inner = op.inner if isinstance(op, ops.Adjoint) else op
    return isinstance(inner, (ops.Linear, ops.Conv)) or (isinstance(op, ops.ScaleShift) and op.scale is not None)


def _linear(graph: Graph, node: Node, weights: Weights) -> Layer:
    shape = graph.nodes[node.inputs[0]].shape
    inner = node.op.inner if isinstance(node.op, ops.Adjoint) else node.op
    kind = {ops.Linear: "Linear", ops.Conv: "Conv", ops.ScaleShift: "scale"}[type(inner)]
    kind = f"transposed {kind}" if isinstance(node.op, ops.Adjoint) else kind
    layer = Layer(node.name, kind, f"{math.prod(shape)} → {math.prod(node.shape)}")
    if not np.isfinite(_entries(inner)).all():
        return layer
    values = _singular_values(node, shape, weights)
    if values is None:
        return replace(layer, norm=_power_iteration(node, shape, weights))
    largest = float(values.max(initial=0.0))
    if largest == 0.0:
        return replace(layer, norm=0.0)
    smallest = float(values.min())
    lost = smallest <= largest * np.finfo(np.float64).eps * max(math.prod(shape), math.prod(node.shape))
    return replace(
        layer,
        norm=largest,
        condition=math.inf if lost else largest / smallest,
        stable_rank=float(((values / largest) ** 2).sum()),
    )


def _entries(op: ops.Op) -> np.ndarray:
    weight = getattr(op, "weight", None)
    return np.asarray(getattr(op, "scale", 1.0) if weight is None else weight)


def _singular_values(node: Node, shape: tuple[int, ...], weights: Weights) -> np.ndarray | None:
    """All of them, of the map with its shape; None where the matrix is too large to be written out."""
    if isinstance(node.op, ops.ScaleShift):
        return np.abs(np.broadcast_to(np.asarray(node.op.scale), shape)).reshape(-1)
    if isinstance(node.op, ops.Linear):  # on the last axis: the same matrix at every place
        matrix = node.op.weight
        return np.linalg.svd(matrix, compute_uv=False) if matrix.size <= _DENSE_ENTRIES else None
    size = math.prod(shape)
    if size * math.prod(node.shape) > _DENSE_ENTRIES:
        return None
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    matrix = affine_map(node.op).apply(node.op, weights.full, unit, shape).reshape(size, -1).numpy()
    return np.linalg.svd(matrix, compute_uv=False)


def _power_iteration(node: Node, shape: tuple[int, ...], weights: Weights) -> float:
    """The largest singular value, approached from below."""
    mapping, norm = affine_map(node.op), 0.0
    x = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(_STEPS):
        y = mapping.apply(node.op, weights.full, x / x.norm().clamp(min=1e-300), shape)
        norm = float(y.norm())
        x = mapping.transpose(node.op, weights.full, y, shape)
    return norm


def _activation(op: ops.Op) -> str:
    return op.curve if isinstance(op, ops.Elementwise) else type(op).__name__
