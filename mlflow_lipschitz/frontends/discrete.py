"""Models with discrete inputs: divided where their values turn into real tensors.

Categories, codes and tokens do not move. What can move are the real inputs, and the embeddings that tokens are looked up as. So
a model is divided: its *head* runs once per audited row and is never perturbed; its *body* is a model of one real tensor, and
that is what is certified. The body's input holds, flattened in a row, the real inputs, the embeddings, and the encodings
that do not move but differ from row to row; of a model that takes nothing but tokens and looks them up once, it is the
embedding itself, (tokens, dimensions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import inliner

from mlflow_lipschitz.errors import InvalidData, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends.discrete_body import Part, body_model, head_model
from mlflow_lipschitz.frontends.discrete_columns import ModelColumns, Table, model_columns, stretched
from mlflow_lipschitz.frontends.discrete_frontier import Frontier, frontier_of
from mlflow_lipschitz.frontends.discrete_head import Head
from mlflow_lipschitz.frontends.discrete_names import EntryNames, unique
from mlflow_lipschitz.frontends.node_order import needed_nodes
from mlflow_lipschitz.frontends.preparation import output_name

_NO_EMBEDDING = "nothing could move, so nothing could be proved: audit a model with a real input or an embedding lookup"
_BATCH = "export it so that axis 0 of every tensor behind the lookup is the batch"
# A batch that is longer than what a lookup may reach back, if its entries allow for it, made of some of the rows.
_LONG, _LONG_AT_LEAST, _LONG_ENTRIES, _ROWS_ALONE = 257, 16, 1 << 22, 8


@dataclass(frozen=True)
class DividedModel:
    """A model, and what is certified of it.

    Attributes:
        model: all of it.
        columns: its inputs.
        body: the model of one real tensor that is certified; `model` itself where nothing is divided.
        head: makes the lookups from the model's inputs; None where there are none.
        parts: what the body's input consists of, in order; empty where nothing is divided.
    """

    model: onnx.ModelProto
    columns: ModelColumns
    body: onnx.ModelProto
    head: Head | None = None
    parts: tuple[Part, ...] = ()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of the body's input, where the model is divided."""
        return self.parts[0].shape if len(self.parts) == 1 else (sum(part.size for part in self.parts),)

    @property
    def names(self) -> tuple[str, ...]:
        """One per entry of the flattened points."""
        return unique([name for part in self.parts for name in part.names])

    @property
    def fixed(self) -> np.ndarray:
        """(*sample shape) True for the entries that do not move."""
        entries = [np.full(part.size, not part.moves) for part in self.parts]
        return np.concatenate(entries).reshape(self.sample_shape)

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns, or discrete inputs, that are looked up and do not move themselves."""
        return tuple(dict.fromkeys(source for part in self.parts for source in part.sources))

    def points(self, table: Table, row_names: Sequence[str] | None = None) -> np.ndarray:
        """(rows, *sample shape), float64: the points around which the rows of a table are certified.

        Args:
            table: the rows as the whole model takes them: a frame, or an array (rows, *sample shape of the one input).
            row_names: what errors call the rows; their positions when None.

        Raises:
            InvalidData: a cell that the model's lookups refuse; names the row and the column.
        """
        if not self.parts:
            return np.asarray(table, dtype=np.float64)
        names = [str(i) for i in range(len(table))] if row_names is None else row_names
        feeds = self.columns.feeds(table, names)
        found = self.head.looked_up(feeds, names) if self.head is not None else {}
        flat = [(feeds | found)[part.tensor].reshape(len(table), -1) for part in self.parts]
        points = np.concatenate([values.astype(np.float64) for values in flat], axis=1)
        bad = np.argwhere(~np.isfinite(points))
        if bad.size:
            raise InvalidData(
                f"row {names[bad[0][0]]}: {self.names[bad[0][1]]} is not a finite number behind the lookup"
            )
        return points.reshape(len(table), *self.sample_shape)


def divide(
    model: onnx.ModelProto,
    example: Table | None = None,
    output: str | int | None = None,
    row_names: Sequence[str] | None = None,
) -> DividedModel:
    """Divide a model in front of one of its outputs; a model of one real tensor stays as it is.

    Args:
        model: any ONNX model whose inputs are one tensor, or columns.
        example: rows as the model takes them. Needed where text is looked up, and where axes have a free length.
        output: name or position of the output to be certified; the first one when None.
        row_names: what errors call the example's rows; their positions when None.

    Raises:
        InvalidData: the model's lookups refuse a row of the example.
        UnsupportedOperator: no input can move, or a lookup decides what is computed and not only with which numbers.
        UsageError: an example is needed.
    """
    columns = model_columns(model)
    if columns.plain or not columns.inputs:
        return DividedModel(model, columns, model)
    model = inliner.inline_local_functions(model) if model.functions else model
    name = output_name(model, output)
    nodes = needed_nodes(model.graph, name)
    front = frontier_of(model, nodes, {found.name: found.real for found in columns.inputs})
    real = [found.name for found in columns.inputs if found.real]
    if not real and not front.embedded:
        kinds = ", ".join(label for found in columns.inputs for label in columns.labels(found.name))
        reason = "all inputs are whole numbers or text, which do not move, and no embedding is looked up"
        raise UnsupportedOperator("Input", kinds, reason=reason, remedy=_NO_EMBEDDING)
    wanted = [*front.embedded, *front.fixed]
    asked = list(dict.fromkeys(node.input[0] for node in front.shapes))
    head = Head(head_model(model, front.head, [*wanted, *asked]), columns) if wanted or asked else None
    feeds = _example_feeds(columns, example, row_names)
    probes = _probes(head, columns.batch, *feeds)
    naming = EntryNames(front.head, {i.name: columns.labels(i.name) for i in columns.inputs}, model.graph.initializer)
    parts = tuple(_part(tensor, probes[tensor], front, naming) for tensor in (*real, *wanted))
    _refuse_two_precisions(parts)
    shapes = {tensor: probes[tensor].shape[1:] for tensor in asked}
    body = body_model(_with_one_output(model, name), front, parts, shapes, columns.batch)
    lookups = Head(head_model(model, front.head, wanted), columns) if wanted else None
    return DividedModel(model, columns, body, lookups, parts)


def _part(tensor: str, values: np.ndarray, front: Frontier, naming: EntryNames) -> Part:
    shape, sources = tuple(values.shape[1:]), front.sources.get(tensor, [])
    labels = tuple(label for source in sources for label in naming.columns[source])
    moves = tensor not in front.fixed
    if moves and labels:
        names = tuple(f"{'+'.join(labels)}.embedding[{','.join(map(str, index))}]" for index in np.ndindex(shape))
    else:
        names = naming.of(tensor, math.prod(shape), labels)
    return Part(tensor, shape, onnx.helper.np_dtype_to_tensor_dtype(values.dtype), names, labels, moves)


def _refuse_two_precisions(parts: tuple[Part, ...]) -> None:
    moving = [part for part in parts if part.moves]
    if len({part.element_type for part in moving}) > 1:
        names, reason = ", ".join(part.tensor for part in moving), "what can move is partly float32 and partly float64"
        remedy = "export the model with all its real inputs and embeddings in one type"
        raise UnsupportedOperator("Input", names, reason=reason, remedy=remedy)


def _with_one_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    kept = [value for value in model.graph.output if value.name == name]
    del alone.graph.output[:]
    alone.graph.output.extend(kept)
    return alone


def _probes(
    head: Head | None, batch: int | None, feeds: dict[str, np.ndarray], row_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """All tensors the parts are made of, for some rows; refuses those in which the batch is not axis 0."""
    counts = [batch] if batch else [2, 3]
    found = []
    for rows in counts:
        fed = stretched(feeds, rows)
        try:
            found.append(fed | ({} if head is None else head.run(fed)))
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            assert head is not None
            raise head.refused(feeds, row_names, error) from error
    for name, values in found[0].items():
        lengths = [len(probe[name]) if probe[name].ndim else 0 for probe in found]
        if lengths != counts or any(probe[name].shape[1:] != values.shape[1:] for probe in found):
            raise UnsupportedOperator("Input", name, reason="axis 0 of it is not the batch", remedy=_BATCH)
        if not all(np.array_equal(probe[name][:2], values[:2]) for probe in found):
            raise UnsupportedOperator(
                "Input", name, reason="a lookup depends on the other rows of a batch", remedy=_BATCH
            )
    if head is not None and not batch:
        _require_the_same_in_a_long_batch(head, feeds, row_names)
    return found[-1]


def _require_the_same_in_a_long_batch(head: Head, feeds: dict[str, np.ndarray], row_names: Sequence[str]) -> None:
    """Each row's lookups alone are those it has among many rows: what a lookup takes from far away shows there only."""
    some = {name: values[:_ROWS_ALONE] for name, values in feeds.items()}
    count = len(next(iter(some.values())))
    try:
        alone = [head.run({name: values[i : i + 1] for name, values in some.items()}) for i in range(count)]
        entries = sum(values.size for values in alone[0].values())
        rows = min(_LONG, max(_LONG_AT_LEAST, _LONG_ENTRIES // max(1, entries)))
        many = head.run(stretched(some, rows))
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise head.refused(some, row_names, error) from error
    order = np.arange(rows) % count
    for name, values in many.items():
        single = np.concatenate([found[name] for found in alone])[order]
        if values.shape != single.shape or not np.allclose(values, single, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise UnsupportedOperator(
                "Input", name, reason=f"a lookup depends on the other rows of a batch of {rows}", remedy=_BATCH
            )


def _example_feeds(
    columns: ModelColumns, example: Table | None, row_names: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], Sequence[str]]:
    if example is not None:
        names = [str(i) for i in range(len(example))] if row_names is None else row_names
        return columns.feeds(example, names), names
    for found in columns.inputs:
        if found.dtype == object or None in found.shape:
            raise UsageError(f"the model looks up {found.name!r}: give an example, rows as the model takes them")
    return {i.name: np.zeros((1, *(n or 0 for n in i.shape)), i.dtype) for i in columns.inputs}, ["0"]
