"""The exported program inside a pt2 archive: rebuilt field by field from what an exported network needs.

torch writes Python source from the program and executes it: names of nodes, arguments and inputs become variables, names
of weights become attributes. Guards and symbolic sizes are evaluated, dictionary keys of the input may name an
enumeration whose module is imported, operators are looked up by name. Here every one of these texts has to be of the
form that can do none of that, and what has no place below (custom objects, subgraphs, guards, sources of nodes) is gone.
"""

from __future__ import annotations

import json
import keyword
from typing import Any

from mlflow_lipschitz.safe_loading.expressions import SYMBOL, expression
from mlflow_lipschitz.safe_loading.operators import NOT_SAFE, is_scalar_function, is_tensor_function
from mlflow_lipschitz.safe_loading.structure import (
    Unexpected,
    anything_as,
    boolean,
    count,
    exactly,
    integer,
    list_of,
    mapping,
    number,
    optional,
    record,
    text,
    union,
)

_STRIDED = 7
_KEPT_METADATA = ("stack_trace", "nn_module_stack", "torch_fn")
_TREE_TYPES = ("builtins.tuple", "builtins.list", "builtins.dict")
_ON_SCALARS = ("as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool")

name = text(r"[A-Za-z_][A-Za-z0-9_]{0,999}", forbidden=keyword.iskeyword)
qualified_name = text(
    r"[A-Za-z0-9_]{1,999}(\.[A-Za-z0-9_]{1,999}){0,99}",
    forbidden=lambda value: any(part.startswith("__") and part.endswith("__") for part in value.split(".")),
)

_tensor = record({"name": name})
_short_text = text(r"[ -~]{0,1000}")
# Where a program was exported says nothing about where it is audited.
_device = anything_as({"type": "cpu", "index": None})
_hint = optional(union(as_int=integer, as_bool=boolean, as_float=number))
_symbolic = record({"expr_str": expression}, extra={"hint": _hint})
_size = union(as_int=count, as_expr=_symbolic)
_sym_int = union(as_int=integer, as_expr=_symbolic)
_sym_int_argument = union(as_name=name, as_int=integer)
_sym_float_argument = union(as_name=name, as_float=number)
_sym_bool_argument = union(as_name=name, as_bool=boolean)
_none = anything_as(True)
_optional_tensor = union(as_tensor=_tensor, as_none=_none)
_constant = {"as_none": _none, "as_int": integer, "as_float": number, "as_string": _short_text, "as_bool": boolean}

argument = union(
    **_constant,
    as_tensor=_tensor,
    as_tensors=list_of(_tensor),
    as_ints=list_of(integer),
    as_floats=list_of(number),
    as_bools=list_of(boolean),
    as_strings=list_of(_short_text),
    as_sym_int=_sym_int_argument,
    as_sym_ints=list_of(_sym_int_argument),
    as_sym_float=_sym_float_argument,
    as_sym_floats=list_of(_sym_float_argument),
    as_sym_bool=_sym_bool_argument,
    as_sym_bools=list_of(_sym_bool_argument),
    as_scalar_type=integer,
    as_memory_format=integer,
    as_layout=exactly(_STRIDED),
    as_device=_device,
    as_optional_tensor=_optional_tensor,
    as_optional_tensors=list_of(_optional_tensor),
)


def tensor_meta(size: Any = _size) -> Any:
    """The check of a dense tensor's type and shape."""
    return record(
        {
            "dtype": integer,
            "sizes": list_of(size),
            "requires_grad": boolean,
            "device": _device,
            "strides": list_of(size),
            "storage_offset": size,
            "layout": exactly(_STRIDED),
        }
    )


def _metadata(value: Any) -> dict[str, str]:
    """Where a node comes from, for messages; torch resolves the other entries to Python objects."""
    kept = {key: value[key] for key in _KEPT_METADATA if key in value} if isinstance(value, dict) else {}
    return {key: "".join(c for c in entry if c.isprintable() or c == "\n") for key, entry in kept.items() if entry}


def _target(value: Any) -> str:
    if not isinstance(value, str) or not (is_scalar_function(value) or is_tensor_function(value)):
        hint = f" ({NOT_SAFE[value]})" if isinstance(value, str) and value in NOT_SAFE else ""
        raise Unexpected(f"a call of {str(value)[:80]!r}, which is not on the list of operators{hint}")
    return value


_node_record = record(
    {
        "target": _target,
        "inputs": list_of(
            record({"name": text(r"[A-Za-z0-9_]{0,99}"), "arg": argument}, extra={"kind": optional(integer)})
        ),
        "outputs": list_of(argument),
        "metadata": _metadata,
    },
    extra={"name": optional(name)},
)


def _node(value: Any) -> dict[str, Any]:
    node = _node_record(value)
    kinds = {kind for entry in node["inputs"] for kind in entry["arg"]}
    if is_scalar_function(node["target"]) and not kinds <= set(_ON_SCALARS):
        raise Unexpected(f"target: a call of {node['target']!r} with {', '.join(sorted(kinds))}")
    return node


def _tree(value: Any) -> str:
    """The nesting of inputs or outputs, as JSON text inside JSON."""
    try:
        version, root = json.loads(value)
        return json.dumps([exactly(1)(version), _tree_node(root)])
    except Unexpected:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise Unexpected("an unreadable nesting") from error


def _tree_node(value: Any) -> dict[str, Any]:
    node = record({"type": lambda v: v, "context": lambda v: v, "children_spec": list_of(_tree_node)})(value)
    kind, context = node["type"], node["context"]
    if kind is None:
        return {"type": None, "context": exactly(None)(context), "children_spec": exactly([])(node["children_spec"])}
    if kind not in _TREE_TYPES:
        raise Unexpected(f"a container of the type {str(kind)[:80]!r}")
    keys = json.loads(context) if isinstance(context, str) else context
    keys = list_of(name)(keys) if kind == "builtins.dict" else exactly(None)(keys)
    return {"type": kind, "context": json.dumps(keys), "children_spec": node["children_spec"]}


def _calls(value: Any) -> list[Any]:
    """The call of the whole program; how its submodules were called is not needed."""
    signature = {"inputs": list_of(argument), "outputs": list_of(argument), "in_spec": _tree, "out_spec": _tree}
    whole = record(
        {"fqn": exactly(""), "signature": record(signature, extra={"forward_arg_names": optional(list_of(name))})}
    )
    return [whole(entry) for entry in value[:1]] if isinstance(value, list) else list_of(whole)(value)


_graph = record(
    {
        "inputs": list_of(argument),
        "outputs": list_of(argument),
        "nodes": list_of(_node),
        "tensor_values": mapping(name, tensor_meta()),
        "sym_int_values": mapping(name, _sym_int),
        "sym_bool_values": mapping(name, union(as_bool=boolean, as_expr=_symbolic)),
    },
    extra={
        "is_single_tensor_return": exactly(False),
        "custom_obj_values": exactly({}),
        "sym_float_values": mapping(name, union(as_float=number, as_expr=_symbolic)),
    },
)
_input = union(
    user_input=record({"arg": union(as_tensor=_tensor)}),
    parameter=record({"arg": _tensor, "parameter_name": qualified_name}),
    buffer=record({"arg": _tensor, "buffer_name": qualified_name, "persistent": boolean}),
    tensor_constant=record({"arg": _tensor, "tensor_constant_name": qualified_name}),
    constant_input=record({"name": name, "value": union(**_constant)}),
)
_output = union(
    user_output=record({"arg": argument}),
    buffer_mutation=record({"arg": _tensor, "buffer_name": qualified_name}),
)
program = record(
    {
        "graph_module": record(
            {
                "graph": _graph,
                "signature": record({"input_specs": list_of(_input), "output_specs": list_of(_output)}),
                "module_call_graph": _calls,
            }
        ),
        "opset_version": mapping(text("[a-z_]{1,50}"), integer),
        "range_constraints": mapping(
            text(SYMBOL), record({"min_val": optional(integer), "max_val": optional(integer)})
        ),
        "schema_version": record({"major": integer, "minor": integer}),
    },
    extra={"verifiers": list_of(text("[A-Z_]{1,50}")), "torch_version": text(r"[A-Za-z0-9.+_-]{1,100}")},
)
