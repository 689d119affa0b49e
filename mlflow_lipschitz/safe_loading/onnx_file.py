"""ONNX files of unknown origin: counted before they are parsed, and kept to their own folder.

Parsing builds an object for every node and attribute, so a file of two gigabytes of tiny nodes takes many times that
memory. The protobuf encoding can be walked without building anything, which is what happens first. Weights may lie in files
beside the model; a path that leads anywhere else is refused before it is opened.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from mlflow_lipschitz.safe_loading.structure import Unexpected


@dataclass(frozen=True)
class Limits:
    """What a model may hold: bytes of the file without its external weights, nodes, encoded fields, levels of nesting."""

    size: int = 2**31 - 1
    nodes: int = 200_000
    fields: int = 2_000_000
    depth: int = 64


LIMITS = Limits()


def read_onnx(path: Path, limits: Limits = LIMITS) -> onnx.ModelProto:
    """The model in `path`, weights beside it included.

    Raises:
        Unexpected: beyond `limits`, or it keeps weights outside its folder; found before they are read.
        ValueError: it is not a readable ONNX model.
        OSError: a file cannot be read.
    """
    _count(path, limits)
    try:
        # The format is said, or onnx would take it from the name of the file: text, which was not counted.
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
        check_external_data(model, path.parent)
        onnx.load_external_data_for_model(model, str(path.parent))
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ValueError(str(error)) from error
    return model


def check_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Raise Unexpected for a tensor anywhere in the model whose data is not in a regular file below `folder`."""
    root = folder.resolve()
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
            for location in locations or [""]:
                if not _lies_in(root, location):
                    raise Unexpected(f"it keeps weights in {location[:200]!r}, outside the model's folder")


def _lies_in(root: Path, location: str) -> bool:
    """Whether `location` names a path below `root` without a link on the way: a link could lead out of the folder later."""
    if "\0" in location or len(location) > 1000:
        return False
    path = Path(os.path.normpath(root / location))
    return root in path.parents and path.resolve() == path


def _tensors(message: Message) -> Iterator[Any]:
    """Every tensor in the message, however deep: initializers, attributes, sparse tensors, subgraphs and functions."""
    pending = [message]
    while pending:
        current = pending.pop()
        if isinstance(current, onnx.TensorProto):
            yield current
            continue
        for field, value in current.ListFields():
            if field.message_type is not None:
                pending.extend([value] if isinstance(value, Message) else value)


def _count(path: Path, limits: Limits) -> None:
    """Walk the encoding of the file and raise Unexpected when it holds more than `limits` allow."""
    size = path.stat().st_size
    if size > limits.size:
        raise Unexpected(f"it has {size} bytes, where {limits.size} are allowed; keep large weights in files beside it")
    if size == 0:
        raise ValueError("the file is empty")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _walk(content, limits)


def _walk(content: mmap.mmap, limits: Limits) -> None:
    tables: dict[str, dict[int, Any]] = {}
    node = onnx.NodeProto.DESCRIPTOR.full_name
    fields = nodes = 0
    pending: list[tuple[int, int, Any, int]] = [(0, len(content), onnx.ModelProto.DESCRIPTOR, 1)]
    while pending:
        position, end, kind, depth = pending.pop()
        if depth > limits.depth:
            raise Unexpected(f"it is nested more than {limits.depth} levels deep")
        nodes += kind.full_name == node
        if nodes > limits.nodes:
            raise Unexpected(f"it has more than {limits.nodes} nodes")
        if kind.full_name not in tables:
            tables[kind.full_name] = {field.number: field.message_type for field in kind.fields if field.message_type}
        parts = tables[kind.full_name]
        while position < end:
            fields += 1
            if fields > limits.fields:
                raise Unexpected(f"it is made of more than {limits.fields} parts")
            tag, position = _varint(content, position, end)
            start, position = _skipped(content, tag & 7, position, end)
            if tag & 7 == 2 and (tag >> 3) in parts:
                pending.append((start, position, parts[tag >> 3], depth + 1))


def _skipped(content: mmap.mmap, wire_type: int, position: int, end: int) -> tuple[int, int]:
    """Where the value of a field begins and ends; see the protobuf encoding, developers.google.com/protocol-buffers."""
    if wire_type == 0:
        start, (_, stop) = position, _varint(content, position, end)
    elif wire_type == 2:
        length, start = _varint(content, position, end)
        stop = start + length
    elif wire_type in (1, 5):
        start, stop = position, position + (8 if wire_type == 1 else 4)
    else:
        raise ValueError("it is not an ONNX file: a field of an unknown kind")
    if stop > end:
        raise ValueError("it is not an ONNX file: a field runs over the end")
    return start, stop


def _varint(content: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    raise ValueError("it is not an ONNX file: a number runs over the end")
