"""Where discrete values turn into real tensors: which nodes of a model run before the perturbation, and which behind it.

Every tensor is one of

- constant: of constants only.
- length: depends on the shape of an input only; available on both sides.
- fixed: depends on discrete inputs only. It does not move, whatever type it has.
- moving: depends on a real input, or on an embedding lookup (a row of a constant table of reals, chosen by fixed indices).

An embedding's rows are the first real numbers behind a token: perturbations begin there. All other fixed tensors are computed
beforehand, as far as they go, and are read by the rest of the model as entries that do not move.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from mlflow_lipschitz.frontends.discrete_columns import REAL
from mlflow_lipschitz.frontends.lowering_context import refusal
from mlflow_lipschitz.frontends.onnx_types import element_types


@dataclass
class Frontier:
    """
    Attributes:
        head: nodes that run once per row, before any perturbation.
        body: all other nodes but the `shapes`.
        embedded: outputs of embedding lookups, in order.
        fixed: what the body reads of the head besides, in order.
        shapes: Shape nodes of fixed tensors; in the body they have to be asked of something else.
        sources: the discrete inputs that each tensor of the head depends on.
    """

    head: list[onnx.NodeProto] = field(default_factory=list)
    body: list[onnx.NodeProto] = field(default_factory=list)
    embedded: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    shapes: list[onnx.NodeProto] = field(default_factory=list)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.embedded or name in self.fixed


def frontier_of(model: onnx.ModelProto, nodes: list[onnx.NodeProto], real: Mapping[str, bool]) -> Frontier:
    """Sort the `nodes` of a model, of which `real` says for every variable input whether it is one of real numbers."""
    types = element_types(model)
    kinds = dict.fromkeys((tensor.name for tensor in model.graph.initializer), "constant")
    kinds |= {name: "moving" if is_real else "fixed" for name, is_real in real.items()}
    found = Frontier(sources={name: [name] for name, is_real in real.items() if not is_real})
    for node in nodes:
        read = [name for name in names_read(node) if name in kinds]
        kind = _place(node, {name: kinds[name] for name in read}, types, found)
        kinds.update((name, kind) for name in node.output)
        sources = dict.fromkeys(source for name in read for source in found.sources.get(name, ()))
        found.sources.update((name, list(sources)) for name in node.output)
    return found


def _place(node: onnx.NodeProto, kinds: Mapping[str, str], types: Mapping[str, int], found: Frontier) -> str:
    """Put a node where it belongs and return the kind of its outputs."""
    present = set(kinds.values())
    if "moving" in present:
        found.body.append(node)
        crossing = [name for name, kind in kinds.items() if kind == "fixed" and name not in found.fixed]
        for name in crossing:
            if types.get(name, onnx.TensorProto.FLOAT) not in REAL:
                reason = (
                    f"{name!r}, which depends on {' and '.join(found.sources[name])} alone, decides what it computes"
                )
                remedy = "take such masks and choices as real tensors that are multiplied or added, or leave them out"
                raise refusal(node, reason, remedy)
        found.fixed.extend(crossing)
        return "moving"
    if "fixed" not in present:
        found.head.append(node)
        found.body.append(node)
        return "length" if "length" in present else "constant"
    found.head.append(node)
    if node.op_type == "Shape":
        found.shapes.append(node)
        return "length"
    if _is_embedding(node, kinds, types):
        found.embedded.append(node.output[0])
        return "moving"
    return "fixed"


def _is_embedding(node: onnx.NodeProto, kinds: Mapping[str, str], types: Mapping[str, int]) -> bool:
    if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
        return False
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    table, indices = node.input
    return axis == 0 and kinds[table] == "constant" and kinds[indices] == "fixed" and types.get(table) in REAL


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names a node reads, those that only the graphs in its attributes read included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from names_read(inner)
            yield from (value.name for value in graph.output)
