"""Each flavor goes the whole way: pulled, exported, certified, and equal to what it serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.models import infer_signature

from mlflow_lipschitz.audit import audit_rows
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry.pull import pull
from mlflow_lipschitz.rows import load_rows
from tests.registry.evidence import POLICY
from tests.registry.stores import network, onnx_model, rows

SKLEARN = {"pip_requirements": ["scikit-learn"]}
TORCH = {"pip_requirements": ["torch"]}


def _onnx(folder: Path) -> None:
    mlflow.onnx.save_model(onnx_model(), folder, pip_requirements=["onnxruntime"])


def _module():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).eval()


def _pt2(folder: Path) -> None:
    signature = infer_signature(rows(), rows()[:, :2])
    example = rows(3)
    mlflow.pytorch.save_model(
        _module(), folder, serialization_format="pt2", input_example=example, signature=signature, **TORCH
    )


def _torch_pickle(folder: Path) -> None:
    mlflow.pytorch.save_model(_module(), folder, serialization_format="pickle", **TORCH)


def _regression(folder: Path, serialization_format: str) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    estimator = make_pipeline(StandardScaler(), Ridge()).fit(rows(), rows()[:, 0])
    mlflow.sklearn.save_model(estimator, folder, serialization_format=serialization_format, **SKLEARN)


def _classification(folder: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    estimator = LogisticRegression().fit(rows(40), (rows(40)[:, 0] > 0).astype(int))
    mlflow.sklearn.save_model(estimator, folder, serialization_format="skops", **SKLEARN)


def _support_vectors(folder: Path) -> None:
    from sklearn.svm import LinearSVC

    estimator = LinearSVC().fit(rows(40), (rows(40) @ [1.0, 2.0, 3.0] > 0).astype(int))
    mlflow.sklearn.save_model(estimator, folder, serialization_format="skops", **SKLEARN)


@pytest.mark.parametrize(
    ("save", "flavor"),
    [
        (_onnx, "onnx"),
        (_pt2, "pytorch-pt2"),
        (_torch_pickle, "pytorch-pickle"),
        (lambda folder: _regression(folder, "skops"), "sklearn-skops"),
        (lambda folder: _regression(folder, "cloudpickle"), "sklearn-pickle"),
        (_classification, "sklearn-skops"),
        (_support_vectors, "sklearn-skops"),
    ],
)
def test_it_is_audited_as_it_is_served(save: Callable[[Path], None], flavor: str, tmp_path: Path) -> None:
    save(tmp_path / "model")
    pulled = pull(str(tmp_path / "model"), trust_pickle=flavor.endswith("-pickle"))
    assert pulled.flavor == flavor
    policy = load_policy(POLICY)
    (tmp_path / "out").mkdir()
    result = audit_rows(pulled, load_rows(rows(), pulled.signature, policy), policy, tmp_path / "out")
    assert any("serve" in compared for compared in result.fidelity.compared)
    assert result.attestation.predicate["model"]["flavor"] == flavor
    assert {"passed", "blocked"} >= {result.verdict.status}


def test_a_served_model_that_differs_is_not_audited(tmp_path: Path) -> None:
    """`served` takes part: when the deployed model answers otherwise, nothing is certified in its name."""
    from dataclasses import replace

    from mlflow_lipschitz.errors import FidelityError

    _onnx(tmp_path / "model")
    pulled = replace(pull(str(tmp_path / "model")), served=lambda points: network(points, seed=3))
    policy = load_policy(POLICY)
    with pytest.raises(FidelityError):
        audit_rows(pulled, load_rows(rows(), None, policy), policy, tmp_path)
