"""An evaluation that is stopped goes on; and it shows its progress where somebody looks, in a notebook too."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry

from mlflow_lipschitz.errors import Interrupted
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.mlflow_plugin.evaluator import LipschitzEvaluator
from tests.mlflow_plugin.audits import write_policy
from tests.registry.stores import fresh_name, log_onnx, rows
from tests.report.test_progress import in_a_notebook


def evaluated(uri: str, policy: Path, **options: object) -> mlflow.models.EvaluationResult:
    if not _model_evaluation_registry.is_registered("lipschitz"):
        _model_evaluation_registry.register("lipschitz", LipschitzEvaluator)
    with mlflow.start_run():
        return mlflow.models.evaluate(
            uri,
            data=rows(),
            model_type="lipschitz",
            evaluators="lipschitz",
            evaluator_config={"policy": str(policy), "chunk_size": 2, **options},
        )


def test_a_stopped_evaluation_goes_on(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, policy, out = fresh_name(), write_policy(tmp_path), tmp_path / "out"
    log_onnx(name)
    measuring = import_module("mlflow_lipschitz.pipeline.measure")
    original, measured = measuring._measure_chunk, []

    def interrupting(*arguments: object) -> dict[str, np.ndarray]:
        measured.append(arguments)
        if len(measured) == 3:
            raise KeyboardInterrupt  # where a signal would be hard to place
        return original(*arguments)

    monkeypatch.setattr(measuring, "_measure_chunk", interrupting)
    with pytest.raises(Interrupted, match="4 of 8 rows are finished"):
        evaluated(f"models:/{name}/1", policy, out=out)
    assert (out / "partial.json").is_file()
    capsys.readouterr()
    result = evaluated(f"models:/{name}/1", policy, out=out, resume=True)
    assert "certifying: 4/8 rows were finished before" in capsys.readouterr().err
    assert len(measured) == 5
    assert result.metrics["lipschitz/certified_fraction"] == 1.0
    assert not (out / "work").exists()
    assert not (out / "partial.json").exists()
    assert len(BoundsTable.read(out / "points.parquet")) == 8


NOTEBOOK = """
import mlflow
mlflow.set_tracking_uri({store!r})
mlflow.set_registry_uri({store!r})
mlflow.set_experiment("tests")
from tests.registry.stores import rows
with mlflow.start_run():
    found = mlflow.models.evaluate(
        {uri!r}, data=rows(), model_type="lipschitz", evaluators="lipschitz",
        evaluator_config={{"policy": {policy!r}, "chunk_size": 2}},
    )
print("certified", found.metrics["lipschitz/certified_fraction"])
"""


@pytest.mark.skipif(
    not entry_points(group="mlflow.model_evaluator", name="lipschitz"),
    reason="MLflow finds evaluators of installed packages only, and this one is not installed",
)
def test_mlflow_evaluate_in_a_notebook_shows_a_bar(store: str, tmp_path: Path) -> None:
    name, policy = fresh_name(), write_policy(tmp_path)
    log_onnx(name)
    shown, kinds = in_a_notebook(NOTEBOOK.format(store=store, uri=f"models:/{name}/1", policy=str(policy)))
    assert "certified 1.0" in shown, shown[-2000:]
    assert "certifying ━" in shown
    assert "8/8" in shown
    assert "clear_output" in kinds
