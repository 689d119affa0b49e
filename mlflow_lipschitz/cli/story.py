"""`demo`: the same commands a user types, in the order of a release that goes wrong once and right once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflow_lipschitz.cli import commands
from mlflow_lipschitz.cli.failures import BLOCKED, PASSED, exit_code_of
from mlflow_lipschitz.cli.output import check_lines
from mlflow_lipschitz.demo.data import DiabetesData, load_data
from mlflow_lipschitz.demo.models import Progression, train_monotone, train_plain
from mlflow_lipschitz.demo.registering import held_out_error, local_store, register
from mlflow_lipschitz.report.content import number

if TYPE_CHECKING:
    from mlflow_lipschitz.audit import AuditResult

ALIAS = "champion"


@dataclass(frozen=True)
class _Candidate:
    """One trained version and what became of it."""

    title: str
    uri: str
    error: float
    result: AuditResult
    promotion_code: int


def tell(directory: Path) -> bool:
    """Train, register, audit and promote; True when the plain model was blocked and the monotone one went live."""
    # The demo talks to nobody: MLflow's usage statistics included.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    directory.mkdir(parents=True, exist_ok=True)
    data = load_data()
    rows = directory / "audited_rows.csv"
    data.audited.to_csv(rows, index=False)
    shipped = files("mlflow_lipschitz") / "policies" / "diabetes.yaml"
    with local_store(directory) as store, as_file(shipped) as policy:
        click.echo("Disease progression must rise with BMI and with blood pressure, and must not jump.")
        click.echo("Training two versions and registering them …")
        versions = [
            ("as usual", train_plain(data.train, data.train_target)),
            ("to be monotone", train_monotone(data.train, data.train_target)),
        ]
        uris = [register(model, data, directory, title) for title, model in versions]
        candidates = [
            _judge(title, model, uri, commands.AuditRequest(uri, policy, rows, out=_folder(directory, uri)), data)
            for (title, model), uri in zip(versions, uris, strict=True)
        ]
    _closing_table(candidates)
    click.echo("Look at runs, reports and versions with:\n")
    click.echo(f"  mlflow ui --backend-store-uri {store}\n")
    outcomes = [(c.result.verdict.status, c.promotion_code) for c in candidates]
    return outcomes == [("blocked", BLOCKED), ("passed", PASSED)]


def _judge(title: str, model: Progression, uri: str, request: commands.AuditRequest, data: DiabetesData) -> _Candidate:
    """`audit`, then `promote`, exactly as typed."""
    _typed(f"mlflow-lipschitz audit {uri} --policy {request.policy.name} --data {request.data}")
    result = commands.run_audit(request)
    for line in check_lines(result.content, result.directory / "report.html"):
        click.echo(line)
    _typed(f"mlflow-lipschitz promote {uri} --alias {ALIAS}")
    code = exit_code_of(lambda: commands.promote(commands.PromoteRequest(uri, alias=ALIAS)))
    click.echo(f"exit code {code}")
    return _Candidate(title, uri, held_out_error(model, data), result, code)


def _folder(directory: Path, uri: str) -> Path:
    return directory / "audits" / f"version-{uri.rsplit('/', 1)[1]}"


def _typed(command: str) -> None:
    click.secho(f"\n$ {command}", bold=True)


def _closing_table(candidates: list[_Candidate]) -> None:
    table = Table("version", "trained", "error", "bound", "broken rows", "verdict", ALIAS)
    for candidate in candidates:
        frame = candidate.result.table.frame
        passed = candidate.result.verdict.status == "passed"
        table.add_row(
            candidate.uri.rsplit("/", 1)[1],
            candidate.title,
            number(candidate.error),
            number(float(frame["lipschitz_upper"].max())),
            f"{int((frame['status'] == 'violated').sum())} of {len(frame)}",
            Text(candidate.result.verdict.status, style="green" if passed else "red"),
            "yes" if candidate.promotion_code == PASSED else "refused",
        )
    click.echo()
    Console().print(table)
    click.echo(
        "error: root mean square on the held-out rows · bound: progression points per standard deviation, proved"
    )
    click.echo("broken rows: rows with a point nearby at which a check is false\n")
