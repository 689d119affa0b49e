"""Every way a command can end has its exit code and a short message; none of them is 0 by accident."""

from __future__ import annotations

import click
import pytest

from mlflow_lipschitz import errors
from mlflow_lipschitz.cli.__main__ import run
from mlflow_lipschitz.cli.failures import exit_code_of
from mlflow_lipschitz.errors import PolicyIssue


def raising(error: BaseException) -> int:
    def command() -> int:
        raise error

    return exit_code_of(command)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UnsupportedOperator("Softmax", "head"), 3),
        (errors.FidelityError("row 3 differs by 0.5"), 3),
        (errors.RegistryError("no server answers"), 3),
        (errors.AuditError("stopped"), 3),
        (errors.PolicyError([PolicyIssue(4, "checks", "unknown key")]), 2),
        (errors.InvalidData("row 7, column 'bmi': nan"), 2),
        (errors.InvalidRegion("empty"), 2),
        (errors.UsageError("no such device"), 2),
        (errors.UntrustedModel("pickled"), 2),
        (errors.PromotionRefused("no audit"), 1),
        (click.UsageError("bad option"), 2),
        (click.ClickException("cannot open"), 3),
        (KeyboardInterrupt(), 3),
        (click.Abort(), 3),
        (ZeroDivisionError("division by zero"), 3),
        (MemoryError(), 3),
    ],
)
def test_exceptions_become_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(error) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip()
    assert "Traceback" not in captured.err


def test_every_error_of_the_package_has_a_code_other_than_zero() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.LipschitzError)]
    assert len(classes) > 8
    assert {c.exit_code for c in classes} == {1, 2, 3}


def test_an_unexpected_error_says_its_kind_and_shows_more_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise ZeroDivisionError("division by zero")

    assert exit_code_of(command) == 3
    assert "unexpected ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert exit_code_of(command, verbose=True) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_command_without_an_answer_has_failed() -> None:
    assert exit_code_of(lambda: None) == 3
    assert exit_code_of(lambda: 0) == 0


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], "Usage"),
        (["no-such-command"], "No such command"),
        (["audit", "models:/m/1"], "Missing option '--policy'"),
        (["audit", "models:/m/1", "--policy", "p", "--device", "tpu"], "'tpu' is not one of"),
        (["audit", "models:/m/1", "--policy", "p", "--format", "xml"], "'xml' is not one of"),
        (["audit", "models:/m/1", "--policy", "p", "--chunk-size", "0"], "0 is not in the range"),
        (["promote", "models:/m/1"], "say where to"),
        (["explain", "lipschitz"], "lipschitz_at_most"),
    ],
)
def test_usage_errors(arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert shown in captured.err + captured.out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["audit", "--help"], ["policy", "init", "-h"], ["--version"]]
)
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert capsys.readouterr().out
