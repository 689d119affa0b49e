"""What has to stand in an audit's in-toto statement before anything in it is looked at."""

from __future__ import annotations

import re
from typing import Any

from mlflow_lipschitz.registry.dsse import ENVELOPE_LIMIT
from mlflow_lipschitz.registry.strict_json import canonical_object, only_keys

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:mlflow-lipschitz:audit:v1"

SIGNED, NONE = "ed25519", "none"
"""What the predicate says of its own signature."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ARTIFACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TEXT, _MAYBE_TEXT = (str,), (str, type(None))
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "model": {"name": _MAYBE_TEXT, "version": _MAYBE_TEXT, "model_id": _MAYBE_TEXT, "manifest": _TEXT},
    "policy": {"name": _TEXT, "version": _TEXT, "digest": _TEXT},
    "verdict": {"status": _TEXT},
}


def read_statement(payload: bytes) -> dict[str, Any]:
    """The statement in `payload`.

    Raises ValueError when its bytes are not canonical JSON or one of the parts that decide is missing or of another type.
    Further keys in the predicate are allowed: what signed them said more than this version of the package reads.
    """
    statement = canonical_object(payload, limit=ENVELOPE_LIMIT)
    only_keys(statement, {"_type", "subject", "predicateType", "predicate"}, "the statement")
    if (statement["_type"], statement["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ValueError(f"it is of type {statement['_type']!r} and {statement['predicateType']!r}")
    _check_subject(statement["subject"])
    _check_predicate(statement["predicate"])
    return statement


def _check_subject(rows: object) -> None:
    if not isinstance(rows, list) or not rows:
        raise ValueError("its subject names no file")
    for row in rows:
        entry = only_keys(row, {"name", "digest"}, "an entry of the subject")
        digest = only_keys(entry["digest"], {"sha256"}, "a digest of the subject")["sha256"]
        if not isinstance(entry["name"], str) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError("an entry of its subject is not a file name with a SHA-256")
    names = [row["name"] for row in rows]
    if names != sorted(set(names)):
        raise ValueError("the files of its subject are not sorted, or one is named twice")


def _check_predicate(predicate: object) -> None:
    if not isinstance(predicate, dict):
        raise ValueError("its predicate is not an object")
    for part, fields in _FIELDS.items():
        section = predicate.get(part)
        if not isinstance(section, dict):
            raise ValueError(f"its predicate has no {part}")
        for name, kinds in fields.items():
            if name not in section or not isinstance(section[name], kinds):
                raise ValueError(f"{part}.{name} is missing from its predicate, or no text")
    if not {"created", "expires", "signature"} <= predicate.keys():
        raise ValueError("its predicate does not say when it was created, when it expires and how it is signed")
    artifacts = predicate.get("artifacts")
    if not isinstance(artifacts, dict) or not all(map(_ARTIFACT.fullmatch, artifacts)):
        raise ValueError("its predicate does not name the audit's artifacts as plain files")
    if not all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in artifacts.values()):
        raise ValueError("its predicate does not give the SHA-256 of the audit's artifacts")
