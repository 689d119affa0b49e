"""A policy asks for radii of the served program; the table, the reports, the certificates and the attestation say so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest

from mlflow_lipschitz.audit import AuditResult, audit_rows
from mlflow_lipschitz.certificates.io import read_certificates
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.pipeline.artifacts import ARITHMETIC, arithmetic_in_words
from mlflow_lipschitz.pipeline.measure import MeasureOptions, measure
from mlflow_lipschitz.pipeline.row_bounds import table_columns
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry.pull import pull
from mlflow_lipschitz.rows import load_rows
from tests.certify.test_deployed_radius import cancelling
from tests.frontends.onnx_models import make_model, node
from tests.pipeline.test_measure import question
from tests.pipeline.test_question import asked, rows

POLICY = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: served, version: 1}
model: {output: margin}
perturbation: {norm: linf, radius: 0.1}
engine: {budget_per_point_s: null, arithmetic: deployed-float32}
checks:
  - {id: far, type: radius_at_least, min: 0.05}
"""
POINTS = np.array([[1.0, 2.0], [-2.0, 0.5], [3.0, 3.0]], dtype=np.float32)


def classifier(*before: onnx.NodeProto) -> onnx.ModelProto:
    constants = {"w": np.array([[1.0, -1.0], [0.5, 0.25]], np.float32), "g": np.ones(2, np.float32)}
    return make_model([*before, node("Gemm", f"{'n' if before else 'x'} w", "y")], (2,), constants)


def audited(model: onnx.ModelProto, folder: Path, policy: str = POLICY) -> AuditResult:
    mlflow.onnx.save_model(model, folder / "model", pip_requirements=["onnxruntime"])
    pulled, settings = pull(str(folder / "model")), load_policy(policy)
    (folder / "out").mkdir()
    return audit_rows(pulled, load_rows(POINTS, pulled.signature, settings), settings, folder / "out")


def test_every_artifact_names_the_arithmetic(tmp_path: Path) -> None:
    result = audited(classifier(), tmp_path)
    table = result.table
    assert table.columns["radius_arithmetic"].tolist() == ["deployed-float32"] * 3
    assert np.all(table.columns["served_error"] > 0) and np.all(table.columns["served_error"] < 1e-5)
    assert np.all(table.columns["radius"] > 0.05)
    (far,) = (check for check in result.verdict.checks if check.id == "far")
    assert far.passed and "as served" in far.message
    certificates = read_certificates(tmp_path / "out")
    assert certificates.arithmetic_of == {
        "lipschitz_upper": "real", "lipschitz_lower": "real", "radius": "deployed-float32", "served_error": "deployed-float32",
    }  # fmt: skip
    claimed = json.loads((tmp_path / "out" / "certificates.json").read_text())
    assert (
        claimed["arithmetic_of"] == certificates.arithmetic_of and "served program" in claimed["claims"]["served_error"]
    )
    assert result.attestation.predicate["arithmetic_of"] == {
        "lipschitz": "real", "derivatives": "real", "radius": "deployed-float32",
    }  # fmt: skip
    for name in ("summary.md", "report.html"):
        assert "deployed-float32 for radii" in (tmp_path / "out" / name).read_text(encoding="utf-8")
    for name in ("points.parquet", "points.json"):
        again = BoundsTable.read(tmp_path / "out" / name)
        assert again.columns["radius_arithmetic"].tolist() == ["deployed-float32"] * 3
        np.testing.assert_array_equal(again.columns["served_error"], table.columns["served_error"])


def test_without_asking_everything_is_real(tmp_path: Path) -> None:
    result = audited(classifier(), tmp_path, POLICY.replace(", arithmetic: deployed-float32", ""))
    assert "served_error" not in result.table.columns and "radius_arithmetic" not in result.table.columns
    assert result.attestation.predicate["arithmetic_of"]["radius"] == "real"
    certificates = read_certificates(tmp_path / "out")
    assert set(certificates.arithmetic_of.values()) == {"real"} and "served_error" not in certificates.arrays
    assert "as served" not in next(check for check in result.verdict.checks if check.id == "far").message


def test_a_model_whose_rounding_is_unknown_is_blocked_and_the_report_says_why(tmp_path: Path) -> None:
    model = classifier(node("LpNormalization", "x", "n", name="norm1", p=2, axis=-1))
    result = audited(model, tmp_path)
    assert result.verdict.status == "blocked"
    assert np.all(result.table.columns["radius"] == 0) and np.all(result.table.columns["served_error"] == np.inf)
    for name in ("summary.md", "report.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "No radius is certified" in text and "norm1" in text and "formulas of their own" in text


def test_a_radius_that_rounding_breaks_is_measured_as_none(tmp_path: Path) -> None:
    graph, given = lower(cancelling()), replace(rows(), points=np.array([[8.0]]), feature_names=("x",))
    given = replace(given, point_ids=np.array(["0"]), scale=np.ones(1))
    shared = {"unit": np.ones(1), "domain": (np.full(1, -np.inf), np.full(1, np.inf)), "columns": (0,)}
    found = {}
    for name in ("real", "deployed-float32"):
        ask = question(None, output="margin", max_radius=20.0, size=1.0, arithmetic=name, **shared)
        arrays = measure(graph, given, ask, tmp_path / name, MeasureOptions())
        found[name] = BoundsTable.from_columns(*table_columns(given, ask, arrays)).columns
    assert found["real"]["radius"][0] > 4.9 and "served_error" not in found["real"]
    assert found["deployed-float32"]["radius"][0] == 0 < found["deployed-float32"]["served_error"][0]


def test_a_question_carries_the_arithmetic_of_its_policy() -> None:
    assert asked("{norm: linf, radius: 0.1}").arithmetic == "real"
    policy = load_policy(POLICY)
    assert policy.engine.arithmetic == "deployed-float32"


def test_bounds_that_ask_for_no_decision_are_real() -> None:
    graph = lower(classifier())
    served = question(None, arithmetic="deployed-float32", max_radius=None)
    assert arithmetic_in_words(graph, served) == ARITHMETIC
    assert arithmetic_in_words(graph, replace(served, max_radius=1.0)).startswith("deployed-float32 for radii")


@pytest.mark.parametrize("written", [", arithmetic: real", ""])
def test_saying_that_it_is_real_changes_no_digest(written: str) -> None:
    """A policy's digest stands in the attestations of audits that were made before there was a choice."""
    base = load_policy(POLICY.replace(", arithmetic: deployed-float32", written))
    assert base.digest == load_policy(POLICY.replace(", arithmetic: deployed-float32", "")).digest
    assert base.digest != load_policy(POLICY).digest
