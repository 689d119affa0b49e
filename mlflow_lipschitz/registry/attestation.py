"""The record of one audit, as an in-toto Statement v1 in canonical JSON.

The statement names the model's files by digest, the policy by digest, the verdict, and what the numbers rest on. It is
UNSIGNED for now: it proves that files, policy and verdict belong together, not who wrote it. `payload` and
`pre_authentication_encoding` are what a DSSE signature covers, so a signature can be added beside it without
changing it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mlflow_lipschitz.errors import AuditError

if TYPE_CHECKING:
    from mlflow_lipschitz.gate.verdict import Verdict
    from mlflow_lipschitz.policy import AuditPolicy
    from mlflow_lipschitz.registry.manifest import Manifest
    from mlflow_lipschitz.registry.pull import PulledModel

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:mlflow-lipschitz:audit:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
SIGNATURE = "UNSIGNED"
VALIDITY = timedelta(days=90)

_PACKAGES = (
    "mlflow-lipschitz",
    "mlflow",
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "great_expectations",
    "scikit-learn",
)


@dataclass(frozen=True)
class Attestation:
    """One statement, kept as the exact bytes it is hashed (and later signed) by."""

    payload: bytes

    @property
    def statement(self) -> dict[str, Any]:
        return json.loads(self.payload)

    @property
    def predicate(self) -> dict[str, Any]:
        return self.statement["predicate"]

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest of the payload."""
        return "sha256:" + hashlib.sha256(self.payload).hexdigest()

    @property
    def signature(self) -> str:
        """`UNSIGNED`. Shown wherever the attestation is, so that nobody takes it for more than it is."""
        return SIGNATURE

    def pre_authentication_encoding(self) -> bytes:
        """The bytes a DSSE signature covers."""
        kind = PAYLOAD_TYPE.encode()
        return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(self.payload), self.payload)

    def to_json(self) -> str:
        return self.payload.decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Attestation:
        """Read a statement back. Raises AuditError when `text` is not one written by this package."""
        payload = text.encode() if isinstance(text, str) else text
        try:
            statement = json.loads(payload)
            known = (statement["_type"], statement["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
            whole = {"model", "policy", "verdict", "created", "expires"} <= statement["predicate"].keys()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AuditError(f"the attestation is not an in-toto statement of this package: {error!r}") from error
        if not (known and whole):
            raise AuditError("the attestation is not an in-toto statement of this package")
        return cls(payload)


@dataclass(frozen=True)
class Evidence:
    """What an attestation says beyond model, policy and verdict.

    `metrics` are the finite bounds; `artifacts` maps each file of the audit to its SHA-256; `graph` is the content
    hash of the certified graph, `rows` the digest of the audited rows. `created` (now by default) and `validity` give the expiry.
    """

    metrics: Mapping[str, float]
    artifacts: Mapping[str, str]
    graph: str | None = None
    created: datetime | None = None
    validity: timedelta = VALIDITY
    rows: str | None = None


def make_attestation(pulled: PulledModel, policy: AuditPolicy, verdict: Verdict, evidence: Evidence) -> Attestation:
    """The statement that these files were audited under this policy with this verdict."""
    created = evidence.created or datetime.now(timezone.utc)
    predicate = {
        "model": {
            **{key: getattr(pulled, key) for key in ("name", "version", "model_id", "run_id", "uri", "flavor")},
            "manifest": pulled.manifest.digest,
        },
        "policy": {
            "name": policy.metadata.name,
            "version": str(policy.metadata.version),
            "digest": policy.digest,
            "reference": policy.reference,
        },
        "verdict": {"status": verdict.status, "checks": [_check(outcome) for outcome in verdict.checks]},
        "bounds": {name: value for name, value in evidence.metrics.items() if math.isfinite(value)},
        "artifacts": dict(evidence.artifacts),
        "graph": evidence.graph,
        "rows": evidence.rows,
        "arithmetic": "real",
        "packages": _packages(),
        "created": _text(created),
        "expires": _text(created + evidence.validity),
        "signature": "none",
    }
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f.path, "digest": {"sha256": f.sha256}} for f in pulled.manifest.files],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    return Attestation(_canonical(statement))


def check_attestation(
    attestation: Attestation, manifest: Manifest, identity: Mapping[str, str | None], *, now: datetime | None = None
) -> tuple[str, ...]:
    """Everything that keeps this attestation from vouching for these files; empty when it does.

    Args:
        manifest: of the files as they are now.
        identity: the `name`, `version` and `model_id` to be promoted.
    """
    statement, predicate = attestation.statement, attestation.predicate
    problems = []
    recorded = {key: predicate["model"].get(key) for key in ("name", "version", "model_id")}
    for key in recorded:
        if recorded[key] != identity.get(key):
            problems.append(f"it was written for {key} {recorded[key]!r}, not {identity.get(key)!r}")
    subject = {row["name"]: row["digest"]["sha256"] for row in statement["subject"]}
    files = {f.path: f.sha256 for f in manifest.files}
    changed = sorted(path for path in subject.keys() | files.keys() if subject.get(path) != files.get(path))
    if changed or predicate["model"].get("manifest") != manifest.digest:
        problems.append(f"the model's files are not the audited ones: {', '.join(changed) or 'their manifest differs'}")
    if predicate["verdict"].get("status") != "passed":
        problems.append(f"its verdict is {predicate['verdict'].get('status')!r}, not 'passed'")
    if not predicate["policy"].get("digest"):
        problems.append("it records no policy digest")
    if not _valid_at(predicate, now or datetime.now(timezone.utc)):
        problems.append(f"it is valid from {predicate['created']} to {predicate['expires']} only")
    return tuple(problems)


def _valid_at(predicate: Mapping[str, Any], now: datetime) -> bool:
    try:
        created, expires = (datetime.fromisoformat(predicate[key]) for key in ("created", "expires"))
        # An hour of clock skew between the audited machine and this one is no reason to refuse.
        return created - timedelta(hours=1) <= now < expires
    except (ValueError, TypeError):
        return False


def _check(outcome: Any) -> dict[str, Any]:
    names = ("id", "type", "severity", "status", "passed", "observed", "threshold")
    return {name: _plain(getattr(outcome, name)) for name in names}


def _plain(value: Any) -> Any:
    """JSON has no infinity: spell it ("Infinity"), so that the statement stays strict JSON."""
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else f"{'-' * (number < 0)}Infinity"


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()
