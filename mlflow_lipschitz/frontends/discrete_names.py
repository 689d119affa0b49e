"""What the entries of an encoding are called: `region=east`, for people who read the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

_SAME_ENTRIES = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "LabelEncoder")


class EntryNames:
    """Names of a tensor's entries, followed back to the columns they were looked up by."""

    def __init__(
        self,
        nodes: Sequence[onnx.NodeProto],
        columns: Mapping[str, list[str]],
        constants: Iterable[onnx.TensorProto],
    ) -> None:
        """`columns` are the column names of the model's inputs; among the `constants` are the indices that nodes read."""
        self.columns = columns
        self._producers = {name: node for node in nodes for name in node.output}
        integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
        self._indices = {t.name: onnx.numpy_helper.to_array(t) for t in constants if t.data_type in integers}

    def of(self, tensor: str, size: int, sources: Sequence[str]) -> tuple[str, ...]:
        """`size` names; by number where the tensor's nodes do not tell."""
        known = self._known(tensor)
        if known is not None and len(known) == size:
            return tuple(known)
        stem = "+".join(sources) or tensor
        return (stem,) if size == 1 else tuple(f"{stem}[{i}]" for i in range(size))

    def _known(self, tensor: str) -> list[str] | None:
        if tensor in self.columns:
            return self.columns[tensor]
        node = self._producers.get(tensor)
        if node is None:
            return None
        if node.op_type == "Concat":
            joined = [self._known(name) for name in node.input]
            return None if None in joined else [name for names in joined for name in names or ()]
        names = self._known(node.input[0])
        if names is None or node.op_type in _SAME_ENTRIES:
            return names
        if node.op_type == "OneHotEncoder":
            return [f"{name}={value}" for name in names for value in _categories(node)]
        if node.op_type in ("Gather", "ArrayFeatureExtractor") and node.input[1] in self._indices:
            chosen = self._indices[node.input[1]].reshape(-1)
            return [names[int(i)] for i in chosen] if np.all(np.abs(chosen) < len(names)) else None
        return None


def _categories(node: onnx.NodeProto) -> list[str]:
    texts = [text.decode() for a in node.attribute if a.name == "cats_strings" for text in a.strings]
    return texts or [str(number) for a in node.attribute if a.name == "cats_int64s" for number in a.ints]


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, a repeated one with a number behind it."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(made)
