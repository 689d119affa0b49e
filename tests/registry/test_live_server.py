"""The same things through a live `mlflow server`: one file, so that one server is started."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import PromotionRefused, RegistryError
from mlflow_lipschitz.mlflow_plugin.logging import log_audit
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.promotion import PromotionOptions, promote
from mlflow_lipschitz.registry.pull import pull
from mlflow_lipschitz.registry.trust import TrustSources
from mlflow_lipschitz.report.html import report_html
from tests.mlflow_plugin.audits import audited
from tests.registry.evidence import POLICY, Record, attest, record
from tests.registry.interposed import at_call
from tests.registry.keyring import key, public_file
from tests.registry.stores import FEATURES, fresh_name, log_onnx, network, onnx_model, rows
from tests.report.browsers import OPEN_ALL, OVERFLOW, Watched, chromium
from tests.report.samples import IMAGE, full


def _aliases(name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in MlflowClient().get_registered_model(name).aliases.items()}


def test_pull(http_store: str) -> None:
    name = fresh_name()
    info = log_onnx(name)
    pulled = pull(f"models:/{name}/1")
    assert (pulled.name, pulled.version, pulled.model_id) == (name, "1", info.model_id)
    assert pulled.served(rows()) == pytest.approx(network(rows()), abs=1e-6)


def test_promotion_and_files_rewritten_by_put(http_store: str, tmp_path: Path) -> None:
    name = fresh_name()
    info = log_onnx(name)
    record(name, tmp_path / "e")
    promote(f"models:/{name}/1", alias="certified")
    assert _aliases(name) == {"certified": "1"}

    location = MlflowClient().get_logged_model(info.model_id).artifact_location.removeprefix("mlflow-artifacts:/")
    url = f"{http_store}/api/2.0/mlflow-artifacts/artifacts/{location}/model.onnx"
    request = urllib.request.Request(url, data=onnx_model(seed=9).SerializeToString(), method="PUT")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    with pytest.raises(PromotionRefused, match=r"not the audited ones: model\.onnx"):
        promote(f"models:/{name}/1", alias="champion")
    assert _aliases(name) == {"certified": "1"}


def _put(store: str, location: str, content: bytes) -> int:
    """Overwrite an artifact through the server's own proxy, as anybody who can reach it may."""
    path = location.removeprefix("mlflow-artifacts:/").lstrip("/")
    request = urllib.request.Request(f"{store}/api/2.0/mlflow-artifacts/artifacts/{path}", data=content, method="PUT")
    with urllib.request.urlopen(request) as answer:
        return answer.status


def _signed(tmp_path: Path) -> tuple[str, Record, PromotionOptions]:
    """A version with a signed audit; how to promote it where that key is trusted."""
    name = fresh_name()
    log_onnx(name)
    kept = record(name, tmp_path / "e", key=key(1))
    return name, kept, PromotionOptions(trust=TrustSources((public_file(1, tmp_path),)))


def test_an_attestation_forged_through_the_proxy(http_store: str, tmp_path: Path) -> None:
    name, kept, options = _signed(tmp_path)
    place = f"{MlflowClient().get_run(kept.run_id).info.artifact_uri}/lipschitz/attestation.json"
    forged = attest(pull(f"models:/{name}/1"), tmp_path / "e", key=key(2)).to_json().encode()
    flipped = kept.attestation.to_json().replace("payload", "Payload", 1).encode()
    for content, reason in ((forged, "not a trusted key"), (flipped, "cannot be used"), (b"", "cannot be used")):
        assert _put(http_store, place, content) == 200
        with pytest.raises(PromotionRefused, match=reason):
            promote(f"models:/{name}/1", alias="champion", options=options)
    assert _aliases(name) == {}
    assert _put(http_store, place, kept.attestation.to_json().encode()) == 200
    promote(f"models:/{name}/1", alias="champion", options=options)
    assert _aliases(name) == {"champion": "1"}


def test_files_swapped_through_the_proxy_during_a_promotion(
    http_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, options = _signed(tmp_path)
    client = MlflowClient()
    model_id = client.get_model_version(name, "1").source.removeprefix("models:/")
    place = f"{client.get_logged_model(model_id).artifact_location}/model.onnx"
    swap = partial(_put, http_store, place, onnx_model(seed=9).SerializeToString())
    with (
        at_call(monkeypatch, "set_registered_model_alias", swap, first=False),
        pytest.raises(PromotionRefused, match="changed while it was promoted, so that was taken back"),
    ):
        promote(f"models:/{name}/1", alias="champion", options=options)
    assert _aliases(name) == {}
    with pytest.raises(PromotionRefused, match=r"not the audited ones: model\.onnx"):
        promote(f"models:/{name}/1", alias="champion", options=options)


def test_an_audit_is_logged_once_and_opens_promotion(http_store: str, tmp_path: Path) -> None:
    name = fresh_name()
    info = log_onnx(name)
    client = MlflowClient()
    run_id = client.create_run(client.get_experiment_by_name("tests").experiment_id).info.run_id
    result = audited(f"models:/{name}/1", tmp_path / "out")
    log_audit(result, run_id=run_id)
    assert sorted(m.key for m in client.get_logged_model(info.model_id).metrics) == sorted(result.metrics)
    assert len(client.get_metric_history(run_id, "lipschitz/upper_max")) == 1
    assert promote(f"models:/{name}/1", to=f"prod-{name}", alias="champion").version == "1"
    assert _aliases(f"prod-{name}") == {"champion": "1"}


def test_a_version_number_beyond_the_last_is_a_registry_error_at_once(http_store: str) -> None:
    name = fresh_name()
    log_onnx(name)
    with pytest.raises(RegistryError, match="mlflow ui"):
        pull(f"models:/{name}/99")


def test_the_artifact_viewer_shows_the_report(http_store: str, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(report_html(full(200)), encoding="utf-8")
    with chromium() as browser:
        client = MlflowClient()
        with mlflow.start_run() as run:
            client.log_artifact(run.info.run_id, str(report), "lipschitz")
        watched = Watched.of(browser, 1400, "light")
        place = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/lipschitz/report.html"
        watched.page.goto(f"{http_store}/#/{place}")
        frame = watched.page.wait_for_selector("iframe", timeout=180_000).content_frame()
        frame.wait_for_selector("h1", timeout=60_000)
        assert "Blocked" in frame.inner_text("h1")
        frame.evaluate(OPEN_ALL)
        assert frame.evaluate(OVERFLOW) == 0
        assert IMAGE in frame.inner_text("body")
        # The frame asks for nothing but the document that MLflow hands it, and says nothing on the console.
        assert watched.framed
        assert all(url.startswith("blob:") for url in watched.framed)
        assert [text for text in watched.messages if "404 (Not Found)" not in text] == []


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlflow_lipschitz.cli", *arguments]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_commands_a_user_types(http_store: str, tmp_path: Path) -> None:
    name = fresh_name()
    info = log_onnx(name)
    (tmp_path / "policy.yaml").write_text(POLICY)
    pd.DataFrame(rows(), columns=[f"x{i}" for i in range(FEATURES)]).to_csv(tmp_path / "rows.csv", index=False)
    place = f"models:/{name}/1"
    audit = _run("audit", place, "--policy", str(tmp_path / "policy.yaml"), "--data", str(tmp_path / "rows.csv"))
    assert audit.returncode == 0, audit.stderr
    assert f"passed: {place}" in audit.stdout

    client = MlflowClient()
    tagged = client.get_model_version(name, "1").tags
    assert tagged[tags.VERDICT] == "passed"
    assert len(client.get_metric_history(tagged[tags.RUN_ID], "lipschitz/upper_max")) == 1
    linked = [m for m in client.get_logged_model(info.model_id).metrics if m.key == "lipschitz/upper_max"]
    assert len(linked) == 1
    kept = {artifact.path for artifact in client.list_artifacts(tagged[tags.RUN_ID], "lipschitz")}
    assert {"lipschitz/report.html", "lipschitz/points.parquet", "lipschitz/attestation.json"} <= kept

    assert _run("promote", place, "--alias", "champion").returncode == 0
    assert _aliases(name) == {"champion": "1"}
