"""`policy init`: a measured proposal on stdout or in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from mlflow_lipschitz.cli.failures import PASSED
from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.report.progress import progress


@dataclass(frozen=True)
class PolicyInitRequest:
    """The options of `policy init`."""

    model_uri: str
    data: Path | None = None
    points: int = 100
    output: str | None = None
    out: Path | None = None
    trust_pickle: bool = False
    tracking_uri: str | None = None


def policy_init(request: PolicyInitRequest) -> int:
    """Print the proposal, or write it to a file that does not exist yet."""
    from mlflow_lipschitz.proposal.proposing import ProposalRequest, propose

    if request.out is not None and request.out.exists():
        raise UsageError(f"{request.out} is there already, and somebody may have decided on it: name another file")
    output = int(request.output) if request.output and request.output.isdecimal() else request.output
    asked = ProposalRequest(
        request.model_uri, request.data, request.points, output, request.trust_pickle, request.tracking_uri
    )
    with progress("measuring") as report:
        proposal = propose(asked, report)
    if request.out is None:
        click.echo(proposal.text, nl=False)
        return PASSED
    try:
        with request.out.open("x", encoding="utf-8") as file:
            file.write(proposal.text)
    except OSError as error:
        raise UsageError(f"{request.out} cannot be written: {error.strerror}") from error
    count, seconds = len(proposal.measurement.table), proposal.measurement.seconds
    click.echo(f"{request.out}: {proposal.policy.reference}")
    click.echo(f"{count} rows measured in {seconds:.1f} s; under this policy they would get: {proposal.verdict.status}")
    return PASSED
