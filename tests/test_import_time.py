"""`import mlflow_lipschitz` is what every MLflow user pays who merely has it installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "great_expectations", "mlflow", "pandas", "numpy", "pydantic", "sklearn")


def imported_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter imports for `statement`."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split("|")[-1].strip() for line in finished.stderr.splitlines() if line.startswith("import time:")]
    return {name.split(".")[0] for name in lines}


def test_the_listing_sees_heavy_packages() -> None:
    assert "numpy" in imported_by("import numpy")


@pytest.mark.parametrize(
    "statement",
    [
        "import mlflow_lipschitz",
        "import mlflow_lipschitz.errors",
        "import mlflow_lipschitz; dir(mlflow_lipschitz); mlflow_lipschitz.__version__",
        "import mlflow_lipschitz.cli.__main__",
    ],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    assert not imported_by(statement).intersection(HEAVY)


def test_help_needs_nothing_heavy() -> None:
    statement = "from mlflow_lipschitz.cli.__main__ import run; run(['--help']); run(['audit', '--help'])"
    assert not imported_by(statement).intersection(HEAVY)


def test_every_public_name_can_be_had() -> None:
    import mlflow_lipschitz as ml

    for name in ml.__all__:
        assert callable(getattr(ml, name)), name


def test_audit_stays_a_function_when_its_module_is_imported() -> None:
    statement = (
        "import mlflow_lipschitz as ml; import mlflow_lipschitz.audit; from mlflow_lipschitz.audit import AuditOptions;"
        " import types; assert isinstance(ml.audit, types.FunctionType), ml.audit"
    )
    subprocess.run([sys.executable, "-c", statement], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import mlflow_lipschitz as ml

    with pytest.raises(AttributeError, match="no attribute 'certify_everything'"):
        _ = ml.certify_everything
