"""Examples for CI systems: valid for the system's own schema where a package ships it, and every command in them exists."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlflow_lipschitz.cli.__main__ import cli
from tests.cli.conftest import POLICY
from tests.registry.conftest import sqlite_store, store  # noqa: F401
from tests.registry.stores import fresh_name, log_onnx, rows

ROOT = Path(__file__).parents[2]
CI = ROOT / "examples" / "ci"
SCHEMAS = {
    "github-actions": [ROOT / "plugins" / "github_action" / "action.yml"],
    "github-workflows": [*sorted((ROOT / ".github" / "workflows").glob("*.yml")), ROOT / "examples" / "audit.yml"],
    "gitlab-ci": [CI / "gitlab-ci.yml"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_are_valid_for_their_system(schema: str, tmp_path: Path) -> None:
    def checked(*files: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
        return subprocess.run(command, capture_output=True, text=True)

    found = checked(*SCHEMAS[schema])
    assert found.returncode == 0, found.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(
        SCHEMAS[schema][0].read_text().replace("runs:", "run:").replace("script:", "scripts:").replace("on:", "no:")
    )
    assert checked(broken).returncode == 1


def test_the_pre_commit_example_is_valid() -> None:
    from pre_commit.clientlib import load_config

    ((repository,), hook) = load_config(CI / "pre-commit-config.yaml")["repos"], "lipschitz-policy"
    (given,) = repository["hooks"]
    assert given["id"] == hook
    assert re.search(given["files"], "policies/credit-scorer.yaml")


def commands() -> list[tuple[str, list[str]]]:
    """Every command of ours in the examples, as the arguments that a shell would hand over."""
    found = []
    for path in sorted(CI.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            for line in path.read_text(encoding="utf-8").splitlines():
                match = re.search(r"mlflow-lipschitz ((?:audit|promote|policy check)\b[^']*)", line)
                if match and not line.lstrip().startswith(("#", '"""')):
                    found.append((path.name, shlex.split(match[1])))
    return found


def test_every_command_in_the_examples_exists() -> None:
    found = commands()
    assert {name for name, _ in found} == {"Jenkinsfile", "airflow_dag.py", "gitlab-ci.yml", "pre-commit-config.yaml"}
    for name, arguments in found:
        context = cli.make_context("mlflow-lipschitz", list(arguments), resilient_parsing=False)
        group = cli
        while arguments and (command := group.get_command(context, arguments[0])):
            arguments = arguments[1:]
            if not hasattr(command, "get_command"):
                break
            group = command
        given = [*arguments, "policies/a.yaml"] if name.startswith("pre-commit") else arguments
        command.make_context(command.name, list(given), parent=context)  # an unknown option raises
        if command.name != "check":
            # Text that somebody else chose comes behind the options, as one word.
            assert arguments[-2:] == ["--", "$MODEL_URI"], name


def test_the_jenkinsfile_leaves_parameters_to_the_shell() -> None:
    text = (CI / "Jenkinsfile").read_text()
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    scripts = re.findall(r"\bsh\s+(.)", text)
    assert scripts and set(scripts) == {"'"}


def test_the_dag_keeps_templates_out_of_commands() -> None:
    tree = ast.parse((CI / "airflow_dag.py").read_text())
    returned = [
        n.value.value for n in ast.walk(tree) if isinstance(n, ast.Return) and isinstance(n.value, ast.Constant)
    ]
    assert len(returned) == 2
    assert not any("{{" in command for command in returned)
    assert not any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree))


def test_the_workflow_of_this_repository_asks_for_what_the_action_has() -> None:
    action = yaml.safe_load((ROOT / "plugins" / "github_action" / "action.yml").read_text())
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "model-audit.yml").read_text())
    steps = [s for s in workflow["jobs"]["audit"]["steps"] if s.get("uses") == "./plugins/github_action"]
    assert [step["id"] for step in steps] == ["monotone", "plain"]
    required = {name for name, given in action["inputs"].items() if given.get("required")}
    for step in steps:
        assert required <= set(step["with"]) <= set(action["inputs"])
        assert (ROOT / step["with"]["policy"]).is_file()
    asked = re.findall(r"steps\.\w+\.outputs\.(\w+)", (ROOT / ".github" / "workflows" / "model-audit.yml").read_text())
    assert asked and set(asked) <= set(action["outputs"])


def test_the_bundle_of_databricks_names_what_its_script_takes() -> None:
    bundle = yaml.safe_load((CI / "databricks" / "databricks.yml").read_text())
    (task,) = bundle["resources"]["jobs"]["model_audit"]["tasks"]
    (environment,) = bundle["resources"]["jobs"]["model_audit"]["environments"]
    assert task["environment_key"] == environment["environment_key"]
    assert task["max_retries"] == 0
    script = CI / "databricks" / task["spark_python_task"]["python_file"]
    source = script.read_text()
    for parameter in task["spark_python_task"]["parameters"]:
        assert f'"{parameter.split("=")[0].removeprefix("--")}"' in source


def test_the_script_of_databricks_fails_unless_the_model_passes(
    store: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, data = fresh_name("databricks"), tmp_path / "rows.npz"
    log_onnx(name)
    np.savez(data, points=rows())
    spec = importlib.util.spec_from_file_location("audit_model", CI / "databricks" / "audit_model.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(limit: str) -> None:
        policy = tmp_path / f"policy-{limit}.yaml"
        policy.write_text(POLICY.replace("LIMIT", limit))
        asked = [f"--model=models:/{name}/1", f"--policy={policy}", f"--data={data}", f"--out={tmp_path / 'out'}"]
        monkeypatch.setattr(sys, "argv", ["audit_model.py", *asked])
        script.main()

    run("1000.0")
    assert "passed: run " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is blocked"):
        run("0.0")
