"""`verify` and `keys new`: the commands about attestations themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_lipschitz.cli.failures import BLOCKED, PASSED
from mlflow_lipschitz.plain_text import one_line

if TYPE_CHECKING:
    from mlflow_lipschitz.registry.checking import Finding

_WORDS = {True: ("ok", "green"), False: ("FAIL", "red"), None: ("–", "yellow")}


@dataclass(frozen=True)
class VerifyRequest:
    """The options of `verify`."""

    target: str
    policy: Path | None = None
    allow_unsigned: bool = False
    recheck_certificates: bool = False
    trusted_keys: tuple[Path, ...] = ()
    revoked: tuple[Path, ...] = ()
    tracking_uri: str | None = None


def verify(request: VerifyRequest) -> int:
    """Show one line per question; 0 when every answer is good and somebody trusted signed."""
    from mlflow_lipschitz.policy import load_policy
    from mlflow_lipschitz.registry.trust import TrustSources, trust_from
    from mlflow_lipschitz.registry.verification import Subject, examined, verified

    trust = trust_from(TrustSources(request.trusted_keys, request.revoked))
    wanted = load_policy(request.policy) if request.policy else None
    with examined(Subject(request.target, request.tracking_uri), trust, wanted) as found:
        if request.recheck_certificates:
            from mlflow_lipschitz.cli.rechecking import recheck_findings

            found = replace(found, findings=(*found.findings, *recheck_findings(found)))
        show_findings(found.findings)
        holds = verified(found, allow_unsigned=request.allow_unsigned)
        signed = found.signature is not None and bool(found.signature.verified_by)
    if not signed and not trust.keys:
        click.echo(
            "no trusted key is configured, so no signature counts: --trusted-key FILE, or LIPSCHITZ_TRUSTED_KEYS"
        )
    word = ("verified" if signed else "holds, but not signed by a trusted key") if holds else "not verified"
    click.secho(f"{word}: {one_line(request.target)}", fg="green" if holds else "red", bold=True)
    return PASSED if holds else BLOCKED


def show_findings(findings: Sequence[Finding]) -> None:
    """One line per finding: ok, FAIL, or – where it could not be asked."""
    width = max((len(finding.topic) for finding in findings), default=0)
    for finding in findings:
        word, color = _WORDS[finding.ok]
        click.echo(f"{click.style(f'{word:<5}', fg=color)} {finding.topic:<{width}}  {one_line(finding.text)}")


def new_keys(directory: Path) -> int:
    """Write the pair and say what each file is for."""
    from mlflow_lipschitz.registry.keys import new_keys as make_keys

    private, public, keyid = make_keys(directory)
    click.echo(f"key id       {keyid}")
    click.echo(
        f"private key  {one_line(private)} (secret: keep it where audits run; --sign-key or LIPSCHITZ_SIGNING_KEY)"
    )
    click.echo(
        f"public key   {one_line(public)} (give it to whoever promotes; --trusted-key or LIPSCHITZ_TRUSTED_KEYS)"
    )
    return PASSED
