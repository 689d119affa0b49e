"""Proof that the rows of a batch do not influence each other.

A bound is about one row, so a served batch must be computed row by row. The model is lowered for a whole batch, and which
input rows an entry can depend on is followed through that graph: through the nonzero weights of affine operators, and from
every operand of the others. Nothing is estimated; an entry that could depend on two rows counts as depending on both. That
all rows are computed alike, and like a batch of one, is seen from equal values at random points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder, Node
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.rules.affine_maps import affine_map, is_affine_map
from mlflow_lipschitz.engine.rules.weights import weights_of
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.row_counts import require_the_same_for_every_length
from mlflow_lipschitz.frontends.values import BATCH_REMEDY, Value, Variable, node_name, refusal

# A free batch is tried with this many rows: a prime that few models have as the length of another axis.
ROWS_TRIED = 7
POINTS_TRIED = 4
SAME = 1e-9  # two orders of summation of the same numbers differ by far less

LowerRows = Callable[[GraphBuilder, Variable], Mapping[str, Value]]


@dataclass(frozen=True)
class LoweredModel:
    """A model lowered for one row (of a free batch) or with one row repeated (of a batch of fixed length).

    `nodes` are the model's nodes that its output needs, `batch` its fixed number of rows, None when free; `values` are what
    its names stand for, `graph` is the function of one sample.
    """

    nodes: Sequence[onnx.NodeProto]
    output: str
    batch: int | None
    values: Mapping[str, Value]
    graph: Graph


class _Builder(GraphBuilder):
    """A builder that can show what it has when a lowering ends early."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0

    def add(self, op: ops.Op, *inputs: int, name: str = "") -> int:
        self._last = super().add(op, *inputs, name=name)
        return self._last

    def so_far(self) -> Graph:
        return Graph(tuple(self.node(index) for index in range(self._last + 1)), self._last)


def require_independent_rows(lowered: LoweredModel, lower_rows: LowerRows) -> None:
    """Prove that in a batch each row's output depends on this row alone, and is the graph's.

    Args:
        lowered: what is to be proved.
        lower_rows: lowers the same model for a batch given as a variable, into a builder.

    Raises:
        UnsupportedOperator: naming the first node that mixes rows, or that depends on how many there are.
    """
    rows = lowered.batch or ROWS_TRIED
    shape = (rows, *lowered.graph.input_shape)
    builder = _Builder()
    start = Variable(builder.add(ops.Input(shape)), shape)
    try:
        values = lower_rows(builder, start)
    except UnsupportedOperator as error:
        _refuse_mixing(lowered, builder.so_far())
        raise _for_several_rows(error, rows) from error
    if lowered.batch is None:
        require_the_same_for_every_length(lowered.nodes, lowered.values, values)
    result = values[lowered.output]
    assert isinstance(result, Variable)
    graph = builder.build(result.index)
    mixed = result.shape[:1] != (rows,) or not _rows_apart(_dependencies(graph)[graph.output], rows)
    if mixed:
        _refuse_mixing(lowered, graph)
        raise _refused_output(lowered, f"its shape {result.shape} does not have one entry per row on axis 0")
    _require_equal_values(lowered, graph, rows)


def _for_several_rows(error: UnsupportedOperator, rows: int) -> UnsupportedOperator:
    reason = f"{error.reason}, in a batch of {rows} rows"
    return UnsupportedOperator(
        error.operator, error.node, origin=error.origin, reason=reason, remedy=error.remedy or BATCH_REMEDY
    )


def _refused_output(lowered: LoweredModel, reason: str) -> UnsupportedOperator:
    return UnsupportedOperator("Output", lowered.output, reason=reason, remedy=BATCH_REMEDY)


def _refuse_mixing(lowered: LoweredModel, graph: Graph) -> None:
    """Raise for the first node with an entry that depends on two rows, if there is one."""
    origins = {node_name(node): node for node in reversed(lowered.nodes)}
    for node, depends in zip(graph.nodes, _dependencies(graph), strict=True):
        if bool((depends[0::2] & depends[1::2]).any()):
            reason = "it mixes the rows of a batch: an entry of its result depends on several of them"
            if node.name in origins:
                raise refusal(origins[node.name], reason, BATCH_REMEDY)
            raise UnsupportedOperator(type(node.op).__name__, node.name, reason=reason, remedy=BATCH_REMEDY)


def _dependencies(graph: Graph) -> list[Tensor]:
    """Per node (2 · bits, *shape): for each bit of a row's number, whether rows with it set, and unset, are depended on.

    Two different rows differ in a bit, so an entry that depends on both has both answers true for that bit.
    """
    weights = weights_of(graph, torch.device("cpu"))
    found: list[Tensor] = []
    for index, node in enumerate(graph.nodes):
        inputs = [found[i] for i in node.inputs]
        if isinstance(node.op, ops.Input):
            found.append(_marked_rows(node.shape))
        elif is_affine_map(node.op):
            full = weights[index].full
            pattern = None if full is None else (full != 0).to(torch.float64)
            shape = graph.nodes[node.inputs[0]].shape
            marked = affine_map(node.op).apply(node.op, pattern, inputs[0].to(torch.float64)[:, None], shape)
            found.append(marked[:, 0] > 0)
        else:
            found.append(_of_any_operand(node, inputs))
    return found


def _marked_rows(shape: tuple[int, ...]) -> Tensor:
    rows = torch.arange(shape[0])
    bits = max(1, (shape[0] - 1).bit_length())
    answers = [(rows >> bit) & 1 == value for bit in range(bits) for value in (1, 0)]
    marks = torch.stack(answers).reshape(2 * bits, shape[0], *(1,) * (len(shape) - 1))
    return marks.expand(2 * bits, *shape)


def _of_any_operand(node: Node, inputs: list[Tensor]) -> Tensor:
    if isinstance(node.op, ops.Concat):
        return torch.cat(inputs, 1 + node.op.axis)
    if all(tuple(x.shape[1:]) == node.shape for x in inputs):
        return torch.stack(inputs).any(0)
    # An op that is not computed entry by entry: every entry of its result may depend on every entry of its operands.
    whole = torch.stack([x.reshape(len(x), -1).any(1) for x in inputs]).any(0)
    return whole.reshape(-1, *(1,) * len(node.shape)).expand(-1, *node.shape)


def _rows_apart(depends: Tensor, rows: int) -> bool:
    """Whether each row of the output, (2 · bits, rows, ...), depends on input rows with its own bits only."""
    return not bool((depends & ~_marked_rows(tuple(depends.shape[1:]))).any())


def _require_equal_values(lowered: LoweredModel, graph: Graph, rows: int) -> None:
    """Every row's output is that of the graph of one sample, at random points with other rows beside it."""
    random = np.random.default_rng(0)
    sample = lowered.graph.input_shape
    points = np.concatenate(
        [random.normal(size=(POINTS_TRIED, rows, *sample)), random.uniform(size=(POINTS_TRIED, rows, *sample))]
    )
    several = evaluate(graph, points).numpy().reshape(len(points) * rows, -1)
    single = evaluate(lowered.graph, points.reshape(len(points) * rows, *sample)).numpy()
    finite = np.isfinite(single)
    if several.shape != single.shape or not finite.any():
        raise _refused_output(lowered, "its values for several rows cannot be compared with those for one")
    allowed = SAME * np.maximum(1.0, np.abs(np.where(finite, single, 0.0)).max(axis=1, keepdims=True))
    same = np.where(finite, np.abs(several - single) <= allowed, ~np.isfinite(several))
    if not same.all():
        row = int(np.flatnonzero(~same.all(axis=1))[0]) % rows
        raise _refused_output(lowered, f"row {row} of a batch of {rows} gets another answer than the same row alone")
