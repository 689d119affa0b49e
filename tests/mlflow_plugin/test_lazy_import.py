"""MLflow imports the entry point's module for every user of `evaluate`: it must cost nothing and cannot fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnx", "onnxruntime", "great_expectations", "sklearn", "skops")


def _modules_after(statement: str) -> set[str]:
    code = f"import sys, json; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(answer.stdout.splitlines()[-1]))


def _entry_point() -> str:
    """The module and class that pyproject.toml registers with MLflow."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split('[project.entry-points."mlflow.model_evaluator"]', 1)[1]
    return section.split("lipschitz = ", 1)[1].splitlines()[0].strip('"')


def test_the_entry_point_loads_nothing_heavy() -> None:
    module, name = _entry_point().split(":")
    before = _modules_after("from mlflow.models.evaluation.base import ModelEvaluator")
    after = _modules_after(f"from {module} import {name}; {name}()")
    assert not {heavy for heavy in HEAVY if heavy in after}
    ours = {m for m in after - before if not m.startswith("mlflow_lipschitz")}
    assert ours == set(), "beside MLflow's base class only the standard library may be loaded"


@pytest.mark.parametrize("config", ["{}", "None", "{'log_model_explainability': False}"])
def test_declining_loads_nothing_heavy(config: str) -> None:
    module, name = _entry_point().split(":")
    ask = f"assert not {name}().can_evaluate(model_type='regressor', evaluator_config={config})"
    after = _modules_after(f"from {module} import {name}; {ask}")
    assert not {heavy for heavy in HEAVY if heavy in after}
