"""What each command does, on parsed values. Returns exit codes; answers go to stdout, progress and notes to stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_lipschitz.cli.failures import BLOCKED, FAILED, PASSED
from mlflow_lipschitz.cli.interruption import orderly_end
from mlflow_lipschitz.cli.output import show_audit, show_failure, show_support
from mlflow_lipschitz.errors import LipschitzError, PolicyError
from mlflow_lipschitz.plain_text import safe_lines
from mlflow_lipschitz.report.progress import progress

if TYPE_CHECKING:
    from mlflow_lipschitz.audit import AuditResult

_CODES = {"passed": PASSED, "blocked": BLOCKED, "error": FAILED}


@dataclass(frozen=True)
class ModelRequest:
    """Which model, from where."""

    model_uri: str
    trust_pickle: bool = False
    tracking_uri: str | None = None


@dataclass(frozen=True)
class AuditRequest:
    """The options of `audit`."""

    model_uri: str
    policy: Path
    data: Path | None = None
    device: str = "auto"
    style: str = "text"
    out: Path | None = None
    resume: bool = False
    chunk_size: int | None = None
    trust_pickle: bool = False
    tracking_uri: str | None = None
    sign_key: Path | None = None
    trusted_keys: tuple[Path, ...] = ()
    revoked: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PromoteRequest:
    """The options of `promote`."""

    model_uri: str
    alias: str | None = None
    stage: str | None = None
    target: str | None = None
    policy: Path | None = None
    dry_run: bool = False
    tracking_uri: str | None = None
    trusted_keys: tuple[Path, ...] = ()
    revoked: tuple[Path, ...] = ()


def demo(directory: Path) -> int:
    """Tell the story in `directory`; 0 when it went as intended, 3 when not."""
    from mlflow_lipschitz.cli.story import tell

    return PASSED if tell(directory) else FAILED


def audit(request: AuditRequest) -> int:
    """Audit one model and show one line per check."""
    try:
        result = run_audit(request)
    except LipschitzError as error:
        if request.style == "github":
            show_failure(error, request.model_uri, str(request.policy))
        raise
    show_audit(result, request.style, policy_file=str(request.policy))
    return _CODES[result.verdict.status]


def run_audit(request: AuditRequest) -> AuditResult:
    """The audit itself, with progress on stderr."""
    with orderly_end() as end_if_asked, progress("certifying") as shown:
        from mlflow_lipschitz.audit import AuditOptions
        from mlflow_lipschitz.audit import audit as audit_model
        from mlflow_lipschitz.registry.trust import TrustSources

        def report(done: int, total: int, gap: float) -> None:
            end_if_asked()
            shown(done, total, gap)

        options = AuditOptions(
            device=request.device,
            trust_pickle=request.trust_pickle,
            resume=request.resume,
            chunk_size=request.chunk_size,
            tracking_uri=request.tracking_uri,
            sign_key=request.sign_key,
            trust=TrustSources(request.trusted_keys, request.revoked),
        )
        return audit_model(
            request.model_uri, request.data, request.policy, out=request.out, options=options, progress=report
        )


def promote(request: PromoteRequest) -> int:
    """Promote one version, or say what is missing."""
    from mlflow_lipschitz.registry.promotion import PromotionOptions
    from mlflow_lipschitz.registry.promotion import promote as run_promotion
    from mlflow_lipschitz.registry.trust import TrustSources

    if not (request.alias or request.stage or request.target):
        raise click.UsageError("say where to: --alias NAME, --stage NAME or --to MODEL")
    trust = TrustSources(request.trusted_keys, request.revoked)
    result = run_promotion(
        request.model_uri,
        alias=request.alias,
        stage=request.stage,
        to=request.target,
        policy=request.policy,
        options=PromotionOptions(dry_run=request.dry_run, tracking_uri=request.tracking_uri, trust=trust),
    )
    click.echo(safe_lines(result))
    return PASSED


def policy_check(paths: Sequence[Path]) -> int:
    """Say `ok` with each policy's reference, or everything that is wrong with it; 2 when anything is."""
    from mlflow_lipschitz.policy import load_policy

    code = PASSED
    for path in paths:
        try:
            policy = load_policy(path)
        except PolicyError as error:
            code = error.exit_code
            click.echo(f"error: {safe_lines(error)}", err=True)
        else:
            click.echo(f"ok: {policy.reference}, {len(policy.checks)} checks")
    return code


def policy_schema() -> int:
    """Print the schema."""
    from mlflow_lipschitz.policy import policy_schema as schema

    click.echo(json.dumps(schema(), indent=2))
    return PASSED


def support(request: ModelRequest) -> int:
    """Print the table of nodes; 3 when an audit of this model would fail on one of them."""
    from mlflow_lipschitz.frontends.discrete_support import support_of_all
    from mlflow_lipschitz.frontends.to_onnx import to_onnx
    from mlflow_lipschitz.registry.pull import load_model_object, pull

    pulled = pull(request.model_uri, trust_pickle=request.trust_pickle, tracking_uri=request.tracking_uri)
    example = pulled.input_example
    if example is not None:
        from mlflow_lipschitz.pipeline.intake import rows_for

        rows = rows_for(pulled, example, None)
        example = rows.points if rows.raw is None else rows.raw
    nodes = support_of_all(to_onnx(load_model_object(pulled), example), example)
    show_support(nodes)
    return FAILED if any(node.verdict == "unsupported" for node in nodes) else PASSED


def explain(check_type: str | None) -> int:
    """Print what a check means, or the list of checks."""
    from mlflow_lipschitz.gate.explain import CHECK_TYPES
    from mlflow_lipschitz.gate.explain import explain as text_of

    if check_type is None:
        click.echo("\n".join(sorted(CHECK_TYPES)))
    elif check_type in CHECK_TYPES:
        click.echo(text_of(check_type))
    else:
        raise click.UsageError(f"no check type {check_type!r}; there are: {', '.join(sorted(CHECK_TYPES))}")
    return PASSED
