"""Which output of a model is audited, and what its entries are called. What is reported is what was bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.errors import UsageError

_REAL = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


def judged_output(model: onnx.ModelProto, signature: Sequence[str], wanted: int | str) -> str:
    """Name of the ONNX output to audit: the one the policy names, else the only one of real numbers.

    Args:
        model: what the audited model was exported to.
        signature: names of the outputs in MLflow's signature; empty when it has none.
        wanted: the policy's `model.output`: an index or name, or "margin".

    Raises:
        UsageError: there are several and neither the policy nor the signature names one.
    """
    names = [value.name for value in model.graph.output]
    if isinstance(wanted, str):
        for name in (wanted, wanted.rpartition("[")[0]):  # an output, or an entry of one: scores[1]
            if name in names:
                return name
    real = [value.name for value in model.graph.output if value.type.tensor_type.elem_type in _REAL]
    if len(real) == 1:
        return real[0]
    if not real:
        return names[0]  # which is refused by name where it is lowered
    if len(signature) == 1 and signature[0] in real:
        return signature[0]
    raise UsageError(
        f"the model has several outputs ({', '.join(real)}), its signature names ({', '.join(signature) or 'none'}), and "
        f"the policy's model.output is {wanted!r}: set model.output to one of the model's outputs, or to an entry of one "
        "(name[0]), or log the model with a signature of that output alone"
    )


def entry_names(
    graph: Graph, model: onnx.ModelProto, output: str, signature: Sequence[str], wanted: int | str
) -> tuple[str, ...]:
    """One name per entry of the graph's output, of several possible sets of names the one that `wanted` is among.

    The signature's names are those of the entries only where the model has no other output.
    """
    count = math.prod(graph.output_shape)
    own = (output,) if count == 1 else tuple(f"{output}[{i}]" for i in range(count))
    candidates = [own, graph.output_names] if len(model.graph.output) > 1 else [graph.output_names, own]
    if len(signature) == count and (len(model.graph.output) == 1 or tuple(signature) == own):
        candidates.insert(0, tuple(signature))
    return next((names for names in candidates if wanted in names), candidates[0])
