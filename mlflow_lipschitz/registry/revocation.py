"""Revocation lists: keys and single attestations that no longer count, each with the reason that refusals show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.policy_yaml import read_document
from mlflow_lipschitz.registry.dsse import KEY_ID

REVOKED_KEYS = "LIPSCHITZ_REVOKED_KEYS"

_HEAD = {"apiVersion": "mlflow-lipschitz/v1", "kind": "RevocationList"}


@dataclass(frozen=True)
class Revocations:
    """Digest (`sha256:…`) of a key or of an attestation's payload -> why it was revoked."""

    keys: Mapping[str, str] = field(default_factory=dict)
    attestations: Mapping[str, str] = field(default_factory=dict)


def read_revocations(paths: Sequence[str | Path]) -> Revocations:
    """All entries of these files together: what one list revokes no other list gives back.

    Raises UsageError when a file cannot be read or says anything that is not understood: a list read in part would let
    through what the rest revokes.
    """
    keys: dict[str, str] = {}
    attestations: dict[str, str] = {}
    for path in paths:
        for entry in _entries(Path(path)):
            kind = "keyid" if "keyid" in entry else "attestation"
            (keys if kind == "keyid" else attestations).setdefault(entry[kind], entry["reason"])
    return Revocations(keys, attestations)


def _entries(path: Path) -> list[dict[str, str]]:
    try:
        document = read_document(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"the revocation list {path} is not UTF-8 text") from error
    except OSError as error:
        raise UsageError(f"the revocation list {path} cannot be read: {error.strerror}") from error
    problems = [str(issue) for issue in document.issues]
    data = document.data if isinstance(document.data, dict) else {}
    rows = data.get("revoked")
    if not problems and (data.keys() != {*_HEAD, "revoked"} or any(data[k] != v for k, v in _HEAD.items())):
        problems = ["it must say apiVersion: mlflow-lipschitz/v1, kind: RevocationList and revoked: [entries]"]
    if not problems and not isinstance(rows, tuple):
        problems = ["revoked must be a list"]
    if not problems:
        problems = [found for number, row in enumerate(rows or ()) if (found := _problem(number, row))]
    if problems:
        raise UsageError(f"the revocation list {path} cannot be used: {'; '.join(problems)}")
    return list(rows or ())


def _problem(number: int, row: Any) -> str:
    known = ({"keyid", "reason"}, {"attestation", "reason"})
    if not isinstance(row, dict) or row.keys() not in known:
        return f"entry {number + 1} must have a reason, and a keyid or an attestation"
    digest, reason = row.get("keyid", row.get("attestation")), row["reason"]
    if not isinstance(digest, str) or not KEY_ID.fullmatch(digest):
        return f"entry {number + 1}: {digest!r} is not sha256: and 64 hexadecimal digits"
    if not isinstance(reason, str) or not reason.strip():
        return f"entry {number + 1} gives no reason"
    return ""
