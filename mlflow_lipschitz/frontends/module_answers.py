"""A torch module asked itself: its exporter has been seen to drop options, and then the graph is another function."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends.torch_export import evaluation_mode, example_rows

# Of the largest answer: far above single precision through a deep network, far below a dropped option.
_SHARE = 1e-3
_ROWS = 8


def require_same_answers(module: torch.nn.Module, example: Any, graph: Graph, points: np.ndarray, output: int) -> None:
    """Compare module and graph on the first rows of the example.

    Args:
        points: (rows, *input shape of the graph), what the rows are to the graph.
        output: which of the module's outputs was lowered.

    Raises:
        FidelityError: they differ; names the row and both answers.
    """
    rows = example_rows(module, example)[:_ROWS]
    with evaluation_mode(module), torch.no_grad():
        answers = module(rows)
    answer = list(answers)[output] if isinstance(answers, (tuple, list)) else answers
    theirs = answer.detach().cpu().to(torch.float64).reshape(len(rows), -1)
    seen = points[:_ROWS] if rows.dtype != torch.float32 else points[:_ROWS].astype(np.float32)
    ours = evaluate(graph, seen).reshape(len(rows), -1)
    if ours.shape != theirs.shape:
        raise FidelityError(f"the module gives {theirs.shape[1]} numbers per row, its graph {ours.shape[1]}")
    apart = (ours - theirs).abs()
    allowed = _SHARE * torch.maximum(ours.abs(), theirs.abs()).max()
    # "not <=" instead of ">": a NaN difference is a mismatch.
    bad = (~(apart <= allowed)).nonzero()
    if len(bad):
        row, number = bad[0].tolist()
        raise FidelityError(
            f"the exported graph is another function than the module: row {row} of the example, output {number}: "
            f"{float(ours[row, number]):.6g} against {float(theirs[row, number]):.6g}. Export the model to ONNX yourself, or "
            "replace the layer whose option the exporter drops"
        )
