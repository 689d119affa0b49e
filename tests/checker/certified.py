"""Certificates as an audit writes them, of small networks made here, and what their claims are measured against."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.io import EVIDENCE_FILE, NUMBERS, sections, write_certificates
from mlflow_lipschitz.certificates.schema import Certificates
from mlflow_lipschitz.certify.budget import Budget
from mlflow_lipschitz.checker.arithmetic import FLOATS, Arithmetic
from mlflow_lipschitz.checker.derivation import Subject
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.pipeline.measure import MeasureOptions, measure
from mlflow_lipschitz.pipeline.proving import region_arrays
from mlflow_lipschitz.pipeline.question import MonotoneQuestion, Question
from mlflow_lipschitz.rows import AuditedRows
from tests.exact import number, value_and_jacobian

Stated = dict[str, np.ndarray]
SEARCH = Budget(seconds_per_point=600.0, target_gap=0.0, parts_per_point=24)


def mlp(curve: str, sizes: tuple[int, ...], seed: int, parameters: tuple[float, ...] = ()) -> Graph:
    rng, builder = np.random.default_rng(seed), GraphBuilder()
    x = builder.add(ops.Input((sizes[0],)))
    for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
        x = builder.add(ops.Elementwise(curve, parameters), x) if layer else x
        weight = rng.normal(size=(after, before)) / np.sqrt(before)
        x = builder.add(ops.Linear(ops.frozen_array(weight), ops.frozen_array(rng.normal(size=after) / 4)), x)
    return builder.build(x)


def cnn(seed: int) -> Graph:
    rng, builder = np.random.default_rng(seed), GraphBuilder()
    x = builder.add(ops.Input((1, 4, 4)))
    kernel, bias = ops.frozen_array(rng.normal(size=(2, 1, 2, 2))), ops.frozen_array(rng.normal(size=2))
    x = builder.add(ops.Conv(kernel, bias, (2, 2), ((0, 0), (0, 0)), (1, 1), 1), x)
    x = builder.add(ops.Reshape((8,)), builder.add(ops.Elementwise("relu"), x))
    weight = ops.frozen_array(rng.normal(size=(2, 8)) / 3)
    return builder.build(builder.add(ops.Linear(weight, ops.frozen_array(np.zeros(2))), x))


def asked(shape: tuple[int, ...], **changes: Any) -> Question:
    values: dict[str, Any] = {
        "output": 0,
        "norm": "linf",
        "unit": np.ones(shape),
        "size": 0.25,
        "domain": (np.full(shape, -np.inf), np.full(shape, np.inf)),
        "columns": (),
        "monotone": (),
        "lipschitz_limits": (),
        "max_radius": None,
    }
    return Question(**{**values, **changes})


def increasing(feature: int) -> MonotoneQuestion:
    return MonotoneQuestion(f"up{feature}", feature, "increasing")


def written(graph: Graph, points: np.ndarray, question: Question, folder: Path, chunk: int = 64) -> Path:
    """The folder with the certificates, made as an audit makes them."""
    size = int(np.prod(points.shape[1:]))
    rows = AuditedRows(
        points, tuple(f"x{i}" for i in range(size)), np.array([f"p{i}" for i in range(len(points))]), points.std(axis=0)
    )
    folder.mkdir(parents=True, exist_ok=True)
    arrays = measure(graph, rows, question, folder, MeasureOptions(device="cpu", chunk_size=chunk))
    claims = ["lipschitz_upper"]
    claims += [] if question.output == "margin" else ["derivative_lower", "derivative_upper"]
    claims += [] if question.max_radius is None else ["radius"]
    known = {"points": points, **region_arrays(question), **{k: arrays[k] for k in ("labels",) if k in arrays}}
    certificates = Certificates(
        graph_hash=graph.content_hash(),
        objective="a number",
        norm=question.norm,
        method="any",
        point_ids=tuple(rows.point_ids.tolist()),
        feature_names=rows.feature_names,
        arrays={**known, **{name: arrays[f"claimed_{name}"] for name in claims}},
        output=question.output,
        unproved=tuple(rows.point_ids[~arrays["reproved"]].tolist()),
    )
    write_certificates(certificates, folder, graph, folder / EVIDENCE_FILE)
    return folder


@dataclass(frozen=True)
class Certified:
    """What a folder states about all its points, and of what."""

    graph: Graph
    norm: str
    output: int | str
    stated: Stated

    def subject(self, rounding: Arithmetic = FLOATS) -> Subject:
        return Subject(self.graph, self.norm, self.output, rounding)

    def stating(self, **arrays: np.ndarray) -> Certified:
        return replace(self, stated={**self.stated, **{name.replace("__", "/"): x for name, x in arrays.items()}})


def certified(graph: Graph, points: np.ndarray, question: Question, folder: Path) -> Certified:
    (stated,) = sections(written(graph, points, question, folder) / NUMBERS)
    return Certified(graph, question.norm, question.output, stated)


def objectives(size: int, output: int | str, label: int) -> np.ndarray:
    if output != "margin":
        return np.eye(size)[[int(output)]]
    return np.delete(np.eye(size)[label] - np.eye(size), label, axis=0)


def row(stated: Mapping[str, np.ndarray], name: str, index: int) -> np.ndarray:
    """What belongs to one point, of arrays that may be the same for all."""
    values, dims = stated[name], stated["points"].ndim
    return values[index] if values.ndim == dims else values


def inside(case: Certified, index: int, rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, *shape) inputs of the region of a point, many of them at its boundary."""
    point, radius = case.stated["points"][index], row(case.stated, "radius_per_feature", index)
    steps = rng.uniform(-1, 1, (count, *point.shape))
    flat = steps.reshape(count, -1)
    if case.norm == "linf":
        flat[: count // 2] = np.sign(flat[: count // 2])
    else:
        order = 2 if case.norm == "l2" else 1
        flat /= np.linalg.norm(flat, order, axis=1, keepdims=True)
        flat[count // 2 :] *= rng.uniform(0, 1, (count - count // 2, 1))
    places = point + flat.reshape(steps.shape) * radius * (1 - 2.0**-40)
    return np.clip(places, row(case.stated, "domain_lower", index), row(case.stated, "domain_upper", index))


def gradients(graph: Graph, x: np.ndarray) -> np.ndarray:
    """(count, outputs, inputs) about, of a graph of `mlp`: only guesses hang on it."""
    slopes: dict[str, Any] = {
        "relu": lambda z: (z > 0) * 1.0,
        "tanh": lambda z: 1 - np.tanh(z) ** 2,
        "softplus": lambda z: 1 / (1 + np.exp(-z)),
    }
    values, jacobian = x, np.broadcast_to(np.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1]))
    curves: dict[str, Any] = {
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "softplus": lambda z: np.logaddexp(0, z),
    }
    for node in graph.nodes[1:]:
        if isinstance(node.op, ops.Linear):
            assert node.op.bias is not None
            values, jacobian = values @ node.op.weight.T + node.op.bias, node.op.weight @ jacobian
        else:
            assert isinstance(node.op, ops.Elementwise)
            jacobian = slopes[node.op.curve](values)[:, :, None] * jacobian
            values = curves[node.op.curve](values)
    return jacobian


_ORDERS = {"linf": 1, "l2": 2, "l1": np.inf}


def attained(case: Certified, index: int, rng: np.random.Generator, count: int = 96) -> tuple[float, np.ndarray]:
    """About the largest dual norm of a gradient that is met in a point's region, and where."""
    x = inside(case, index, rng, count)
    label = int(case.stated["labels"][index]) if case.output == "margin" else 0
    rows = objectives(case.graph.output_shape[0], case.output, label) @ gradients(case.graph, x)
    norms = np.linalg.norm(rows * case.stated["feature_scale"], _ORDERS[case.norm], axis=2).max(1)
    best = int(norms.argmax())
    return float(norms[best]), x[best]


def exceeds(case: Certified, index: int, place: np.ndarray, claim: float) -> bool:
    """Whether the dual norm of the gradient at a place of a point's region is larger than claimed, in exact arithmetic."""
    exact = number(case.graph)
    label = int(case.stated["labels"][index]) if case.output == "margin" else 0
    _, jacobian = value_and_jacobian(case.graph, place)
    scale = np.array([exact(float(s)) for s in case.stated["feature_scale"].ravel()], dtype=object)
    for weights in objectives(case.graph.output_shape[0], case.output, label):
        lifted = np.array([exact(float(w)) for w in weights], dtype=object)
        sizes = [abs(g) for g in (lifted @ jacobian) * scale]
        if case.norm == "l2":
            above = claim < 0 or sum(g * g for g in sizes) > exact(claim) ** 2
        else:
            above = (sum(sizes) if case.norm == "linf" else max(sizes)) > exact(claim)
        if above:
            return True
    return False
