"""Proof that the rows of a batch do not influence each other.

A bound is about one row, so a served batch must be computed row by row. The model is lowered for a whole batch, and which
input rows an entry can depend on is followed through that graph: through the nonzero weights of affine operators, and from
every operand of the others. Nothing is estimated; an entry that could depend on two rows counts as depending on both. That
all rows are computed alike, and like a batch of one, is seen from equal values at random points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mlflow_lipschitz.frontends.row_positions import require_no_places
from mlflow_lipschitz.frontends.values import BATCH_REMEDY, Value, Variable, node_name, refusal

ROWS_TRIED = 3  # of a free batch, beside the one row that is audited
BATCHES_TRIED = (3, 16)  # random ones: at least and at most, as many as their entries allow
ENTRIES_TRIED = 1 << 22
# How large the random entries are; 0: between 0 and 1, where a logarithm or a root is defined.
SIZES_TRIED = (1.0, 100.0, 0.0, 10.0, 1e4)
SAME = 1e-9  # two orders of summation of the same numbers differ by far less
SAME_FAR = 1e-6  # so they do where numbers are large, and some of them cancel

# Ops whose entries depend on the same entries of their operands; the last ones have their own composition as an operand.
_OF_THE_SAME_ENTRY = (
    ops.Add, ops.Multiply, ops.Elementwise, ops.Rounding, ops.Maximum, ops.Remainder, ops.LogSoftmax, ops.Normalized,
)  # fmt: skip

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
    if result.shape[:1] != (rows,) or not _rows_apart(graph, rows):
        _refuse_mixing(lowered, graph)
        raise _refused_output(lowered, f"its shape {result.shape} does not have one entry per row on axis 0")
    _require_equal_values(lowered, graph, rows)
    if lowered.batch is not None:
        _require_equal_constants(lowered, graph, rows)
    else:
        require_no_places(lowered.nodes, lowered.values, values)


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
    rows = graph.input_shape[0]
    first = min((index for bit in _bits(rows) if (index := _first_mixture(graph, bit)) is not None), default=None)
    if first is not None:
        node = graph.nodes[first]
        reason = "it mixes the rows of a batch: an entry of its result depends on several of them"
        if node.name in origins:
            raise refusal(origins[node.name], reason, BATCH_REMEDY)
        raise UnsupportedOperator(type(node.op).__name__, node.name, reason=reason, remedy=BATCH_REMEDY)


def _first_mixture(graph: Graph, bit: int) -> int | None:
    """The first node with an entry that depends on a row whose number has the bit set, and on one without."""
    return next(
        (i for i, depends in enumerate(_dependencies(graph, bit)) if bool((depends[0] & depends[1]).any())), None
    )


def _bits(rows: int) -> range:
    """Bits of a row's number: two different rows differ in one, so that a pass for each bit tells any two rows apart."""
    return range(max(1, (rows - 1).bit_length()))


def _dependencies(graph: Graph, bit: int) -> Iterator[Tensor]:
    """Per node (2, *shape): whether an entry depends on rows whose number has the bit set, and on rows without it."""
    weights = weights_of(graph, torch.device("cpu"))
    last_reader = {source: index for index, node in enumerate(graph.nodes) for source in node.inputs}
    found: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        inputs = [found[i] for i in node.inputs]
        if isinstance(node.op, ops.Input):
            found[index] = _marked_rows(node.shape, bit)
        elif is_affine_map(node.op):
            full = weights[index].full
            pattern = None if full is None else (full != 0).to(torch.float64)
            shape = graph.nodes[node.inputs[0]].shape
            marked = affine_map(node.op).apply(node.op, pattern, inputs[0].to(torch.float64)[:, None], shape)
            found[index] = marked[:, 0] > 0
        else:
            found[index] = _of_any_operand(node, inputs)
        yield found[index]
        for source in {source for source in node.inputs if last_reader[source] == index}:
            del found[source]


def _marked_rows(shape: tuple[int, ...], bit: int) -> Tensor:
    """(2, *shape): the rows whose number has the bit set, and the others."""
    with_it = ((torch.arange(shape[0]) >> bit) & 1).bool().reshape(-1, *(1,) * (len(shape) - 1))
    return torch.stack([with_it, ~with_it]).expand(2, *shape)


def _of_any_operand(node: Node, inputs: list[Tensor]) -> Tensor:
    if isinstance(node.op, ops.Concat):
        return torch.cat(inputs, 1 + node.op.axis)
    if isinstance(node.op, ops.MatMul):
        left, right = inputs
        return left.any(-1, keepdim=True) | right.any(-2, keepdim=True)
    if isinstance(node.op, _OF_THE_SAME_ENTRY):
        return torch.stack(inputs).any(0)
    # Of any other op every entry of the result may depend on every entry of the operands.
    whole = torch.stack([x.reshape(len(x), -1).any(1) for x in inputs]).any(0)
    return whole.reshape(-1, *(1,) * len(node.shape)).expand(-1, *node.shape)


def _rows_apart(graph: Graph, rows: int) -> bool:
    """Whether each row of the output, axis 0, depends on the input row of its own number only."""
    return all(_apart(graph, rows, bit) for bit in _bits(rows))


def _apart(graph: Graph, rows: int, bit: int) -> bool:
    """Whether output rows depend on input rows of which this bit is the same."""
    for index, depends in enumerate(_dependencies(graph, bit)):
        if index == graph.output:
            return not bool((depends & ~_marked_rows((rows, *depends.shape[2:]), bit)).any())
    return False


def _require_equal_values(lowered: LoweredModel, graph: Graph, rows: int) -> None:
    """Every row's output is that of the graph of one sample, at random points with other rows beside it."""
    random = np.random.default_rng(0)
    shape = (1, rows, *lowered.graph.input_shape)
    least, most = BATCHES_TRIED
    entries = sum(math.prod(node.shape) for node in graph.nodes)
    compared = False
    for number in range(min(most, max(least, ENTRIES_TRIED // entries))):
        scale = SIZES_TRIED[number % len(SIZES_TRIED)]
        batch = random.normal(size=shape) * scale if scale else random.uniform(size=shape)
        several = evaluate(graph, batch).numpy().reshape(rows, -1)
        single = evaluate(lowered.graph, batch[0]).numpy()
        if several.shape != single.shape:
            raise _refused_output(
                lowered, f"{several.shape[1]} entries per row in a batch of {rows}, not {single.shape[1]}"
            )
        compared |= bool(np.isfinite(single).any())
        same = _same(single, several, far=scale > 1)
        if not same.all():
            row = int(np.flatnonzero(~same.all(axis=1))[0])
            raise _refused_output(
                lowered, f"row {row} of a batch of {rows} gets another answer than the same row alone"
            )
    if not compared:
        raise _refused_output(lowered, "it is not finite anywhere, so rows cannot be compared")


def _same(single: np.ndarray, several: np.ndarray, *, far: bool) -> np.ndarray:
    """Which outputs, (rows, outputs), are the same; far away a number may overflow in one order of summation alone."""
    finite = np.isfinite(single)
    share = SAME_FAR if far else SAME
    allowed = share * np.maximum(1.0, np.abs(np.where(finite, single, 0.0)).max(axis=1, keepdims=True))
    with np.errstate(invalid="ignore"):
        return np.where(finite, np.abs(several - single) <= allowed, far | ~np.isfinite(several))


def _require_equal_constants(lowered: LoweredModel, graph: Graph, rows: int) -> None:
    """Refuse constants of a fixed batch that differ from row to row: they may only show far from any point that is tried."""
    shifts = [node for node in graph.nodes if isinstance(node.op, ops.ScaleShift)]
    read = {node.inputs[0] for node in shifts}  # of the result nothing is known where it is scaled by 0
    owners = {i: torch.zeros(graph.nodes[i].shape, dtype=torch.int64) for i in read}
    owned = {}
    for bit in _bits(rows):
        for index, depends in enumerate(_dependencies(graph, bit)):
            if index in read:
                owners[index] |= depends[0].to(torch.int64) << bit
                owned[index] = depends.any(0)
    for node in shifts:
        assert isinstance(node.op, ops.ScaleShift)
        (index,) = node.inputs
        numbers = [np.broadcast_to(n, node.shape) for n in (node.op.scale, node.op.shift) if n is not None]
        places = [((owners[index] == row) & owned[index]).numpy() for row in range(rows)]
        if any(not _equal_per_row([n[place] for place in places]) for n in numbers):
            reason = f"its constants differ from row to row of a batch of {rows}"
            origin = {node_name(part): part for part in reversed(lowered.nodes)}.get(node.name)
            if origin is not None:
                raise refusal(origin, reason, BATCH_REMEDY)
            raise UnsupportedOperator("Constant", node.name, reason=reason, remedy=BATCH_REMEDY)


def _equal_per_row(numbers: list[np.ndarray]) -> bool:
    return all(len(row) != len(numbers[0]) or np.array_equal(row, numbers[0]) for row in numbers[1:])
