"""Commands on real models in a real store: exit codes, one line per check, formats, and every bad input of the contract."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
from mlflow.models import infer_signature
from mlflow.tracking import MlflowClient
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LinearRegression

from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.gate.table import BoundsTable
from tests.cli.conftest import Answer
from tests.registry.stores import FEATURES, artifact_folder, fresh_name, log_onnx, rows

Command = Callable[..., Answer]
pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def uri() -> str:
    """A registered version of a small network."""
    name = fresh_name()
    log_onnx(name)
    return f"models:/{name}/1"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npz"
    np.savez(path, points=rows())
    return path


def tags_of(uri: str) -> dict[str, str]:
    name, version = uri.removeprefix("models:/").split("/")
    return dict(MlflowClient().get_model_version(name, version).tags)


def test_a_passed_audit_is_0_and_leaves_its_evidence(
    command: Command, uri: str, data: Path, policy: Path, tmp_path: Path
) -> None:
    answer = command("audit", uri, "--policy", policy, "--data", data, "--out", tmp_path / "out")
    assert (answer.code, answer.err.count("certifying")) == (0, 1)
    lines = answer.out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["ok", "steadiness"],
        ["ok", "implicit-points"],
        ["ok", "implicit-certified-fraction"],
    ]
    assert lines[-1] == f"passed: {uri}"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("report.html", "summary.md", "points.parquet", "points.json"),
        *("certificates.npz", "certificates.json", "graph.npz"),
        *("suite.json", "validation.json", "policy.yaml", "attestation.json", "junit.xml", "audit.sarif"),
    }
    assert tags_of(uri)["lipschitz.verdict"] == "passed"
    run = MlflowClient().get_run(tags_of(uri)["lipschitz.run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["lipschitz/certified_fraction"] == 1.0
    assert run.data.metrics["lipschitz/checks_failed_critical"] == 0.0


def test_a_blocked_audit_is_1_and_cannot_be_promoted(
    command: Command, uri: str, data: Path, strict_policy: Path, policy: Path
) -> None:
    answer = command("audit", uri, "--policy", strict_policy, "--data", data)
    assert answer.code == 1
    assert answer.out.startswith("FAIL")
    assert answer.out.splitlines()[-1] == f"blocked: {uri}"
    refused = command("promote", uri, "--alias", "champion")
    assert refused.code == 1
    assert "its verdict is 'blocked'" in refused.err
    assert command("audit", uri, "--policy", policy, "--data", data).code == 0
    promoted = command("promote", uri, "--alias", "champion")
    assert promoted.code == 0
    assert "alias champion" in promoted.out
    name = uri.removeprefix("models:/").split("/")[0]
    assert str(MlflowClient().get_model_version_by_alias(name, "champion").version) == "1"


def test_the_policy_to_promote_under_can_be_fixed(
    command: Command, uri: str, data: Path, policy: Path, strict_policy: Path, tmp_path: Path
) -> None:
    assert command("audit", uri, "--policy", policy, "--data", data).code == 0
    refused = command("promote", uri, "--alias", "champion", "--policy", strict_policy)
    assert refused.code == 1
    assert "is what it has to pass" in refused.err
    assert command("promote", uri, "--alias", "champion", "--policy", tmp_path / "absent.yaml").code == 2
    promoted = command("promote", uri, "--alias", "champion", "--policy", policy)
    assert promoted.code == 0
    assert "policy passed: tests@1 sha256:" in promoted.out
    assert "policy passed: tests@1 sha256:" in command("promote", uri, "--alias", "champion", "--dry-run").out


def test_promoting_what_was_never_audited_is_1(command: Command, uri: str) -> None:
    answer = command("promote", uri, "--alias", "champion")
    assert answer.code == 1
    assert "no audit is on record" in answer.err


def test_json_is_strict_and_complete(command: Command, uri: str, data: Path, strict_policy: Path) -> None:
    answer = command("audit", uri, "--policy", strict_policy, "--data", data, "--format", "json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(answer.out, parse_constant=refuse)
    assert document["verdict"] == "blocked"
    assert [check["id"] for check in document["checks"]] == [
        "steadiness",
        "implicit-points",
        "implicit-certified-fraction",
    ]
    assert document["metrics"]["lipschitz/checks_failed_critical"] >= 1
    assert MlflowClient().get_run(document["run_id"]).info.status == "FINISHED"


def test_github_gets_annotations_and_a_summary(
    command: Command, uri: str, data: Path, strict_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    answer = command("audit", uri, "--policy", strict_policy, "--data", data, "--format", "github")
    assert answer.code == 1
    assert f"::error file={strict_policy},line=7,title=steadiness::" in answer.out
    assert summary.read_text().startswith("## BLOCKED")


def test_the_input_example_stands_in_for_missing_data(command: Command, uri: str, policy: Path) -> None:
    answer = command("audit", uri, "--policy", policy)
    assert answer.code == 0
    assert "2 rows audited" in answer.out


# Bad input: one test per row of the contract.


def jumping_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"], name="layer"),
        helper.make_node("Sign", ["z"], ["p"], name="head"),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="last"),
    ]
    weights = [
        numpy_helper.from_array(np.ones((FEATURES, 2), dtype=np.float32), "w"),
        numpy_helper.from_array(np.ones((2, 1), dtype=np.float32), "v"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_an_operator_without_rule_is_3_and_nothing_is_passed(command: Command, data: Path, policy: Path) -> None:
    name = fresh_name()
    with mlflow.start_run():
        mlflow.onnx.log_model(
            jumping_model(),
            name="model",
            registered_model_name=name,
            signature=infer_signature(rows()),
            pip_requirements=["onnxruntime"],
        )
    answer = command("audit", f"models:/{name}/1", "--policy", policy, "--data", data)
    assert answer.code == 3
    assert "Sign" in answer.err
    assert "'head'" in answer.err
    assert tags_of(f"models:/{name}/1")["lipschitz.verdict"] == "error"
    assert command("promote", f"models:/{name}/1", "--alias", "champion").code == 1
    listed = command("support", f"models:/{name}/1")
    assert listed.code == 3
    assert "unsupported" in listed.out
    assert "1 unsupported" in listed.out


def test_a_pickled_model_is_refused_before_loading(command: Command, data: Path, policy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "code-ran"
    name = fresh_name()
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            LinearRegression().fit(rows(), rows()[:, 0]),
            name="model",
            registered_model_name=name,
            signature=infer_signature(rows()),
            serialization_format="pickle",
            pip_requirements=["scikit-learn"],
        )
    stored = next(artifact_folder(MlflowClient(), info.model_id).rglob("model.pkl"))

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(marker), "w"))

    stored.write_bytes(pickle.dumps(Bomb()))
    answer = command("audit", f"models:/{name}/1", "--policy", policy, "--data", data)
    assert answer.code == 2
    assert "--trust-pickle" in answer.err
    assert "skops" in answer.err
    assert not marker.exists()


def test_a_graph_that_is_not_the_served_model_is_3(
    command: Command, uri: str, data: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_lipschitz.registry import loading

    honest = loading._OnnxServer.__call__

    def dishonest(self: object, points: np.ndarray) -> np.ndarray:
        answers = honest(self, points).copy()  # type: ignore[arg-type]
        answers[5] += 1.0
        return answers

    # The fault is injected at the served model: a store that serves something else than it stores cannot be built honestly.
    monkeypatch.setattr(loading._OnnxServer, "__call__", dishonest)
    answer = command("audit", uri, "--policy", policy, "--data", data)
    assert answer.code == 3
    assert "row 5" in answer.err
    assert tags_of(uri)["lipschitz.verdict"] == "error"


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("x0,x1,x2\n1,2,3\n1,nan,3\n", "row 1, column 'x1'"),
        ("x0,x1,x2\n1,2,3\n1,2,inf\n", "row 1, column 'x2'"),
        ("x0,x1,x2\n1,2,three\n", "row 0, column 'x2': 'three' is not a number"),
        ("x0,x1\n1,2\n", "2 feature column"),
        ("x0,x1,x2\n", "no rows"),
        ("", "cannot be read"),
    ],
)
def test_rows_that_cannot_be_used_are_2(
    content: str, shown: str, command: Command, uri: str, policy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    answer = command("audit", uri, "--policy", policy, "--data", path)
    assert answer.code == 2
    assert shown in answer.err
    assert "lipschitz.verdict" not in tags_of(uri)


def test_a_row_outside_the_domain_is_2(command: Command, uri: str, data: Path, policy: Path) -> None:
    policy.write_text(policy.read_text() + "inputs: {domain: {x0: [-0.001, 0.001]}}\n")
    answer = command("audit", uri, "--policy", policy, "--data", data)
    assert answer.code == 2
    assert "column 'x0'" in answer.err
    assert "outside the domain [-0.001, 0.001]" in answer.err


def test_an_absent_device_is_2(command: Command, uri: str, data: Path, policy: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    answer = command("audit", uri, "--policy", policy, "--data", data, "--device", "cuda")
    assert answer.code == 2
    assert "cuda" in answer.err


def test_a_policy_with_errors_is_2_with_every_line(command: Command, uri: str, data: Path, policy: Path) -> None:
    policy.write_text(policy.read_text().replace("norm: linf", "norm: l7").replace("max: 1000.0", "maximum: 1"))
    for arguments in (("policy", "check", policy), ("audit", uri, "--policy", policy, "--data", data)):
        answer = command(*arguments)
        assert answer.code == 2
        assert "line 5" in answer.err
        assert "line 7" in answer.err
    assert command("policy", "check", policy.parent / "absent.yaml").code == 2


def test_names_the_model_does_not_have_are_2(command: Command, uri: str, data: Path, policy: Path) -> None:
    policy.write_text(policy.read_text() + "  - {id: up, type: monotone, feature: bmi, direction: increasing}\n")
    answer = command("audit", uri, "--policy", policy, "--data", data)
    assert answer.code == 2
    assert "unknown feature 'bmi'" in answer.err
    assert "line 8" in answer.err
    assert "lipschitz.verdict" not in tags_of(uri)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "models-store"])
def test_an_unreachable_store_is_3(
    address: str, command: Command, uri: str, data: Path, policy: Path, tmp_path: Path
) -> None:
    if not address.startswith("http"):
        address = f"sqlite:///{tmp_path / 'absent' / 'folder' / 'mlflow.db'}"
    answer = command("audit", uri, "--policy", policy, "--data", data, "--tracking-uri", address)
    assert answer.code == 3
    assert answer.err.startswith("error: ")


@pytest.mark.parametrize("wrong", ["models:/absent/1", "models:/absent@champion", "runs:/absent/model"])
def test_a_model_that_is_not_there_is_3(wrong: str, command: Command, data: Path, policy: Path) -> None:
    assert command("audit", wrong, "--policy", policy, "--data", data).code == 3


def test_a_run_deleted_midway_is_3_and_the_artifacts_stay(
    command: Command, uri: str, data: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_lipschitz import audit as _  # noqa: F401 - the function; its module is patched below

    module = sys.modules["mlflow_lipschitz.audit"]
    original = module.judge  # type: ignore[attr-defined]

    def deleting(*arguments: object, **options: object) -> object:
        client = MlflowClient()
        experiment = client.get_experiment_by_name("tests")
        newest = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]
        client.delete_run(newest.info.run_id)
        return original(*arguments, **options)

    monkeypatch.setattr(module, "judge", deleting)
    answer = command("audit", uri, "--policy", policy, "--data", data, "--out", tmp_path / "out")
    assert answer.code == 3
    assert str(tmp_path / "out") in answer.err
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "attestation.json").is_file()
    assert tags_of(uri).get("lipschitz.verdict") != "passed"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_finished_rows_and_resume_goes_on(
    number: signal.Signals,
    command: Command,
    uri: str,
    data: Path,
    policy: Path,
    tmp_path: Path,
    store: str,
) -> None:
    out = tmp_path / "out"
    arguments = ["audit", uri, "--policy", policy, "--data", data, "--out", out, "--chunk-size", 2]
    # The signal is sent by the process to itself after the second chunk, so that no timing is involved.
    script = textwrap.dedent(
        f"""
        import os
        import mlflow_lipschitz.report.progress as progress
        from contextlib import contextmanager

        @contextmanager
        def interrupting(title, console=None):
            def report(done, total, gap):
                if done >= 4:
                    os.kill(os.getpid(), {int(number)})
            yield report

        progress.progress = interrupting
        from mlflow_lipschitz.cli.__main__ import run
        raise SystemExit(run({[str(a) for a in arguments]!r}))
        """
    )
    root = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": root}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ended.returncode == 3, ended.stderr
    assert f"interrupted: 4 of 8 rows are finished and kept in {out}" in ended.stderr
    assert len(list((out / "work").glob("*.npz"))) == 2
    assert json.loads((out / "partial.json").read_text())["status"] == "KILLED"
    partial = BoundsTable.read(out / "points.partial.parquet")
    assert partial.columns["status"].tolist() == ["certified"] * 4 + ["undecided"] * 4
    assert not (out / "attestation.json").exists()
    experiment = MlflowClient().get_experiment_by_name("tests")
    newest = MlflowClient().search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]
    assert newest.info.status == "KILLED"
    assert "lipschitz.verdict" not in tags_of(uri)

    resumed = command(*arguments, "--resume")
    assert resumed.code == 0
    assert "4/8 rows were finished before" in resumed.err
    assert not (out / "work").exists()
    assert not list(out.glob("*partial*"))
    whole = command(*arguments[:-4], "--out", tmp_path / "whole", "--chunk-size", 2)
    assert whole.code == 0
    digests = [BoundsTable.read(folder / "points.parquet").bounds_digest() for folder in (out, tmp_path / "whole")]
    assert digests[0] == digests[1]
    assert "4 of 8 rows are from the journal of an earlier run" in (out / "report.html").read_text()


def test_a_resumption_needs_a_directory_and_the_same_question(
    command: Command, uri: str, data: Path, policy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    audit = ("audit", uri, "--data", data, "--chunk-size", 2)
    answer = command(*audit, "--policy", policy, "--resume")
    assert (answer.code, "give --out" in answer.err) == (2, True)

    def failing(*_: object) -> None:
        raise AuditError("the store is gone")

    with pytest.MonkeyPatch.context() as patch:
        # A store that disappears after the last bound and before the first upload.
        patch.setattr(import_module("mlflow_lipschitz.audit"), "log_audit", failing)
        answer = command(*audit, "--policy", policy, "--out", out)
    assert answer.code == 3
    assert len(list((out / "work").glob("*.npz"))) == 4
    other = tmp_path / "other.yaml"
    other.write_text(policy.read_text().replace("1000.0", "2000.0"))
    answer = command(*audit, "--policy", other, "--out", out, "--resume")
    assert (answer.code, "it had another policy (digest)" in answer.err) == (2, True)
    answer = command(*audit, "--policy", policy, "--out", out, "--resume")
    assert answer.code == 0
    assert "8/8 rows were finished before" in answer.err
    assert not (out / "work").exists()


def test_support_lists_every_node(command: Command, uri: str) -> None:
    answer = command("support", uri)
    assert answer.code == 0
    for name in ("first_layer", "relu", "second_layer"):
        assert name in answer.out
    assert "3 nodes, 0 unsupported" in answer.out
    assert "exact" in answer.out and "relaxed" in answer.out


def test_support_keeps_what_decides_and_drops_folders(capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow_lipschitz.cli.output import show_support
    from mlflow_lipschitz.frontends.support import NodeSupport

    place = "layer 'a', " + "/home/someone/models/net.py line 3: return (x - m) / self.spread " * 6
    show_support([NodeSupport("node_with_a_name", "LayerNormalization", place, "unsupported", "no rule")])
    shown = capsys.readouterr().out
    for whole in ("node_with_a_name", "LayerNormalization", "unsupported", "net.py", "/ self.spread"):
        assert whole in shown
    assert "someone" not in shown


def test_the_schema_is_json_and_explanations_are_text(command: Command) -> None:
    assert json.loads(command("policy", "schema").out)["$schema"].startswith("https://json-schema.org")
    kinds = command("explain").out.split()
    assert "monotone" in kinds
    for kind in kinds:
        text = command("explain", kind)
        assert text.code == 0
        assert "does not mean" in text.out


def test_several_policies_are_checked_and_every_mistake_is_said(
    command: Command, policy: Path, strict_policy: Path, tmp_path: Path
) -> None:
    assert command("policy", "check", policy, strict_policy).out.count("ok: ") == 2
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("checks: []\n")
    answer = command("policy", "check", wrong, tmp_path / "absent.yaml", policy)
    assert answer.code == 2
    assert (answer.out.count("ok: "), answer.err.count("error: ")) == (1, 2)
