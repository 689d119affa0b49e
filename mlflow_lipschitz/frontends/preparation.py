"""From any ONNX model to one the lowering table can read: checked, functions inlined, operator set recent enough."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, inliner

from mlflow_lipschitz.errors import AuditError, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends.constants import NOT_FOLDED
from mlflow_lipschitz.frontends.guards import without_guards
from mlflow_lipschitz.frontends.remedies import REMEDIES
from mlflow_lipschitz.frontends.values import Shape, refusal

# Before operator set 7 arithmetic broadcast by attributes, and BatchNormalization and Dropout had other meanings. ONNX's own
# version converter is no way out: it was seen to put the broadcast axis of an opset 6 Add in the wrong place.
OLDEST_OPSET = 7
# Refused as what they are, or evaluated as constants.
_AS_THEY_ARE = (
    *REMEDIES,
    *NOT_FOLDED,
    "BlackmanWindow",
    "DynamicQuantizeLinear",
    "HammingWindow",
    "HannWindow",
    "Range",
)
REAL_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class ModelInput:
    """The one variable input: its name, sample shape, element type, and fixed batch length, None when it is free."""

    name: str
    shape: Shape
    element_type: int
    batch: int | None

    @property
    def floats(self) -> type:
        """The floating type the model computes in."""
        return np.float64 if self.element_type == onnx.TensorProto.DOUBLE else np.float32


def prepared(model: onnx.ModelProto, known: Container[tuple[str, str]] = ()) -> onnx.ModelProto:
    """`model`, checked, without local functions.

    Operators that are not among the `known` (domain, name) and that the standard defines by others are written out, too.

    Raises:
        AuditError: not a valid ONNX model.
        UnsupportedOperator: its operator set is too old.
    """
    try:
        onnx.checker.check_model(_without_deprecations(model))
    except onnx.checker.ValidationError as error:
        raise AuditError(f"not a valid ONNX model: {error}") from error
    _refuse_two_operator_sets(model)
    if opset_of(model) < OLDEST_OPSET:
        raise UnsupportedOperator(
            f"opset {opset_of(model)}",
            model.graph.name,
            reason=f"operator sets older than {OLDEST_OPSET} gave the same names other meanings",
            remedy="export the model again with opset 13 or later",
        )
    model = inliner.inline_local_functions(model) if model.functions else model
    _require_inlined(model)
    return without_guards(_written_out(model, known))


def _refuse_two_operator_sets(model: onnx.ModelProto) -> None:
    """The standard's operators have two names for their domain, of which runtimes take one version, nobody says which."""
    versions = sorted({entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")})
    if len(versions) > 1:
        raise UnsupportedOperator(
            f"opset {versions[0]}",
            model.graph.name,
            reason=f"the model imports the standard's operators in versions {versions[0]} and {versions[-1]} at once",
            remedy="keep one of the two entries in opset_import, the one that the exporter meant",
        )


def _require_inlined(model: onnx.ModelProto) -> None:
    """Functions are left where their bodies are written for another operator set than the model."""
    left = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if (node.domain, node.op_type) in left:
            reason = f"a function of the model, written for another operator set than the model's ({opset_of(model)})"
            raise refusal(
                node, reason, "inline it with onnx.inliner.inline_local_functions(model, convert_version=True)"
            )


def _written_out(model: onnx.ModelProto, known: Container[tuple[str, str]]) -> onnx.ModelProto:
    """The model with every operator replaced that the standard defines by others and that has no lowering itself."""
    if "inline_schema_functions" not in inspect.signature(inliner.inline_selected_functions).parameters:
        return model
    while selected := _defined_by_others(model, known):
        model = _with_all_types(model)
        _spell_out_defaults(model, selected)
        try:
            model = inliner.inline_selected_functions(model, selected, inline_schema_functions=True)
        except (
            RuntimeError
        ):  # the definition depends on a type or a shape that is not known: the node is refused as it is
            return model
    return model


def _defined_by_others(model: onnx.ModelProto, known: Container[tuple[str, str]]) -> list[tuple[str, str]]:
    found = set()
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and ("", node.op_type) not in known and node.op_type not in _AS_THEY_ARE:
            with contextlib.suppress(onnx.defs.SchemaError):
                schema = onnx.defs.get_schema(node.op_type, opset_of(model), "")
                if schema.has_function or schema.has_context_dependent_function:
                    found.add((node.domain, node.op_type))
    return sorted(found)


def _spell_out_defaults(model: onnx.ModelProto, selected: list[tuple[str, str]]) -> None:
    """Attributes that are left out get their default: the definitions were seen to be inlined without it."""
    for node in model.graph.node:
        if (node.domain, node.op_type) in selected:
            present = {attribute.name for attribute in node.attribute}
            schema = onnx.defs.get_schema(node.op_type, opset_of(model), "")
            defaults = (attribute.default_value for name, attribute in schema.attributes.items() if name not in present)
            node.attribute.extend(default for default in defaults if default.type != onnx.AttributeProto.UNDEFINED)


def _with_all_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that declares the types of its initializers and, as far as they can be inferred, of everything between."""
    known = onnx.shape_inference.infer_shapes(model)
    declared = {value.name for value in (*known.graph.value_info, *known.graph.input)}
    for tensor in known.graph.initializer:
        if tensor.name not in declared:
            known.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return known


def _without_deprecations(model: onnx.ModelProto) -> onnx.ModelProto:
    """What the checker is shown of a model with GroupNormalization of opset 18 to 20.

    The standard withdrew that operator, whose scale is per group; onnxruntime still runs it, and so do models in use.
    """
    if not any(_is_old_group_normalization(model, node) for node in model.graph.node):
        return model
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for node in shown.graph.node:
        if _is_old_group_normalization(model, node):
            node.op_type = "InstanceNormalization"  # it has the same inputs
            kept = [attribute for attribute in node.attribute if attribute.name == "epsilon"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return shown


def _is_old_group_normalization(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    return node.op_type == "GroupNormalization" and node.domain in ("", "ai.onnx") and 18 <= opset_of(model) <= 20


def output_name(model: onnx.ModelProto, output: str | int | None) -> str:
    """Name of the chosen output, the first one when None. Raises UsageError when there is no such output."""
    names = [value.name for value in model.graph.output]
    if isinstance(output, str) and output in names:
        return output
    if not isinstance(output, str) and -len(names) <= (output or 0) < len(names):
        return names[output or 0]
    raise UsageError(f"the model has no output {output!r}; it has {', '.join(names)}")


def opset_of(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=OLDEST_OPSET)


def model_input(model: onnx.ModelProto) -> ModelInput:
    """The one variable input of `model`. Raises UnsupportedOperator when it has none, several, or no fixed shape."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise _refused_input(names, f"the model has {len(inputs)} inputs; one is supported", "export one tensor")
    (value,) = inputs
    tensor = value.type.tensor_type
    if tensor.elem_type not in REAL_TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise _refused_input(value.name, f"its element type is {kind}", "export it with a float32 or float64 input")
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise _refused_input(value.name, "its shape is not declared", "export it with axis 0 as the batch")
    dims = list(tensor.shape.dim)
    free = [i for i, dim in enumerate(dims[1:], start=1) if dim.dim_value <= 0]
    if free:
        raise _refused_input(value.name, f"axis {free[0]} has no fixed length", "fix every axis but the batch, axis 0")
    batch = dims[0].dim_value if dims[0].dim_value > 0 else None
    return ModelInput(value.name, tuple(dim.dim_value for dim in dims[1:]), tensor.elem_type, batch)


def _refused_input(name: str, reason: str, remedy: str) -> UnsupportedOperator:
    return UnsupportedOperator("Input", name, reason=reason, remedy=remedy)
