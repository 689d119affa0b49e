"""`policy init`: a commented policy that is valid for a model as it is, to be edited by someone who knows the model."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from mlflow_lipschitz.policy_yaml import yaml_scalar
from mlflow_lipschitz.rows import AuditedRows

_FIXED_TYPES = ("integer", "long", "boolean", "string")
_MANY_ROWS = 10

_TEMPLATE = """\
# Proposed by `mlflow-lipschitz policy init`. Every number is a starting point: decide each one.
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {{name: {name}, version: 1}}  # raise the version with every change
model:
  output: {output}  # index or name of the judged output; margin = top class against the rest
  # baseline: models:/{plain_name}@champion  # what no_regression checks compare with
inputs:
  points: {{sample: 200, seed: 7}}  # add stratify: COLUMN to keep the proportions of a label column
{domain}{immutable}\
perturbation: {{norm: linf, radius: {radius}, scale: {scale}}}  # raw: input units; standardized: standard deviations
checks:
  # Largest change of the output per unit of perturbation. Audit once, read lipschitz/upper_max, then decide.
  - {{id: steadiness, type: lipschitz_at_most, max: 100.0}}
{monotone}\
  - {{id: enough, type: points_at_least, min: {points}}}
  - {{id: coverage, type: certified_fraction_at_least, min: 1.0}}
  - {{id: time, type: time_at_most, max: 600, severity: info}}
gate: {{fail_on: critical}}  # on_pass: {{alias: NAME}} here would set that alias on every version that passes
"""


def propose_policy(name: str, signature: Any, rows: AuditedRows | None) -> str:
    """A policy file for a model.

    Args:
        name: of the registered model.
        signature: MLflow signature or None; whole-number, boolean and text columns are proposed as immutable.
        rows: example rows, or None; they give the names where the signature has none, the columns that the model looks up
            (immutable in any case), and the domain.
    """
    looked_up = list(rows.looked_up) if rows is not None else []
    features = _feature_types(signature) or {n: "double" for n in (rows.feature_names if rows else ())}
    features = {**features, **dict.fromkeys(looked_up, "looked up")}
    codes = _codes(rows) if rows is not None else set()
    fixed = [name for name, kind in features.items() if kind in _FIXED_TYPES or name in codes or name in looked_up]
    if len(fixed) == len(features):
        fixed = looked_up
    moving = next((feature for feature in features if feature not in fixed), None)
    standardized = rows is not None and len(rows) > 1 and _all_vary(rows, fixed)
    return _TEMPLATE.format(
        name=yaml_scalar(re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "model"),
        plain_name=re.sub(r"\s+", "-", name),
        output=0,
        domain=_domain(rows, fixed),
        immutable=f"  immutable: [{', '.join(map(yaml_scalar, fixed))}]  # text, whole numbers, yes/no columns: codes do not move\n"
        if fixed
        else "",
        radius=0.1 if standardized else 0.01,
        scale="standardized" if standardized else "raw",
        monotone=_monotone(moving),
        points=min(100, len(rows)) if rows is not None and len(rows) > 1 else 100,
    )


def _feature_types(signature: Any) -> dict[str, str]:
    inputs = getattr(signature, "inputs", None)
    if inputs is None or inputs.is_tensor_spec() or not inputs.has_input_names():
        return {}
    return {str(column.name): str(getattr(column.type, "name", column.type)) for column in inputs.inputs}


def _codes(rows: AuditedRows) -> set[str]:
    """Features with two values in many rows: a category written as a number."""
    flat = rows.points.reshape(len(rows), -1)
    few = [len(np.unique(flat[:, i])) == 2 for i in range(flat.shape[1])] if len(rows) >= _MANY_ROWS else []
    return {name for name, is_code in zip(rows.feature_names, few, strict=False) if is_code}


def _all_vary(rows: AuditedRows, fixed: list[str]) -> bool:
    spread = rows.scale.reshape(-1)
    return all(spread[i] > 0 for i, name in enumerate(rows.feature_names) if name not in fixed)


def _domain(rows: AuditedRows | None, fixed: list[str]) -> str:
    """The range of the rows per moving feature, widened by a tenth; a commented line where there are too few rows."""
    if rows is None or len(rows) < 2 or len(rows.feature_names) > 40:
        return "  # domain: {FEATURE: [0, 100]}  # the perturbed input never leaves these ranges\n"
    flat = rows.points.reshape(len(rows), -1)
    lines = []
    for name, low, high in zip(rows.feature_names, flat.min(axis=0), flat.max(axis=0), strict=True):
        if name not in fixed and high > low:
            margin = (high - low) / 10
            lines.append(f"    {yaml_scalar(name)}: [{_outward(low - margin)}, {_outward(high + margin, up=True)}]\n")
    header = "  domain:  # ranges of the given rows, widened by a tenth\n"
    return header + "".join(lines) if lines else ""


def _outward(value: float, *, up: bool = False) -> str:
    """Three significant digits, rounded away from the data."""
    if value == 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    rounded = (np.ceil if up else np.floor)(value / unit) * unit
    return f"{float(f'{rounded:.6g}')!r}"


def _monotone(feature: str | None) -> str:
    if feature is None:
        return "  # - {id: rises, type: monotone, feature: FEATURE, direction: increasing}\n"
    return f"  # - {{id: rises, type: monotone, feature: {yaml_scalar(feature)}, direction: increasing}}\n"
