"""The output that is reported is the one that was bounded."""

from __future__ import annotations

from collections.abc import Sequence

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_lipschitz.audit import AuditResult, audit_rows
from mlflow_lipschitz.errors import PolicyError, UsageError
from mlflow_lipschitz.pipeline.outputs import judged_output
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry.pull import pull
from mlflow_lipschitz.rows import load_rows
from tests.frontends.onnx_models import make_model, node

WEIGHTS = {
    "up": np.array([[2.0], [1.0]], np.float32), "down": np.array([[-5.0], [-1.0]], np.float32),
    "two": np.array([[1.0, -3.0], [0.0, 0.0]], np.float32),
}  # fmt: skip
ROWS = pd.DataFrame(np.random.default_rng(0).normal(size=(12, 2)), columns=["a", "b"])


def two_outputs(*names: str) -> onnx.ModelProto:
    """The first output rises with `a`, the second falls."""
    nodes = [node("Gemm", "x up", names[0]), node("Gemm", "x down", names[1])]
    return make_model(nodes, (2,), WEIGHTS, outputs=names)


def audited(folder, model: onnx.ModelProto, outputs: Sequence[str], judged: str) -> AuditResult:
    inputs = Schema([ColSpec("double", "a"), ColSpec("double", "b")])
    signature = ModelSignature(inputs, Schema([ColSpec("double", name) for name in outputs]))
    mlflow.onnx.save_model(model, folder / "model", pip_requirements=["onnxruntime"], signature=signature)
    policy = load_policy(
        "apiVersion: mlflow-lipschitz/v1\nkind: AuditPolicy\nmetadata: {name: p, version: 1}\n"
        f"model: {{output: {judged}}}\nperturbation: {{norm: linf, radius: 0.1}}\n"
        "checks:\n  - {id: up, type: monotone, feature: a, direction: increasing}\n"
    )
    pulled = pull(str(folder / "model"))
    rows = load_rows(ROWS, pulled.signature, policy)
    return audit_rows(pulled, rows, policy, folder)


@pytest.mark.parametrize(
    ("outputs", "judged", "status", "slope"),
    [
        (["score"], "score", "blocked", 6.0),
        (["score"], "0", "blocked", 6.0),
        (["score"], "aux", "passed", 3.0),
        (["aux", "score"], "score", "blocked", 6.0),
        (["aux", "score"], "aux", "passed", 3.0),
    ],
)
def test_the_named_output_is_audited(tmp_path, outputs: list[str], judged: str, status: str, slope: float) -> None:
    result = audited(tmp_path, two_outputs("aux", "score"), outputs, judged)
    assert result.verdict.status == status
    assert result.table.frame["lipschitz_upper"].to_numpy() == pytest.approx(slope)


@pytest.mark.parametrize(("outputs", "judged"), [(["aux", "score"], "1"), (["points"], "points"), (["points"], "0")])
def test_no_output_is_guessed(tmp_path, outputs: list[str], judged: str) -> None:
    with pytest.raises(UsageError, match=rf"outputs \(aux, score\), its signature names \({', '.join(outputs)}\)"):
        audited(tmp_path, two_outputs("aux", "score"), outputs, judged)


def test_one_output_may_have_another_name_in_the_signature(tmp_path) -> None:
    single = make_model([node("Gemm", "x up", "variable")], (2,), WEIGHTS, outputs=["variable"])
    for place, judged in enumerate(("risk", "variable", "0")):
        (tmp_path / str(place)).mkdir()
        assert audited(tmp_path / str(place), single, ["risk"], judged).verdict.status == "passed"


def test_entries_of_one_of_several_outputs(tmp_path) -> None:
    """The signature has as many names as the output has entries, and they are not the names of its entries."""
    nodes = [node("Gemm", "x up", "aux"), node("Gemm", "x two", "scores")]
    model = make_model(nodes, (2,), WEIGHTS, outputs=["aux", "scores"])
    for place, outputs in enumerate((["aux", "scores"], ["scores"])):
        (tmp_path / str(place)).mkdir()
        with pytest.raises(PolicyError, match="scores"):
            audited(tmp_path / str(place), model, outputs, "scores")
        (tmp_path / f"entry {place}").mkdir()
        result = audited(tmp_path / f"entry {place}", model, outputs, "'scores[1]'")
        assert result.verdict.status == "blocked"


def test_labels_are_no_candidates() -> None:
    nodes = [node("ArgMax", "x", "label", axis=1, keepdims=0), node("Gemm", "x up", "score")]
    model = make_model(nodes[1:], (2,), WEIGHTS, outputs=["score"])
    model.graph.node.insert(0, nodes[0])
    model.graph.output.insert(0, onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["batch"]))
    assert judged_output(model, (), 0) == "score"
    assert judged_output(model, ("label", "score"), "margin") == "score"
