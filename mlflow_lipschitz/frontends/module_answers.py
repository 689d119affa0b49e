"""A torch module, or exported program, asked itself: the exporter drops options, and follows one branch of Python code only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends.torch_export import evaluation_mode, example_rows, program_input

# Of the largest answer of an output: far above single precision through a deep network, far below a dropped option.
_SHARE = 1e-3
# Of the largest answer to a row: outputs that cancel are as imprecise as what they are computed from.
_ROUNDINGS = 16 * 2.0**-24
_ROWS = 8
_LONG, _LONG_AT_LEAST, _LONG_ENTRIES = 257, 16, 1 << 20

_REMEDY = "Export the model to ONNX yourself, or replace the layer whose option the exporter drops"


def require_same_answers(model: Any, example: Any, graph: Graph, points: np.ndarray, output: tuple[int, int]) -> None:
    """Compare a module or an exported program with its graph on the first rows of the example, and with itself in a long batch.

    Args:
        points: (rows, *input shape of the graph), what the rows are to the graph.
        output: which of the model's outputs was lowered, and how many there are.

    Raises:
        FidelityError: they differ; names the row and both answers.
    """
    if isinstance(model, torch.export.ExportedProgram):
        batch, kind = program_input(model)
        rows = torch.as_tensor(np.asarray(example)).to(kind)
        rows = rows[torch.arange(batch or min(len(rows), _ROWS)) % len(rows)]
        ask: Callable[[torch.Tensor], Any] = model.module()
        _compare(ask, rows, graph, points, output)
        return
    rows = example_rows(model, example)[:_ROWS]
    with evaluation_mode(model):
        theirs = _compare(model, rows, graph, points, output)
        _require_same_in_a_long_batch(model, rows, theirs, output)


def _compare(
    ask: Callable[[torch.Tensor], Any], rows: torch.Tensor, graph: Graph, points: np.ndarray, output: tuple[int, int]
) -> torch.Tensor:
    theirs = _answer(ask, rows, output)
    seen = points[np.arange(len(rows)) % len(points)]
    ours = evaluate(graph, seen.astype(np.float32) if rows.dtype == torch.float32 else seen).reshape(len(rows), -1)
    if ours.shape != theirs.shape:
        raise FidelityError(f"the module gives {theirs.shape[1]} numbers per row, its graph {ours.shape[1]}")
    _require_close("the exported graph is another function than the module", ours, theirs)
    return theirs


def _require_same_in_a_long_batch(
    module: torch.nn.Module, rows: torch.Tensor, theirs: torch.Tensor, output: tuple[int, int]
) -> None:
    """Python code may ask how many rows there are, and answer a long batch otherwise."""
    length = min(_LONG, max(_LONG_AT_LEAST, _LONG_ENTRIES // max(1, rows[0].numel())))
    order = torch.arange(length) % len(rows)
    _require_close(
        f"the module answers a batch of {length} rows otherwise than one of {len(rows)}",
        _answer(module, rows[order], output),
        theirs[order],
    )


def _answer(ask: Callable[[torch.Tensor], Any], rows: torch.Tensor, output: tuple[int, int]) -> torch.Tensor:
    """(rows, numbers) of one of the tensors that the model returns, however it packs them."""
    with torch.no_grad():
        answers = ask(rows)
    tensors = [leaf for leaf in pytree.tree_leaves(answers) if isinstance(leaf, torch.Tensor)]
    position, count = output
    if len(tensors) != count:
        raise FidelityError(
            f"the module returns {len(tensors)} tensors in a {type(answers).__name__}, and its export has {count} outputs: "
            "let it return one tensor, or a tuple or dict of tensors"
        )
    return tensors[position].detach().cpu().to(torch.float64).reshape(len(rows), -1)


def _require_close(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    size = torch.maximum(ours.abs(), theirs.abs())
    allowed = _SHARE * size.amax(0, keepdim=True) + _ROUNDINGS * size.amax(1, keepdim=True)
    # "not <=" instead of ">": a NaN difference is a mismatch.
    bad = (~((ours - theirs).abs() <= allowed)).nonzero()
    if len(bad):
        row, number = bad[0].tolist()
        raise FidelityError(
            f"{what}: row {row} of the example, output {number}: {float(ours[row, number]):.6g} against "
            f"{float(theirs[row, number]):.6g}. {_REMEDY}"
        )
