"""The same things through a live `mlflow server`: one file, so that one server is started."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import PromotionRefused
from mlflow_lipschitz.registry.promotion import promote
from mlflow_lipschitz.registry.pull import pull
from tests.registry.evidence import record
from tests.registry.stores import fresh_name, log_onnx, network, onnx_model, rows


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
