"""A graph as arrays and plain text, so that what a certificate is about can be read without the model's own format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder

_KINDS = [kind for kind in vars(ops).values() if isinstance(kind, type) and issubclass(kind, ops.Op)]
_OPS = {kind.__name__: kind for kind in _KINDS if kind is not ops.Op}
_TEXT = "graph"


def graph_arrays(graph: Graph) -> dict[str, np.ndarray]:
    """Every constant under a name of its own, and one array of JSON text that says how they belong together."""
    arrays: dict[str, np.ndarray] = {}
    nodes = [
        {"op": _described(node.op, f"{index}", arrays), "inputs": list(node.inputs), "name": node.name}
        for index, node in enumerate(graph.nodes)
    ]
    text = json.dumps({"nodes": nodes, "output": graph.output, "output_names": list(graph.output_names)})
    arrays[_TEXT] = np.frombuffer(text.encode(), dtype=np.uint8)
    return arrays


def graph_of(arrays: Mapping[str, np.ndarray]) -> Graph:
    """The graph that `graph_arrays` described.

    Raises:
        ValueError: the arrays do not describe a graph: an unknown op, a wrong shape, a missing constant.
    """
    try:
        described = json.loads(arrays[_TEXT].tobytes())
        builder = GraphBuilder()
        for index, node in enumerate(described["nodes"]):
            inputs = [int(i) for i in node["inputs"]]
            if any(not 0 <= i < index for i in inputs):
                raise ValueError(f"node {index} reads {inputs}")
            builder.add(_op(node["op"], arrays), *inputs, name=str(node["name"]))
        output = int(described["output"])
        if not 0 <= output < len(described["nodes"]):
            raise ValueError(f"output {output}")
        return builder.build(output, tuple(map(str, described["output_names"])))
    except (LookupError, TypeError, AttributeError, UnicodeDecodeError, ArithmeticError, NotImplementedError) as error:
        raise ValueError(f"these arrays describe no graph: {error!r}") from error


def _described(op: ops.Op, place: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    described: dict[str, Any] = {"type": type(op).__name__}
    for field in fields(op):
        value = getattr(op, field.name)
        if isinstance(value, np.ndarray):
            arrays[f"{place}/{field.name}"] = value
            value = {"array": f"{place}/{field.name}"}
        elif isinstance(value, ops.Op):
            value = {"op": _described(value, f"{place}/{field.name}", arrays)}
        elif isinstance(value, float):
            value = {"float": value.hex()}
        elif field.name == "parameters":
            value = {"floats": [float(x).hex() for x in value]}
        described[field.name] = value
    return described


def _op(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> ops.Op:
    kind = _OPS[described["type"]]
    return kind(**{field.name: _value(described[field.name], arrays) for field in fields(kind)})


def _value(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "array":
            return ops.frozen_array(arrays[inner])
        if kind == "op":
            return _op(inner, arrays)
        return float.fromhex(inner) if kind == "float" else tuple(float.fromhex(x) for x in inner)
    return tuple(_value(x, arrays) for x in value) if isinstance(value, list) else value
