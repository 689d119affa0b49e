"""What certificates look like, and whether the table beside them says anything that they do not claim."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.io import PER_FEATURE
from mlflow_lipschitz.certificates.schema import STATEMENTS
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph

TABLE = "points.json"
Described = Mapping[str, Any]


def strict_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file. Raises ValueError for a key that is there twice, or a number that is none."""
    found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_refused)
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no object of JSON")
    return found


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"a key of JSON is there twice, among {[key for key, _ in pairs]}")
    return dict(pairs)


def refuse_malformed(graph: Graph, described: Described) -> None:
    """Raises ValueError unless the graph is of a model, and what is claimed, of what and of whom has a meaning."""
    kinds = [type(node.op) for node in graph.nodes]
    if kinds.count(ops.Input) != 1 or {ops.Cotangent, ops.Remainder} & set(kinds):
        raise ValueError("the graph of a model has one input, and no derivatives")
    output, claims = described["output"], described["claims"]
    if output != "margin" and not (type(output) is int and 0 <= output < np.prod(graph.output_shape)):
        raise ValueError(f"no output of the model: {output!r}")
    halves = [name in claims for name in ("derivative_lower", "derivative_upper")]
    if claims != {name: text for name, text in STATEMENTS.items() if name in claims} or len(set(halves)) > 1:
        raise ValueError(f"not the claims of this schema: {claims}")
    for name in ("point_ids", "feature_names", "unproved"):
        if not (isinstance(described[name], list) and all(isinstance(x, str) for x in described[name])):
            raise ValueError(f"{name} is no list of names")
    if len(set(described["feature_names"])) != np.prod(graph.input_shape):
        raise ValueError("there must be one name for every feature")


def refuse_misfits(graph: Graph, claims: Any, stated: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless every array has the shape and the kind of number that it is read as."""
    count, shape = len(stated["points"]), graph.input_shape
    shapes = {name: shape for name in PER_FEATURE} | {"points": (count, *shape)}
    shapes |= {name: (count, *shape) if name.startswith("derivative") else (count,) for name in claims}
    wrong = [name for name in shapes if stated[name].dtype != np.float64 or stated[name].shape != shapes[name]]
    wrong += [name for name in ("labels",) if name in stated and stated[name].dtype.kind not in "iu"]
    wrong += [name for name in STATEMENTS if name in stated and name not in claims]
    if wrong or not (np.isfinite(stated["feature_scale"]) & (stated["feature_scale"] >= 0)).all():
        raise ValueError(f"the arrays of a certificate do not fit: {wrong or 'feature_scale'}")


def beyond_claims(
    table: Described, described: Described, claimed: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, int, float, float]]:
    """Column, row, reported and claimed number, where a table reports what does not follow from the arrays of claims.

    Raises:
        ValueError: the table is about other points or features.
    """
    names, features = described["point_ids"], described["feature_names"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    if [row["point_id"] for row in rows] != names or len(set(table["columns"])) != len(table["columns"]):
        raise ValueError(f"{TABLE} is not about the points of the certificates")
    nothing = np.full((len(names), len(features)), np.inf)
    low, high = (
        claimed.get(f"derivative_{e}", s * nothing).reshape(nothing.shape) for e, s in (("lower", -1), ("upper", 1))
    )
    sign = np.where(low >= 0, 1, 0) - np.where(high <= 0, 1, 0)  # 0 for a constant, which may be told to go either way
    # What is told must be no smaller than what is claimed; a radius no larger, so both are turned around.
    limits = {"lipschitz_upper": claimed.get("lipschitz_upper", np.full(len(names), np.inf))}
    limits |= {"radius": -claimed.get("radius", np.zeros(len(names)))}
    limits |= {f"sensitivity_upper:{name}": np.maximum(-low, high)[:, k] for k, name in enumerate(features)}
    monotone: dict[str, int] = {f"monotone:{name}": k for k, name in enumerate(features)}
    for column in table["columns"]:
        kind = column.partition(":")[0]
        if kind not in ("lipschitz_upper", "radius", "sensitivity_upper", "monotone"):
            continue
        for index, row in enumerate(rows):
            told = float(row[column])
            if kind == "monotone":
                k = monotone[column]
                follows = told == 0 or (told == 1 and low[index, k] >= 0) or (told == -1 and high[index, k] <= 0)
                limit = sign[index, k]
            else:
                limit = limits[column][index]
                follows = limit <= (-told if kind == "radius" else told)
            if not follows:
                yield column, index, told, abs(float(limit)) if kind == "radius" else float(limit)
