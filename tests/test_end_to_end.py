"""The demo, told once for all tests of this module: what a new user sees, and what it leaves in the store."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

import mlflow_lipschitz as ml
from mlflow_lipschitz.certificates.io import read_certificates
from mlflow_lipschitz.cli.__main__ import run
from mlflow_lipschitz.demo.registering import local_store
from mlflow_lipschitz.gate.table import BoundsTable

NAME = "diabetes-progression"


@dataclass(frozen=True)
class Told:
    directory: Path
    code: int
    out: str
    err: str

    @property
    def store(self) -> str:
        return f"sqlite:///{self.directory / 'mlflow.db'}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.store, registry_uri=self.store)

    def audit(self, version: int) -> Path:
        return self.directory / "audits" / f"version-{version}"


def tell(directory: Path) -> Told:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["demo", "--dir", str(directory)])
    return Told(directory, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return tell(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def current_store(told: Told) -> Iterator[str]:
    with local_store(told.directory) as uri:
        yield uri


def test_the_demo_leaves_the_users_own_registry_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"sqlite:///{tmp_path / 'own.db'}"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", own)
    with local_store(tmp_path) as uri:
        assert mlflow.get_registry_uri() == mlflow.get_tracking_uri() == uri
    assert mlflow.get_registry_uri() == os.environ["MLFLOW_REGISTRY_URI"] == own
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    with local_store(tmp_path):
        pass
    assert "MLFLOW_REGISTRY_URI" not in os.environ


def test_the_demo_leaves_the_users_own_keys_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("LIPSCHITZ_SIGNING_KEY", "LIPSCHITZ_TRUSTED_KEYS", "LIPSCHITZ_REVOKED_KEYS")
    for name in names:
        monkeypatch.setenv(name, str(tmp_path / "own"))
    with local_store(tmp_path):
        assert not any(name in os.environ for name in names)
    assert {os.environ[name] for name in names} == {str(tmp_path / "own")}


def test_the_demo_tells_its_story(told: Told) -> None:
    assert told.code == 0, told.err
    assert f"blocked: models:/{NAME}/1" in told.out
    assert f"passed: models:/{NAME}/2" in told.out
    assert re.search(r"FAIL\s+rises-with-bmi", told.out)
    assert re.search(
        r"rises-with-bmi: row \d+: at bmi = [\d.]+ the output changes by -[\d.]+ per unit of bmi", told.out
    )
    assert told.out.index("exit code 1") < told.out.index("exit code 0")
    assert f"mlflow ui --backend-store-uri {told.store}" in told.out
    assert f"models:/{NAME}/1 may not be promoted" in told.err


def test_only_the_passing_version_is_promoted(told: Told) -> None:
    versions = {int(v.version): v for v in told.client.search_model_versions(f"name='{NAME}'")}
    assert versions[1].tags["lipschitz.verdict"] == "blocked"
    assert versions[2].tags["lipschitz.verdict"] == "passed"
    assert str(told.client.get_model_version_by_alias(NAME, "champion").version) == "2"
    assert "Lipschitz audit: passed" in (versions[2].description or "")


def test_the_blocked_model_is_as_accurate_as_the_passed_one(told: Told) -> None:
    runs = told.client.search_runs([told.client.get_experiment_by_name(NAME).experiment_id])
    errors = [run.data.metrics["rmse_held_out"] for run in runs if "rmse_held_out" in run.data.metrics]
    assert len(errors) == 2
    assert max(errors) < 60.0


def test_metrics_and_artifacts_are_on_the_run(told: Told) -> None:
    version = told.client.get_model_version(NAME, "2")
    audited = told.client.get_run(version.tags["lipschitz.run_id"])
    assert audited.info.status == "FINISHED"
    assert audited.data.metrics["lipschitz/certified_fraction"] == 1.0
    assert audited.data.metrics["lipschitz/monotone_fraction/bmi"] == 1.0
    assert all(np.isfinite(value) for value in audited.data.metrics.values())
    logged = {
        item.path.removeprefix("lipschitz/") for item in told.client.list_artifacts(audited.info.run_id, "lipschitz")
    }
    assert logged == {path.name for path in told.audit(2).iterdir()}


def test_a_counterexample_can_be_checked_by_hand(told: Told, current_store: str) -> None:
    certificates = read_certificates(told.audit(1))
    served = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    example = next(e for e in certificates.counterexamples if e.feature == "bmi")
    point = pd.DataFrame([dict(example.point)])
    # A finite difference of the served model, small enough to stay within one linear piece, large enough for float32.
    low, high = (float(served.predict(point.assign(bmi=point["bmi"] + shift)).iloc[0, 0]) for shift in (-0.01, 0.01))
    assert high < low
    assert (high - low) / 0.02 == pytest.approx(example.derivative, rel=0.2)


def test_certified_bounds_hold_on_the_served_model(told: Told, current_store: str) -> None:
    """Random perturbations within the radius never change the answer by more than the certified bound allows."""
    certificates = read_certificates(told.audit(2))
    arrays, names = certificates.arrays, list(certificates.feature_names)
    served = mlflow.pyfunc.load_model(f"models:/{NAME}/2")
    generator = np.random.default_rng(0)
    base = served.predict(pd.DataFrame(arrays["points"], columns=names)).to_numpy()[:, 0]
    for _ in range(20):
        moved = arrays["points"] + generator.uniform(-1, 1, arrays["points"].shape) * arrays["radius_per_feature"]
        moved = np.clip(moved, arrays["domain_lower"], arrays["domain_upper"])
        change = np.abs(served.predict(pd.DataFrame(moved, columns=names)).to_numpy()[:, 0] - base)
        # float32 serving adds rounding of about 1e-5 to answers of size 300, which the claim (real arithmetic) leaves out.
        assert (change <= arrays["lipschitz_upper"] * 0.1 + 1e-3).all()
        rise = np.array(arrays["points"])
        rise[:, names.index("bmi")] += arrays["radius_per_feature"][names.index("bmi")]
    up = served.predict(pd.DataFrame(rise, columns=names)).to_numpy()[:, 0]
    assert (up >= base - 1e-3).all()


def test_the_report_is_one_file_that_reads_alone(told: Told) -> None:
    for version in (1, 2):
        text = (told.audit(version) / "report.html").read_text(encoding="utf-8")
        assert "<script" not in text
        assert not re.search(r"https?://", text)
        # Bounds, two responses, two derivatives, sensitivities.
        assert text.count("<svg") == 6
        assert "it could not be computed:" not in text
    assert "Where it breaks" in (told.audit(1) / "report.html").read_text(encoding="utf-8")
    table = BoundsTable.read(told.audit(2) / "points.parquet")
    assert len(table) == 80
    assert json.loads((told.audit(2) / "attestation.json").read_text())["predicate"]["arithmetic"] == "real"


def test_a_changed_file_cannot_be_promoted(told: Told, tmp_path: Path, current_store: str) -> None:
    """Last, because it damages the store: the registered file is overwritten after the audit."""
    uri = f"models:/{NAME}/2"
    assert run(["promote", uri, "--alias", "stable", "--dry-run"]) == 0
    model_file = next((told.directory / "artifacts").rglob("model.onnx"))
    for path in (told.directory / "artifacts").rglob("model.onnx"):
        path.write_bytes(path.read_bytes() + b"\x00\x00")
    try:
        assert run(["promote", uri, "--alias", "stable"]) == 1
    finally:
        for path in (told.directory / "artifacts").rglob("model.onnx"):
            path.write_bytes(path.read_bytes()[:-2])
    assert model_file.is_file()
    assert str(told.client.get_model_version_by_alias(NAME, "champion").version) == "2"


def test_a_second_demo_registers_new_versions(told: Told) -> None:
    again = tell(told.directory)
    assert again.code == 0, again.err
    assert {int(v.version) for v in told.client.search_model_versions(f"name='{NAME}'")} == {1, 2, 3, 4}
    assert str(told.client.get_model_version_by_alias(NAME, "champion").version) == "4"


def test_a_worse_model_than_the_baseline_is_blocked(told: Told, tmp_path: Path, current_store: str) -> None:
    policy = tmp_path / "policy.yaml"
    text = (Path(ml.__file__).parent / "policies" / "diabetes.yaml").read_text(encoding="utf-8")
    regression = "  - {id: no-worse, type: no_regression, metric: lipschitz_upper, rel_tol: 0.05}\n"
    judged = text.replace("  output: 0\n", f"  output: 0\n  baseline: models:/{NAME}@champion\n")
    policy.write_text(judged.replace("checks:\n", "checks:\n" + regression))
    rows = told.directory / "audited_rows.csv"
    found = {}
    for version in (1, 2):
        result = ml.audit(f"models:/{NAME}/{version}", rows, policy)
        found[version] = next(check.status for check in result.verdict.checks if check.id == "no-worse")
        report = (result.directory / "report.html").read_text(encoding="utf-8")
        assert f"Attested bounds of models:/{NAME}@champion" in report
    assert found == {1: "violated", 2: "certified"}
    policy.write_text(policy.read_text().replace("@champion", "@nobody"))
    result = ml.audit(f"models:/{NAME}/2", rows, policy)
    assert result.verdict.status == "error"
    assert next(check.status for check in result.verdict.checks if check.id == "no-worse") == "error"
