"""The scripts of examples/ and the notebook: each runs offline in an empty folder, and tells the story it is there for."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import mlflow
import pytest
import yaml

from mlflow_lipschitz.cli.__main__ import cli
from tests.docs.commands import ROOT, environment, strangers

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"

# What each prints, in this order.
STORIES = {
    "audit_before_promotion.py": ["certified  rises-with-area", "is now alias champion"],
    "certify_a_torch_model.py": ["steepest slope of output 0 is between", "certified signs", "below these radii"],
    "champion_challenger.py": [
        "models:/demand/1 is now alias champion",
        r"models:/demand/2, regularized by 0\.01: blocked \(lipschitz_upper",
        "models:/demand/3, regularized by 22: passed",
        "models:/demand/3 is now alias champion",
    ],
    "evaluate_with_mlflow.py": ["lipschitz/certified_fraction: 1", "lipschitz/checks_failed_critical: 0"],
    "image_radius.py": [
        r"accuracy on 297 other images: 9\d",
        "certified radii of 25 images",
        "certified  robust",
        "verdict: passed",
    ],
    "onnx_only.py": ["MatMul: exact", "Tanh: relaxed", "proved at most", "verdict: passed"],
    "signed_gate.py": [
        "unsigned: audit passed",
        "it is UNSIGNED, and trusted keys are configured",
        "another key: audit passed",
        "which is not a trusted key",
        "the auditor's key: audit passed",
        r"is now alias champion of rent version 1 \(signed by sha256:",
    ],
    "tabular_monotonicity.py": [
        "models:/flat-prices/1: blocked",
        "violated   larger-costs-more",
        r"the price changes by -\d",
        "models:/flat-prices/2: passed",
        "certified  larger-costs-more",
    ],
}
assert not (missing := {path.name for path in EXAMPLES.glob("*.py")} ^ set(STORIES)), missing


@pytest.fixture(autouse=True)
def nobodys_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No store, no keys of the user's; and MLflow's process-wide settings as they were, afterwards."""
    for name in strangers():
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    yield
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(before)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # which mlflow.set_experiment leaves for other processes


@pytest.mark.parametrize("name", sorted(STORIES))
def test_an_example_tells_its_story(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "evaluate" in name and not entry_points(group="mlflow.model_evaluator", name="lipschitz"):
        pytest.skip("MLflow finds evaluators of installed packages only, and this one is not installed")
    specification = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.main(*[tmp_path] * module.main.__code__.co_argcount)
    printed = capsys.readouterr().out
    assert re.search(".*".join(STORIES[name]), printed, re.DOTALL), printed


def test_the_workflow_types_a_command_that_there_is() -> None:
    workflow = yaml.safe_load((EXAMPLES / "audit.yml").read_text(encoding="utf-8"))
    typed = next(step["run"] for step in workflow["jobs"]["audit"]["steps"] if step.get("name") == "audit")
    program, command, uri, *rest = shlex.split(typed)
    assert (program, uri) == ("mlflow-lipschitz", "$MODEL_URI")
    known = cli.commands[command].make_context(command, [uri, *rest], resilient_parsing=False)
    assert known.params["style"] == "github"


def test_every_example_has_its_line_in_the_list() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert {name for name in files if f"`{name}`" not in text} == set()


def test_the_notebook_holds_no_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `test`")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert NOTEBOOK.stat().st_size < 20_000


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `test`")
    from nbclient import NotebookClient

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    # Of this user, and of this test run: no settings from elsewhere.
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    assert re.search("blocked.*may not be promoted.*passed.*is now alias champion", printed, re.DOTALL), printed
