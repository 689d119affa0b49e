"""Registered models of tokens, and of columns as ONNX inputs: the policy says that they do not move."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import Schema, TensorSpec
from torch import nn

from mlflow_lipschitz.audit import AuditOptions, audit
from mlflow_lipschitz.errors import InvalidData, PolicyError
from tests.frontends.test_discrete import credit, people
from tests.registry.conftest import sqlite_store, store  # noqa: F401
from tests.registry.stores import fresh_name

pytestmark = pytest.mark.usefixtures("store")

POLICY = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: tokens, version: 1}
model: {output: margin}
inputs: {immutable: [tokens]}
perturbation: {norm: l2, radius: 0.01}
checks:
  - {id: radius, type: radius_at_least, min: 0.000001}
"""


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.head = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens).mean(1))


def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier().eval()


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 12, size=(9, 5))


def registered(serialization_format: str = "pt2") -> str:
    name, rows = fresh_name("tokens"), tokens()
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("int64"), (-1, 5))]), Schema([TensorSpec(np.dtype("float32"), (-1, 3))])
    )
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            model(),
            name="model",
            registered_model_name=name,
            serialization_format=serialization_format,
            signature=signature,
            input_example=rows[:3],
            pip_requirements=["torch"],
        )
    return f"models:/{name}/1"


@pytest.mark.parametrize("form", ["pt2", "pickle"])
def test_tokens_are_audited_in_the_space_of_their_embeddings(form: str) -> None:
    result = audit(registered(form), tokens(), POLICY, options=AuditOptions(trust_pickle=form == "pickle"))
    assert result.verdict.status == "passed"
    embedded = model().embedding(torch.from_numpy(tokens())).detach().numpy()
    np.testing.assert_array_equal(result.rows.points, embedded)
    assert result.rows.feature_names[0] == "tokens.embedding[0,0]"
    assert "their embeddings move" in result.content.facts["looked up"]
    assert result.content.facts["does not move"] == "tokens"
    assert any("served" in what for what in result.fidelity.compared)
    assert (result.table.columns["radius"] > 0).all()


def test_the_policy_has_to_say_that_tokens_do_not_move() -> None:
    with pytest.raises(PolicyError, match=r"'tokens' is looked up .*; write immutable: \[tokens\]"):
        audit(registered(), tokens(), POLICY.replace("inputs: {immutable: [tokens]}\n", ""))
    with pytest.raises(PolicyError, match="nothing would move"):
        audit(registered(), tokens(), POLICY.replace("[tokens]", '["tokens*"]'))


def test_tokens_are_whole_numbers_that_the_model_knows() -> None:
    with pytest.raises(InvalidData, match=r"row 2: 1\.5 is no int64"):
        rows = tokens().astype(float)
        rows[2, 1] = 1.5
        audit(registered(), rows, POLICY)
    with pytest.raises(InvalidData, match="row 3, column 'tokens': the model's lookup refuses it"):
        rows = tokens()
        rows[3, 0] = 99
        audit(registered(), rows, POLICY)


def registered_onnx(built: onnx.ModelProto, frame: pd.DataFrame) -> str:
    name = fresh_name("columns")
    with mlflow.start_run():
        mlflow.onnx.log_model(
            built,
            name="model",
            registered_model_name=name,
            signature=infer_signature(frame),
            input_example=frame,
            pip_requirements=["onnxruntime"],
        )
    return f"models:/{name}/1"


def test_an_onnx_model_that_takes_columns(tmp_path: Path) -> None:
    policy = POLICY.replace("margin", '"output[1]"').replace("[tokens]", "[region, grade]")
    policy = policy.split("checks:")[0] + "checks:\n  - {id: age, type: sensitivity_at_most, feature: age, max: 3}\n"
    result = audit(registered_onnx(credit(), people()), people(), policy)
    assert result.verdict.status == "passed"
    np.testing.assert_allclose(result.table.columns["sensitivity_upper:age"], 2.0, rtol=1e-12)
    assert any("served" in what for what in result.fidelity.compared)
    with pytest.raises(InvalidData, match=r"row 1, column 'region'.*'south'"):
        audit(registered_onnx(credit(), people()), people().assign(region=["east", "south", "west"]), policy)


def test_real_columns_of_an_onnx_model_are_served_by_name() -> None:
    """Two inputs, asked for in another order than the data has them."""
    nodes = [
        onnx.helper.make_node("Sub", ["income", "age"], ["apart"]),
        onnx.helper.make_node("Tanh", ["apart"], ["y"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 1]) for n in ("age", "income")]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 1])
    graph = onnx.helper.make_graph(nodes, "two", inputs, [output])
    built = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    frame = pd.DataFrame({"income": [0.5, 0.1, 0.9], "age": [0.4, 0.3, 0.2]})
    policy = POLICY.replace("margin", '"y"').replace("inputs: {immutable: [tokens]}\n", "").split("checks:")[0]
    policy += "checks:\n  - {id: up, type: monotone, feature: income, direction: increasing}\n"
    result = audit(registered_onnx(built, frame), frame, policy)
    assert result.verdict.status == "passed"
    assert result.rows.feature_names == ("age", "income") and result.rows.looked_up == ()
