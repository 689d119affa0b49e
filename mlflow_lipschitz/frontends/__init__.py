"""Models in, graphs out: `trace`. torch, onnx and the exporters are loaded when a model is traced, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from mlflow_lipschitz.engine.ir.graph import Graph


def trace(model_or_path: Any, example: Any = None, *, output: str | int | None = None) -> Graph:
    """The graph of a model: what every bound is about.

    Args:
        model_or_path: torch.nn.Module, torch.export.ExportedProgram, onnx.ModelProto, path of a .pt2 or .onnx file, or
            a fitted scikit-learn estimator or pipeline.
        example: rows of its input, (rows, *sample shape), NumPy or torch, or a frame. Needed by torch modules, and where a
            model looks up text.
        output: name or position of the output of a model that has several; the first one when None.

    Returns:
        A graph from the sample shape to a vector of outputs, weights in float64 exactly as stored. Of a model that looks up
        tokens or categories, it starts where they turn into real numbers: see `encode`.

    Raises:
        UnsupportedOperator: naming the node, its origin in the user's model, the reason and a remedy.
        UntrustedModel: loading the file would run code from it.
        UsageError: the model is of no supported kind, or needs an example.
        FidelityError: a torch model answers the example otherwise than its graph: the exporter has been seen to drop options.
    """
    from mlflow_lipschitz.frontends.discrete import divide
    from mlflow_lipschitz.frontends.lowering import lower
    from mlflow_lipschitz.frontends.preparation import output_name
    from mlflow_lipschitz.frontends.to_onnx import is_torch_model, loaded, to_onnx

    rows, model = _rows(example), loaded(model_or_path)
    exported = to_onnx(model, example if hasattr(example, "detach") else rows)
    divided = divide(exported, rows, output)
    graph = lower(divided.body, None if divided.parts else output)
    if is_torch_model(model) and not (rows is None and divided.parts):
        from mlflow_lipschitz.frontends.module_answers import require_same_answers

        names = [value.name for value in exported.graph.output]
        position = names.index(output_name(exported, output)), len(names)
        asked = _random_rows(graph.input_shape) if rows is None else example
        require_same_answers(model, asked, graph, divided.points(_rows(asked)), position)
    return graph


def encode(model_or_path: Any, rows: Any, *, output: str | int | None = None) -> np.ndarray:
    """The points that `trace(model_or_path, rows)` certifies rows at: (rows, *graph.input_shape), float64.

    Of a model whose inputs are all real, the rows themselves. Categories, codes and tokens do not move: of a model that takes
    them, points hold what the model looks up for each row, embeddings and encodings, beside its real columns.

    Args:
        model_or_path: as for `trace`.
        rows: as the model takes them: a frame, NumPy, or torch.

    Raises:
        InvalidData: a row that the model's lookups refuse, a cell that is no number, or a frame with other columns.
    """
    from mlflow_lipschitz.frontends.discrete import divide
    from mlflow_lipschitz.frontends.discrete_columns import in_order
    from mlflow_lipschitz.frontends.row_layout import real_points, row_layout
    from mlflow_lipschitz.frontends.to_onnx import to_onnx

    table, layout = _rows(rows), row_layout(model_or_path)
    if layout.names and hasattr(table, "columns"):
        table = in_order(table, layout.names)
    divided = divide(to_onnx(model_or_path, rows if hasattr(rows, "detach") else table), table, output)
    return divided.points(table) if divided.parts else real_points(table, layout)


def _rows(rows: Any) -> Any:
    """Rows as NumPy or pandas hold them: torch is not imported to find out."""
    if rows is None or hasattr(rows, "columns"):
        return rows
    import numpy as np

    return np.asarray(rows.detach().cpu() if hasattr(rows, "detach") else rows)


def _random_rows(shape: tuple[int, ...]) -> np.ndarray:
    """For a program that is given without an example."""
    import numpy as np

    return np.random.default_rng(0).uniform(size=(8, *shape))


__all__ = ["encode", "trace"]
