"""The composite action, its steps run as GitHub runs them: summary, outputs, annotations and exit codes; and nothing injected."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from tests.cli.conftest import POLICY
from tests.plugins.actions import Finished, run_action, value_of, wanted
from tests.registry.conftest import sqlite_store, store  # noqa: F401
from tests.registry.stores import fresh_name, log_onnx, rows

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "plugins" / "github_action"
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, sqlite_store: str) -> tuple[str, str]:  # noqa: F811
    """The URI of a registered version, and its store."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(sqlite_store)
    mlflow.set_registry_uri(sqlite_store)
    mlflow.set_experiment("tests")
    name = fresh_name("action")
    log_onnx(name)
    mlflow.set_tracking_uri(before)
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    os.environ.pop("MLFLOW_REGISTRY_URI", None)  # which set_registry_uri leaves
    return f"models:/{name}/1", sqlite_store


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A checked out repository with policies and rows."""
    folder = tmp_path / "workspace"
    (folder / "policies").mkdir(parents=True)
    (folder / "policies" / "fair.yaml").write_text(POLICY.replace("LIMIT", "1000.0"))
    (folder / "policies" / "strict.yaml").write_text(POLICY.replace("LIMIT", "0.0"))
    (folder / "policies" / "wrong.yaml").write_text(POLICY.replace("LIMIT", "many") + "colour: red\n")
    np.savez(folder / "rows.npz", points=rows())
    # What a pull request could leave lying around, to be run in the place of a library.
    for name in ("yaml.py", "click.py", "mlflow_lipschitz.py", "json.py"):
        (folder / name).write_text("raise SystemExit('code of the workspace was run')\n")
    return folder


def acted(model: tuple[str, str], workspace: Path, policy: str, **changes: str) -> Finished:
    inputs = {
        "policy": f"policies/{policy}.yaml",
        "model-uri": model[0],
        "data": "rows.npz",
        "tracking-uri": model[1],
        "version": "installed",
        "python-version": "",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    environment = {"PYTHONPATH": str(ROOT), "MLFLOW_REGISTRY_URI": model[1], "GITHUB_REPOSITORY": "o/r"}
    return run_action(ACTION, inputs, workspace, environment)


def test_a_passing_audit(model: tuple[str, str], workspace: Path) -> None:
    done = acted(model, workspace, "fair", sarif="true")
    assert done.codes == {"Audit": 0}, done.log
    out = workspace / "lipschitz-audit"
    assert done.outputs["verdict"] == "passed"
    assert done.outputs["exit-code"] == "0"
    assert re.fullmatch(r"[0-9a-f]{32}", done.outputs["run-id"])
    assert done.outputs["attestation"].startswith("sha256:")
    assert (workspace / done.outputs["report"]).samefile(out / "report.html")
    assert (workspace / done.outputs["directory"]).samefile(out)
    assert json.loads((workspace / done.outputs["sarif"]).read_text())["runs"][0]["results"] == []
    assert done.summary.startswith("## PASSED")
    assert done.annotations == []
    assert done.not_run == ["github/codeql-action/upload-sarif", "actions/upload-artifact"]
    assert done.skipped == ["Set up Python", "Install", "Comment on the pull request"]


def test_a_blocked_model_fails_the_step_with_annotations_on_the_policy(model: tuple[str, str], workspace: Path) -> None:
    done = acted(model, workspace, "strict", sarif="true")
    assert done.codes == {"Audit": 1}
    assert (done.outputs["verdict"], done.outputs["exit-code"]) == ("blocked", "1")
    assert done.summary.startswith("## BLOCKED")
    annotation, other = done.annotations
    assert "title=implicit-certified-fraction" in other
    line = 1 + POLICY.splitlines().index("  - {id: steadiness, type: lipschitz_at_most, max: LIMIT}")
    assert annotation.startswith(f"::error file=policies/strict.yaml,line={line},title=steadiness::")
    result, _ = json.loads((workspace / done.outputs["sarif"]).read_text())["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "policies/strict.yaml"}, "region": {"startLine": line}}
    # What was found is kept although the step failed.
    assert done.not_run == ["github/codeql-action/upload-sarif", "actions/upload-artifact"]


def test_a_mistake_in_the_policy_is_shown_on_its_line(model: tuple[str, str], workspace: Path) -> None:
    stale = workspace / "lipschitz-audit"
    stale.mkdir()
    (stale / "report.html").write_text("of an earlier audit")
    (stale / "audit.sarif").write_text("{}")
    done = acted(model, workspace, "wrong", sarif="true")
    assert done.codes == {"Audit": 2}, done.log
    assert (done.outputs["verdict"], done.outputs["exit-code"]) == ("error", "2")
    assert (done.outputs["run-id"], done.outputs["report"], done.outputs["sarif"]) == ("", "", "")
    assert [a.split(",title")[0] for a in done.annotations] == [
        "::error file=policies/wrong.yaml,line=7",
        "::error file=policies/wrong.yaml,line=8",
    ]
    assert done.summary.startswith("## ERROR")
    assert "nothing is passed" in done.summary


def test_an_audit_that_fails_is_an_error_also_where_blocking_is_allowed(
    model: tuple[str, str], workspace: Path
) -> None:
    absent = model[0].replace("/1", "/77")
    done = acted((absent, model[1]), workspace, "fair", fail_on="error")
    assert done.codes == {"Audit": 3}, done.log
    assert (done.outputs["verdict"], done.outputs["exit-code"]) == ("error", "3")
    (annotation,) = done.annotations
    assert annotation.startswith("::error title=audit failed::")
    assert done.summary.startswith("## ERROR")


HOSTILE = [
    "models:/x/1; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    '"; touch pwned; "',
    "'\ntouch pwned\n'",
    "--help",
    "--policy=policies/fair.yaml",
    "x\n::set-output name=verdict::passed",
    "verdict<<x\npassed\nx",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_inputs_are_no_commands_and_no_options(text: str, script: ModuleType) -> None:
    names = ("POLICY", "DATA", "TRACKING_URI", "DEVICE", "CHUNK_SIZE", "OUT", "MODEL_URI")
    command = script.command({f"INPUT_{name}": text for name in names})
    options, (end, uri) = command[5:-2], command[-2:]
    assert (end, uri) == ("--", text)
    assert all(option.split("=", 1)[1] == text for option in options)
    assert len(options) == len(names) - 1
    assert script.parsed(script.output("run-id", text) + script.output("verdict", "error")) == {
        "run-id": "\n".join(text.splitlines()),
        "verdict": "error",
    }


def test_a_hostile_name_is_not_run(model: tuple[str, str], workspace: Path) -> None:
    done = acted(("$(touch pwned)`touch pwned`'\"; touch pwned #", model[1]), workspace, "fair", out="$(touch pwned)")
    assert done.codes["Audit"] == 3 or done.codes["Audit"] == 2
    assert done.outputs["verdict"] == "error"
    assert not list(workspace.rglob("pwned"))


@pytest.mark.parametrize(
    "version", ["", "0.1.0 evil", "--index-url=http://x", "@ http://x/y.whl", "1.0\n2.0", "*", "../x"]
)
def test_only_versions_are_installed(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install = loaded("install")
    monkeypatch.setenv("INPUT_VERSION", version)
    # pip must not be reached; if it were, nothing may come from the network in a test.
    monkeypatch.setattr(install.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    assert install.main() == 2
    assert all(install.VERSION.fullmatch(good) for good in ("0.1.0", "1.2.3rc1", "2.0.post1"))


def loaded(name: str) -> ModuleType:
    """A script of the action as a module."""
    spec = importlib.util.spec_from_file_location(name, ACTION / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script() -> ModuleType:
    return loaded("run_audit")


@pytest.mark.parametrize(
    ("code", "verdict", "fail_on", "step", "said"),
    [
        (0, "passed", "blocked", 0, "passed"),
        (1, "blocked", "blocked", 1, "blocked"),
        (1, "blocked", "error", 0, "blocked"),
        (3, "error", "error", 3, "error"),
        (2, None, "error", 2, "error"),
        # Never passed on the word of one alone.
        (0, None, "error", 3, "error"),
        (0, "blocked", "error", 3, "error"),
        (1, "passed", "error", 3, "error"),
        (3, "passed", "error", 3, "error"),
        (-9, None, "error", 3, "error"),
        (-9, "passed", "error", 3, "error"),
        (0, "passed", "never", 2, "error"),
        (0, "passed", "", 2, "error"),
    ],
)
def test_verdict_and_exit_code_have_to_agree(
    code: int,
    verdict: str | None,
    fail_on: str,
    step: int,
    said: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answering(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """Stands for the audit, which cannot be made to contradict itself."""
        if verdict:
            Path(environment["GITHUB_OUTPUT"]).write_text(script.output("verdict", verdict))
        return code, "last words"

    monkeypatch.setattr(script, "run", answering)
    for name, value in {"FAIL_ON": fail_on, "POLICY": "p.yaml", "OUT": str(tmp_path / "out"), "MODEL_URI": "m"}.items():
        monkeypatch.setenv(f"INPUT_{name}", value)
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "outputs"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    monkeypatch.setenv("RUNNER_TEMP", str(tmp_path))
    assert script.main() == step
    assert script.parsed((tmp_path / "outputs").read_text())["verdict"] == said


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_cancelled_job_lets_the_audit_end_in_order() -> None:
    """The runner sends its signal to the script; the audit gets it, and its exit code is waited for."""
    audit = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3));"
        "print('begun', file=sys.stderr, flush=True); time.sleep(100)"
    )
    script = "import os, run_audit, sys; sys.exit(run_audit.run([sys.executable, '-c', sys.argv[1]], os.environ)[0])"
    step = subprocess.Popen(
        [sys.executable, "-c", script, audit], cwd=ACTION, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert step.stderr is not None
    assert step.stderr.readline() == "begun\n"
    step.send_signal(signal.SIGTERM)
    assert step.wait(60) == 3
    step.stderr.close()


def test_text_that_is_shown_cannot_end_its_block(script: ModuleType) -> None:
    block = script.code_block("a\n```\n# heading\n`````\nb")
    fence = block.splitlines()[0]
    assert len(fence) == 6
    assert block.splitlines().count(fence) == 2


class Api:
    """Stands for GitHub's API, which is not to be reached from a test: comments of one pull request, over real HTTP."""

    def __init__(self, comments: list[dict[str, Any]], status: int = 200) -> None:
        self.comments, self.status = comments, status
        self.calls: list[tuple[str, str, str | None]] = []

    @contextmanager
    def served(self) -> Iterator[str]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.calls.append(("GET", self.path, self.headers["Authorization"]))
                page = int(self.path.rsplit("=", 1)[1])
                self.answer(api.comments[100 * (page - 1) : 100 * page])

            def do_POST(self) -> None:
                self.written("POST")

            def do_PATCH(self) -> None:
                self.written("PATCH")

            def written(self, method: str) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.calls.append((method, self.path, content["body"]))
                self.answer({})

            def answer(self, content: Any) -> None:
                self.send_response(api.status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that comments, in a job for pull request 7."""
    (tmp_path / "event.json").write_text(json.dumps({"pull_request": {"number": 7}}))
    (tmp_path / "summary.md").write_text("## BLOCKED: `models:/m/1`\n")
    values = {
        "GITHUB_EVENT_PATH": str(tmp_path / "event.json"),
        "SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_TOKEN": "secret",
        "GITHUB_WORKFLOW": "model-audit",
        "GITHUB_JOB": "audit",
        "INPUT_POLICY": "policies/strict.yaml",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return loaded("sticky_comment")


def user(kind: str, body: str, number: int) -> dict[str, Any]:
    return {"id": number, "user": {"type": kind}, "body": body}


def test_one_comment_is_added_and_then_kept_up_to_date(comment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api([user("User", f"{comment.marker()}\nby somebody else", 1), user("Bot", "another bot", 2)])
    with api.served() as url:
        monkeypatch.setenv("GITHUB_API_URL", url)
        assert comment.main() == 0
        assert api.calls[0] == ("GET", "/repos/o/r/issues/7/comments?per_page=100&page=1", "Bearer secret")
        method, path, body = api.calls[1]
        assert (method, path) == ("POST", "/repos/o/r/issues/7/comments")
        assert body is not None and body.startswith(comment.marker()) and "## BLOCKED" in body
        api.comments += [user("User", "talk", n) for n in range(10, 150)] + [user("Bot", body, 500)]
        assert comment.main() == 0
    assert api.calls[-1][:2] == ("PATCH", "/repos/o/r/issues/comments/500")
    assert [call[0] for call in api.calls] == ["GET", "POST", "GET", "GET", "PATCH"]


def test_another_job_or_policy_has_a_comment_of_its_own(comment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = comment.marker()
    monkeypatch.setenv("INPUT_POLICY", "policies/fair.yaml")
    assert comment.marker() != ours


def test_a_comment_that_is_refused_is_a_warning(
    comment: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Api([], status=403).served() as url:
        monkeypatch.setenv("GITHUB_API_URL", url)
        assert comment.main() == 0
    assert capsys.readouterr().out.startswith(
        "::warning title=comment::the comment could not be written: HTTP Error 403"
    )


def test_without_a_pull_request_there_is_no_comment(comment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(comment.os.environ["GITHUB_EVENT_PATH"]).write_text("{}")
    monkeypatch.setattr(comment, "call", lambda *a, **k: pytest.fail("GitHub was called"))
    assert comment.main() == 0


def test_the_comment_step_runs_also_after_a_block(model: tuple[str, str], workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text(json.dumps({"pull_request": {"number": 7}}))
    api = Api([])
    with api.served() as url:
        inputs = {
            **{"policy": "policies/strict.yaml", "model-uri": model[0], "tracking-uri": model[1], "data": "rows.npz"},
            **{"version": "installed", "python-version": "", "comment": "true", "fail-on": "error"},
        }
        environment = {
            **{"PYTHONPATH": str(ROOT), "MLFLOW_REGISTRY_URI": model[1], "GITHUB_REPOSITORY": "o/r"},
            **{"GITHUB_API_URL": url, "GITHUB_EVENT_PATH": str(tmp_path / "event.json")},
        }
        done = run_action(ACTION, inputs, workspace, environment)
    # fail-on: error lets a blocked model go on to the next step; the verdict still says it.
    assert done.codes == {"Audit": 0, "Comment on the pull request": 0}, done.log
    assert (done.outputs["verdict"], done.outputs["exit-code"]) == ("blocked", "1")
    assert [call[0] for call in api.calls] == ["GET", "POST"]
    assert "## BLOCKED" in str(api.calls[1][2])


def workflow_files() -> list[Path]:
    return [
        ACTION / "action.yml",
        *(ROOT / ".github" / "workflows").glob("*.yml"),
        *(ROOT / "examples").rglob("*.yml"),
    ]


def strings(value: Any, key: str) -> Iterator[str]:
    """Every value under `key`, anywhere."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                yield inner
            yield from strings(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, key)


def test_every_action_is_pinned_to_a_commit() -> None:
    used = [(path.name, use) for path in workflow_files() for use in strings(yaml.safe_load(path.read_text()), "uses")]
    assert len(used) > 6
    assert [(name, use) for name, use in used if not (PINNED.fullmatch(use) or use.startswith("./"))] == []


def test_no_expression_is_part_of_a_script() -> None:
    for path in workflow_files():
        for script in strings(yaml.safe_load(path.read_text()), "run"):
            assert "${{" not in script, f"{path.name}: {script}"


def test_every_input_reaches_a_step_and_every_output_exists(script: ModuleType) -> None:
    text = (ACTION / "action.yml").read_text()
    action = yaml.safe_load(text)
    for name in action["inputs"]:
        assert f"inputs.{name}" in text, name
    asked = set(re.findall(r"steps\.audit\.outputs\.([\w-]+)", text))
    source = (ACTION / "run_audit.py").read_text()
    assert asked == set(re.findall(r'^        "([\w-]+)": ', source[source.index("outputs = {") :], re.MULTILINE))


@pytest.mark.parametrize(
    ("condition", "failed", "runs"),
    [
        ("inputs.a == 'x'", False, True),
        ("inputs.a == 'x'", True, False),
        ("always() && inputs.a == 'x'", True, True),
        ("always() && inputs.a != 'x' || failure()", True, True),
        ("${{ !cancelled() && (inputs.a == 'y' || inputs.b == '') }}", True, True),
        ("steps.none.outputs.x != ''", False, False),
    ],
)
def test_the_runner_of_these_tests_understands_conditions(condition: str, failed: bool, runs: bool) -> None:
    context = {"inputs": {"a": "x", "b": ""}, "steps": {}}
    assert wanted(condition, context, failed=failed) == runs
    with pytest.raises(AssertionError):
        value_of("inputs.a == 'x' inputs.b", context, failed=False)
