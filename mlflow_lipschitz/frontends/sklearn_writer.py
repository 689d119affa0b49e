"""Nodes in double precision for skl2onnx's converters of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto


class Writer:
    """Appends nodes in double precision under fresh names."""

    def __init__(self, scope: Any, container: Any) -> None:
        self._scope, self._container = scope, container

    def constant(self, values: Any, kind: int = TensorProto.DOUBLE) -> str:
        array, name = np.asarray(values), self._scope.get_unique_variable_name("constant")
        self._container.add_initializer(name, kind, list(array.shape), array.reshape(-1).tolist())
        return str(name)

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or self._scope.get_unique_variable_name(kind.lower())
        name = self._scope.get_unique_operator_name(kind)
        self._container.add_node(kind, list(inputs), [output], name=name, **attributes)
        return output
