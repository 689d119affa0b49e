"""Models in, graphs out: `trace`. torch, onnx and the exporters are loaded when a model is traced, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_lipschitz.engine.ir.graph import Graph


def trace(model_or_path: Any, example: Any = None, *, output: str | int | None = None) -> Graph:
    """The graph of a model: what every bound is about.

    Args:
        model_or_path: torch.nn.Module, torch.export.ExportedProgram, onnx.ModelProto, path of a .pt2 or .onnx file, or
            a fitted scikit-learn estimator or pipeline.
        example: rows of its input, (rows, *sample shape), NumPy or torch. Needed by torch modules.
        output: name or position of the output of a model that has several; the first one when None.

    Returns:
        A graph from the sample shape to a vector of outputs, weights in float64 exactly as stored.

    Raises:
        UnsupportedOperator: naming the node, its origin in the user's model, the reason and a remedy.
        UntrustedModel: loading the file would run code from it.
        UsageError: the model is of no supported kind, or needs an example.
    """
    from mlflow_lipschitz.frontends.lowering import lower
    from mlflow_lipschitz.frontends.to_onnx import to_onnx

    return lower(to_onnx(model_or_path, example), output)


__all__ = ["trace"]
