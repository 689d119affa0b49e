"""The record of one audit, as an in-toto Statement v1 in canonical JSON, in a signed DSSE envelope.

The statement names the model's files by digest, the policy by digest, the verdict, and what the numbers rest on. Signed, it
says who vouches for that; without a key it is the bare statement, UNSIGNED, which proves that files, policy and verdict
belong together and not who wrote it. docs/attestation-format.md describes every field.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.registry.dsse import ENVELOPE_LIMIT, Envelope, Signature, pre_authentication_encoding
from mlflow_lipschitz.registry.statement import NONE, PREDICATE_TYPE, SIGNED, STATEMENT_TYPE, read_statement
from mlflow_lipschitz.registry.strict_json import canonical_json, strict_object

if TYPE_CHECKING:
    from mlflow_lipschitz.gate.verdict import Verdict
    from mlflow_lipschitz.policy import AuditPolicy
    from mlflow_lipschitz.registry.keys import SigningKey
    from mlflow_lipschitz.registry.pull import PulledModel

UNSIGNED = "UNSIGNED"
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
    """One statement, kept as the exact bytes that are hashed and signed, and the signatures over them.

    That there is a signature says nothing yet: `Trust.status` says whether it counts.
    """

    payload: bytes
    signatures: tuple[Signature, ...] = ()

    @cached_property
    def statement(self) -> dict[str, Any]:
        return read_statement(self.payload)

    @property
    def predicate(self) -> dict[str, Any]:
        return self.statement["predicate"]

    @property
    def digest(self) -> str:
        """`sha256:` and the hex digest of the payload: the same whoever signed it."""
        return "sha256:" + hashlib.sha256(self.payload).hexdigest()

    @property
    def signature(self) -> str:
        """`UNSIGNED`, or who claims to have signed. Shown wherever the attestation is."""
        return f"signed by {', '.join(s.keyid for s in self.signatures)}" if self.signatures else UNSIGNED

    def pre_authentication_encoding(self) -> bytes:
        """The bytes a DSSE signature covers."""
        return pre_authentication_encoding(self.payload)

    def to_json(self) -> str:
        """The content of `attestation.json`: the envelope, or the bare statement when there is no signature."""
        return Envelope(self.payload, self.signatures).to_json() if self.signatures else self.payload.decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Attestation:
        """Read `attestation.json` back.

        Raises AuditError when it is not, to the byte, what this package writes: so nothing in it can be read two ways.
        """
        content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        try:
            if strict_object(content, limit=ENVELOPE_LIMIT).keys() & {"payload", "payloadType", "signatures"}:
                envelope = Envelope.from_json(content)
                found, expected = cls(envelope.payload, envelope.signatures), SIGNED
            else:
                found, expected = cls(content), NONE
            if found.predicate["signature"] != expected:
                raise ValueError("its signature was removed, or added by something else than an audit")
        except ValueError as error:
            raise AuditError(f"the attestation is not an in-toto statement of this package: {error}") from error
        return found


@dataclass(frozen=True)
class Evidence:
    """What an attestation says beyond model, policy and verdict.

    `metrics` are the finite bounds; `artifacts` maps each file of the audit to its SHA-256; `graph` is the content
    hash of the certified graph, `rows` the digest of the audited rows, `method` how the bounds were found. `created` (now by
    default) and `validity` give the expiry.
    """

    metrics: Mapping[str, float]
    artifacts: Mapping[str, str]
    graph: str | None = None
    created: datetime | None = None
    validity: timedelta = VALIDITY
    rows: str | None = None
    method: str | None = None


def make_attestation(
    pulled: PulledModel, policy: AuditPolicy, verdict: Verdict, evidence: Evidence, key: SigningKey | None = None
) -> Attestation:
    """The statement that these files were audited under this policy with this verdict, signed when there is a `key`."""
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
        "arithmetic_of": {"lipschitz": "real", "derivatives": "real", "radius": policy.engine.arithmetic},
        "engine": {"name": "mlflow-lipschitz", "version": _version("mlflow-lipschitz"), "method": evidence.method},
        "packages": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "created": _text(created),
        "expires": _text(created + evidence.validity),
        # Said inside what is signed, so that a signature cannot be taken off unseen.
        "signature": SIGNED if key else NONE,
    }
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f.path, "digest": {"sha256": f.sha256}} for f in pulled.manifest.files],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    payload = canonical_json(statement)
    return Attestation(payload, (key.sign(payload),) if key else ())


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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
