"""What CI reads must be this audit's outcome: no leftovers, no two audits in one folder, no forged lines, no lost alias."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.cli.failures import exit_code_of
from mlflow_lipschitz.errors import InvalidData, PromotionRefused
from mlflow_lipschitz.pipeline.workplace import workplace
from tests.cli.conftest import Answer
from tests.registry.stores import fresh_name, log_onnx, rows

Command = Callable[..., Answer]
pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def uri() -> str:
    name = fresh_name()
    log_onnx(name)
    return f"models:/{name}/1"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npz"
    np.savez(path, points=rows())
    return path


def alias_of(uri: str, alias: str) -> str | None:
    try:
        return str(MlflowClient().get_model_version_by_alias(uri.removeprefix("models:/").split("/")[0], alias).version)
    except MlflowException:
        return None


@pytest.mark.parametrize("spoil", ["policy", "data", "model"])
def test_a_failed_audit_leaves_no_report_of_an_earlier_one(
    spoil: str, command: Command, uri: str, data: Path, policy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command("audit", uri, "--policy", policy, "--data", data, "--out", out).code == 0
    assert (out / "junit.xml").is_file()
    if spoil == "policy":
        policy.write_text("checks: []\n")
    elif spoil == "data":
        np.savez(data, points=np.full((2, 3), np.nan))
    model = "models:/absent/1" if spoil == "model" else uri
    assert command("audit", model, "--policy", policy, "--data", data, "--out", out).code in (2, 3)
    assert {path.name for path in out.iterdir()} == {"policy.yaml"}


def test_a_policy_inside_out_survives(command: Command, uri: str, data: Path, policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("audit", uri, "--policy", policy, "--data", data, "--out", out).code == 0
    assert command("audit", uri, "--policy", out / "policy.yaml", "--data", data, "--out", out).code == 0


def test_two_audits_in_one_directory_are_2(
    command: Command, uri: str, data: Path, policy: Path, tmp_path: Path
) -> None:
    with workplace(tmp_path / "out"):
        answer = command("audit", uri, "--policy", policy, "--data", data, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "another audit" in answer.err


def test_a_warning_that_blocks_is_a_failure_everywhere(
    command: Command, uri: str, data: Path, strict_policy: Path, tmp_path: Path
) -> None:
    text = strict_policy.read_text().replace("max: 0.0", "max: 0.0, severity: warning")
    out = tmp_path / "out"
    shown = ("--data", data, "--out", out, "--format", "github")
    for gate, code, word in (("warning", 1, "FAIL"), ("critical", None, "warn")):
        strict_policy.write_text(f"{text}gate: {{fail_on: {gate}}}\n")
        answer = command("audit", uri, "--policy", strict_policy, *shown)
        assert code in (None, answer.code)
        assert answer.out.startswith(word)
        case = next(c for c in ElementTree.parse(out / "junit.xml").getroot() if c.get("name") == "steadiness")
        assert (case[0].tag == "failure") == (gate == "warning")
        assert (f"::error file={strict_policy},line=7" in answer.out) == (gate == "warning")


EVIL = "r\x1b[2J\x1b[H\nok    everything\npassed: models:/x/1\n::stop-commands::abc\n\u202e"


@pytest.mark.parametrize("style", ["text", "github"])
def test_a_row_id_cannot_forge_a_line(
    style: str, command: Command, uri: str, strict_policy: Path, tmp_path: Path
) -> None:
    table = pd.DataFrame(rows(), columns=["x0", "x1", "x2"], index=[f"{EVIL}{i}" for i in range(8)])
    table.to_parquet(tmp_path / "rows.parquet")
    answer = command("audit", uri, "--policy", strict_policy, "--data", tmp_path / "rows.parquet", "--format", style)
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert not any(line.startswith(("passed", "::stop", "ok    everything")) for line in lines)
    assert not set("\x1b\u202e") & set(answer.out)
    table.iloc[0, 0] = np.nan
    table.to_parquet(tmp_path / "rows.parquet")
    refused = command("audit", uri, "--policy", strict_policy, "--data", tmp_path / "rows.parquet")
    assert refused.code == 2
    assert "\x1b" not in refused.err
    assert len(refused.err.splitlines()) == 1


def test_an_error_message_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise InvalidData(f"row {EVIL}: nan")

    assert exit_code_of(fail) == 2
    shown = capsys.readouterr().err.rstrip("\n").split("\n")
    assert shown[0].startswith("error: row r\\x1b[2J")
    assert all(line.startswith("  ") and not line.strip().startswith("::") for line in shown[1:])
    assert not set("\x1b\u202e") & set("".join(shown))


def with_alias(policy: Path) -> Path:
    policy.write_text(policy.read_text() + "gate: {on_pass: {alias: certified}}\n")
    return policy


def test_on_pass_sets_the_alias_through_promotion(command: Command, uri: str, data: Path, policy: Path) -> None:
    answer = command("audit", uri, "--policy", with_alias(policy), "--data", data)
    assert answer.code == 0
    assert "is now alias certified" in answer.out
    assert alias_of(uri, "certified") == "1"
    version = MlflowClient().get_model_version(uri.split("/")[1], "1")
    assert '"alias": "certified"' in version.tags["lipschitz.promotion"]


def test_a_blocked_audit_sets_no_alias(command: Command, uri: str, data: Path, strict_policy: Path) -> None:
    assert command("audit", uri, "--policy", with_alias(strict_policy), "--data", data).code == 1
    assert alias_of(uri, "certified") is None


def test_an_alias_that_cannot_be_set_is_3(
    command: Command, uri: str, data: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PromotionRefused("the files have changed since the audit")

    # Files that change between an audit and its promotion cannot be placed there from outside.
    monkeypatch.setattr("mlflow_lipschitz.pipeline.on_pass.promote", refuse)
    answer = command("audit", uri, "--policy", with_alias(policy), "--data", data)
    assert answer.code == 3
    assert "the alias 'certified' was not set: the files have changed" in answer.err
    assert alias_of(uri, "certified") is None
    assert MlflowClient().get_model_version(uri.split("/")[1], "1").tags["lipschitz.verdict"] == "passed"


def test_an_alias_for_what_is_no_version_is_2_before_any_work(command: Command, data: Path, policy: Path) -> None:
    info = log_onnx()
    answer = command("audit", f"runs:/{info.run_id}/model", "--policy", with_alias(policy), "--data", data)
    assert answer.code == 2
    assert "no registered version" in answer.err
