"""Small networks as ONNX files, and properties about them, with answers known by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx

from mlflow_lipschitz.certify.properties import PropertyAnswer, ServedModel, certify_property
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.onnx_answers import OnnxAnswers
from mlflow_lipschitz.vnnlib.reading import parse_property
from tests.frontends.onnx_models import make_model, node

Layers = Sequence[tuple[np.ndarray, np.ndarray]]

# y = |x₀| + |x₁|
ABSOLUTE: Layers = (
    (np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]), np.zeros(4)),
    (np.array([[1, 1, 1, 1]]), np.zeros(1)),
)
IDENTITY: Layers = ((np.eye(2), np.zeros(2)),)


def relu_network(layers: Layers, batch: int | str = "batch") -> onnx.ModelProto:
    """Fully connected, ReLU between the layers; weights are (outputs, inputs)."""
    nodes, constants, last = [], {}, "x"
    for i, (weight, bias) in enumerate(layers):
        constants |= {f"w{i}": weight.T.astype(np.float32), f"b{i}": bias.astype(np.float32)}
        after = "y" if i == len(layers) - 1 else f"z{i}"
        nodes.append(node("Gemm", f"{last} w{i} b{i}", after))
        if after != "y":
            nodes.append(node("Relu", after, f"a{i}"))
        last = f"a{i}"
    return make_model(nodes, (layers[0][0].shape[1],), constants, batch=batch)


def random_network(seed: int, sizes: Sequence[int]) -> Layers:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(b, a)) / np.sqrt(a), rng.normal(size=b) / 2) for a, b in pairwise(sizes)]


def property_text(lower: Sequence[object], upper: Sequence[object], outputs: int, *conditions: str) -> str:
    """The VNN-LIB text of a box and conditions that hold together."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    lines += [f"(assert (>= X_{i} {low}))" for i, low in enumerate(lower)]
    lines += [f"(assert (<= X_{i} {high}))" for i, high in enumerate(upper)]
    return "\n".join([*lines, *(f"(assert {condition})" for condition in conditions)]) + "\n"


def answer(
    directory: Path, layers: Layers, text: str, *, timeout: float = 20.0, chunk_size: int | None = None
) -> PropertyAnswer:
    """What is answered about the network, written to a file that onnxruntime serves."""
    model, path = relu_network(layers), directory / "network.onnx"
    onnx.save(model, path)
    served = OnnxAnswers(path, model)
    return certify_property(
        lower(model),
        parse_property(text),
        ServedModel(served.kind, served),
        timeout=timeout,
        device="cpu",
        chunk_size=chunk_size,
    )
