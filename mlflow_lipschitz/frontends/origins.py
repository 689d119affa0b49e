"""Where a node of the ONNX graph came from in the user's model, as far as the exporter wrote it down."""

from __future__ import annotations

import ast
import re

import onnx


def node_origin(node: onnx.NodeProto) -> str:
    """Layer and source line of `node`, "layer 'encoder', model.py line 7: y = self.norm(x)"; "" if unknown."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    parts = [_module_path(notes), _source_line(notes.get("pkg.torch.onnx.stack_trace", ""))]
    known = ", ".join(part for part in parts if part)
    return known or _documented_line(node.doc_string)


def _documented_line(text: str) -> str:
    """The user's own line of the stack that older exporters keep, innermost first, in the doc string."""
    lines = [line.strip() for line in text.strip().split("\n")]
    return next((line for line in lines if "site-packages" not in line), lines[0])


def _module_path(notes: dict[str, str]) -> str:
    try:
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    except (SyntaxError, ValueError):
        scopes = []
    path = [str(scope) for scope in scopes[:-1] if scope] if isinstance(scopes, list) else []
    if path:
        return f"layer {path[-1]!r}"
    return "" if scopes else notes.get("namespace", "")


def _source_line(trace: str) -> str:
    match = re.match(r'\s*File "([^"]*)", line (\d+), in [^\n]*(?:\n\s*([^\n]*))?', trace)
    if not match:
        return ""
    place, line, code = match.groups()
    return f"{place} line {line}" + (f": {code.strip()}" if code else "")
