"""Whether an attestation is about these files, this version, this time and a pass: one finding for each question."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_lipschitz.registry.attestation import Attestation
    from mlflow_lipschitz.registry.manifest import Manifest

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
_IDENTITY = ("name", "version", "model_id")


@dataclass(frozen=True)
class Finding:
    """One question and its answer: `ok` is None where the question was not, or could not be, asked."""

    topic: str
    text: str
    ok: bool | None = True


def problems_in(findings: Sequence[Finding]) -> tuple[str, ...]:
    """What keeps the attestation from vouching; empty when nothing does."""
    return tuple(finding.text for finding in findings if finding.ok is False)


def check_attestation(
    attestation: Attestation, manifest: Manifest, identity: Mapping[str, str | None], *, now: datetime | None = None
) -> tuple[str, ...]:
    """Everything that keeps this attestation from vouching for these files; empty when it does.

    Args:
        manifest: of the files as they are now.
        identity: the `name`, `version` and `model_id` to be promoted.
    """
    return problems_in([*version_findings(attestation, manifest, [identity]), *own_findings(attestation, now)])


def version_findings(
    attestation: Attestation, manifest: Manifest, identities: Sequence[Mapping[str, str | None]]
) -> tuple[Finding, ...]:
    """Findings on identity and files.

    Args:
        identities: of the version itself and then, where they count, of the versions it is a copy of.
    """
    return (*_identity(attestation, identities), _files(attestation, manifest))


def own_findings(attestation: Attestation, now: datetime | None = None) -> tuple[Finding, ...]:
    """Findings on what the attestation alone says: verdict, policy and time."""
    predicate = attestation.predicate
    status, policy = predicate["verdict"]["status"], predicate["policy"]
    passed = status == "passed"
    found = [Finding("verdict", "passed" if passed else f"its verdict is {status!r}, not 'passed'", passed)]
    if policy["digest"]:
        found.append(Finding("policy", f"{policy['name']}@{policy['version']} {policy['digest']}"))
    else:
        found.append(Finding("policy", "it records no policy digest", False))
    span, valid = f"{predicate['created']} to {predicate['expires']}", _valid_at(predicate, now)
    found.append(Finding("time", f"valid from {span}" if valid else f"it is valid from {span} only", valid))
    return tuple(found)


def _identity(attestation: Attestation, identities: Sequence[Mapping[str, str | None]]) -> Iterator[Finding]:
    recorded = {key: attestation.predicate["model"][key] for key in _IDENTITY}
    place = f"{recorded['name']} version {recorded['version']} ({recorded['model_id'] or 'no model id'})"
    for number, identity in enumerate(identities):
        if all(recorded[key] == identity.get(key) for key in _IDENTITY):
            yield Finding("identity", f"a copy of {place}, which it was written for" if number else place)
            return
    for key in _IDENTITY:
        if recorded[key] != identities[0].get(key):
            yield Finding(
                "identity", f"it was written for {key} {recorded[key]!r}, not {identities[0].get(key)!r}", False
            )


def _files(attestation: Attestation, manifest: Manifest) -> Finding:
    subject = {row["name"]: row["digest"]["sha256"] for row in attestation.statement["subject"]}
    files = {f.path: f.sha256 for f in manifest.files}
    changed = sorted(path for path in subject.keys() | files.keys() if subject.get(path) != files.get(path))
    if changed or attestation.predicate["model"]["manifest"] != manifest.digest:
        named = ", ".join(changed) or "their manifest differs"
        return Finding("files", f"the model's files are not the audited ones: {named}", False)
    return Finding("files", f"{len(files)} files, manifest {manifest.digest}")


def _valid_at(predicate: Mapping[str, Any], now: datetime | None) -> bool:
    now = now or datetime.now(timezone.utc)
    times = [predicate[key] for key in ("created", "expires")]
    if not all(isinstance(text, str) and _TIME.fullmatch(text) for text in times):
        return False
    try:
        created, expires = map(datetime.fromisoformat, times)
        # An hour of clock skew between the audited machine and this one is no reason to refuse.
        return created - timedelta(hours=1) <= now < expires
    except (ValueError, OverflowError):
        return False
