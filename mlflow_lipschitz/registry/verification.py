"""`verify`: everything that can be asked of one attestation, each question with its answer, and nothing changed anywhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow_lipschitz.errors import AuditError, RegistryError, UsageError
from mlflow_lipschitz.policy import AuditPolicy
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.checking import Finding, own_findings
from mlflow_lipschitz.registry.pull import fetch
from mlflow_lipschitz.registry.store import ModelReference, client_for, copied_from
from mlflow_lipschitz.registry.trust import Trust
from mlflow_lipschitz.registry.vouching import (
    FoundAudit,
    evidence_findings,
    read_attestation,
    recorded_audit,
    signature_findings,
)


@dataclass(frozen=True)
class Subject:
    """What is verified: an attestation file, or the folder of an audit, or a registered version's URI."""

    target: str
    tracking_uri: str | None = None


@contextmanager
def examined(subject: Subject, trust: Trust, wanted: AuditPolicy | None = None) -> Iterator[FoundAudit]:
    """The attestation with a finding for each question; its `folder` exists until the block ends.

    Args:
        wanted: the policy that has to have been passed, compared by its digest.
    Raises:
        UsageError: the target is neither a file, nor an audit's folder, nor a model URI.
        RegistryError: the store cannot be read, or knows no such version.
    """
    path = Path(subject.target)
    if path.is_dir() and (path / tags.ATTESTATION_FILE).is_file():
        path = path / tags.ATTESTATION_FILE
    if path.is_file():
        yield _with_policy(_file(path, trust), wanted)
        return
    if not subject.target.startswith(("models:/", "runs:/")):
        raise UsageError(
            f"{subject.target!r} is neither an attestation file, nor the folder of an audit, nor a model URI. Use "
            f"{tags.ATTESTATION_FILE}, models:/NAME/VERSION or models:/NAME@ALIAS."
        )
    with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
        yield _with_policy(_registered(subject, Path(scratch), trust), wanted)


def verified(found: FoundAudit, *, allow_unsigned: bool = False) -> bool:
    """Whether every question was answered well. What was not asked, counts as well; an unchecked signature only if allowed."""
    signed = found.signature is not None and bool(found.signature.verified_by)
    return (signed or allow_unsigned) and all(finding.ok is not False for finding in found.findings)


def _file(path: Path, trust: Trust) -> FoundAudit:
    """Of a file alone: neither the model's files nor its identity can be looked at."""
    try:
        attestation = read_attestation(path)
    except AuditError as error:
        return FoundAudit((Finding("attestation", str(error), False),))
    status = trust.status(attestation)
    model = attestation.predicate["model"]
    place = f"{model['name']} version {model['version']} ({model['model_id'] or 'no model id'})"
    policy: AuditPolicy | None = None
    evidence: tuple[Finding, ...] = (Finding("evidence", "not looked at: the artifacts are not beside the file", None),)
    beside = any((path.parent / name).exists() for name in attestation.predicate["artifacts"])
    if beside and path.name == tags.ATTESTATION_FILE:
        policy, evidence = evidence_findings(attestation, path.parent)
    findings = (
        *signature_findings(attestation, status),
        Finding("identity", f"written for {place}; not compared with anything", None),
        Finding("files", "not looked at: give the model's URI to have them hashed", None),
        *own_findings(attestation),
        *evidence,
    )
    return FoundAudit(findings, attestation, status, policy, path.parent)


def _registered(subject: Subject, scratch: Path, trust: Trust) -> FoundAudit:
    reference, path = fetch(subject.target, directory=scratch, tracking_uri=subject.tracking_uri)
    if reference.name is None or reference.version is None:
        raise RegistryError(
            f"{subject.target} is not one registered version, so no audit is on record for it. Use models:/NAME/VERSION, "
            "or give the attestation file."
        )
    client = client_for(subject.tracking_uri)
    originals = [
        ModelReference(f"models:/{name}/{version}", name, version, reference.model_id)
        for name, version in copied_from(reference.name, reference.version, client)
    ]
    return recorded_audit(reference, path, client, scratch / "lipschitz-evidence", trust, originals)


def _with_policy(found: FoundAudit, wanted: AuditPolicy | None) -> FoundAudit:
    if wanted is None or found.attestation is None:
        return found
    digest = found.attestation.predicate["policy"]["digest"]
    if digest == wanted.digest:
        finding = Finding("policy", f"it is the policy that is demanded, {wanted.reference}")
    else:
        reference = f"{found.attestation.predicate['policy']['name']} {digest}"
        finding = Finding("policy", f"it passed {reference}, and {wanted.reference} is what it has to pass", False)
    return replace(found, findings=(*found.findings, finding))
