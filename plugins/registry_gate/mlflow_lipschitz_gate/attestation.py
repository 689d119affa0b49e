"""Reading an attestation: a DSSE envelope around an in-toto statement. docs/attestation-format.md is what this follows.

Written apart from the product's own reader on purpose: two programs that agree on a format are the proof that it is one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from mlflow_lipschitz_gate.keys import KEY_ID, Trust
from mlflow_lipschitz_gate.strict import canonical, read_json

LIMIT = 8 * 2**20
_TYPE = "application/vnd.in-toto+json"
_STATEMENT, _PREDICATE = "https://in-toto.io/Statement/v1", "urn:mlflow-lipschitz:audit:v1"
_HEX = re.compile(r"[0-9a-f]{64}")
_SIGNATURES, _SIGNATURE_BYTES = 16, 64
_SKEW = timedelta(hours=1)


class Malformed(ValueError):
    """The bytes are no attestation in the format; the text says what is wrong."""


@dataclass(frozen=True)
class Attestation:
    """One attestation whose form is right. Whether anybody should believe it is another question.

    Attributes:
        payload: the bytes that are signed. signatures: key id -> 64 bytes.
        files: path -> SHA-256 in hex of each file of the model.
    """

    payload: bytes
    signatures: Mapping[str, bytes]
    predicate: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.payload).hexdigest()

    def signature_problems(self, trust: Trust) -> list[str]:
        """Why no trusted signature stands under it; empty when one does and none that claims to be trusted is wrong."""
        if reason := trust.revoked_attestations.get(self.digest):
            return [f"the attestation {self.digest} is revoked: {reason}"]
        message = b"DSSEv1 %d %s %d %s" % (len(_TYPE), _TYPE.encode(), len(self.payload), self.payload)
        held, reasons = False, []
        for keyid, signature in self.signatures.items():
            if keyid in trust.revoked_keys:
                reasons.append(f"it is signed by {keyid}, which is revoked: {trust.revoked_keys[keyid]}")
            elif keyid not in trust.keys:
                reasons.append(f"it is signed by {keyid}, which is not a trusted key")
            elif trust.holds(keyid, signature, message):
                held = True
            else:
                return [f"its signature is not one of {keyid} over these bytes"]
        return [] if held else reasons

    def time_problems(self, now: datetime, max_age_days: float | None) -> list[str]:
        """Why it is not valid at `now` (with time zone), or too old."""
        created, expires = (_moment(self.predicate[key]) for key in ("created", "expires"))
        if not created - _SKEW <= now < expires:
            return [f"it is valid from {self.predicate['created']} to {self.predicate['expires']} only"]
        if max_age_days is not None and now - created > timedelta(days=max_age_days):
            return [f"it is from {self.predicate['created']}, and this gate accepts {max_age_days:g} days at most"]
        return []


def read_attestation(content: bytes) -> Attestation:
    """Check the form of a signed attestation. Raises Malformed."""
    if len(content) > LIMIT:
        raise Malformed(f"it is larger than {LIMIT} bytes")
    try:
        envelope = read_json(content)
    except ValueError as error:
        raise Malformed(f"it is no JSON that can be used: {error}") from error
    if not isinstance(envelope, dict):
        raise Malformed("it is no JSON object")
    if not envelope.keys() & {"payload", "payloadType", "signatures"}:
        raise Malformed("it is UNSIGNED: audit again with --sign-key")
    if envelope.keys() != {"payload", "payloadType", "signatures"} or envelope["payloadType"] != _TYPE:
        raise Malformed(f"it is no DSSE envelope of type {_TYPE}")
    payload = _decoded(envelope["payload"])
    statement = _statement(payload)
    return Attestation(payload, _signatures(envelope["signatures"]), statement["predicate"], _subject(statement))


def _signatures(rows: Any) -> dict[str, bytes]:
    if not isinstance(rows, list) or not 1 <= len(rows) <= _SIGNATURES:
        raise Malformed(f"it needs 1 to {_SIGNATURES} signatures")
    found: dict[str, bytes] = {}
    for row in rows:
        if not isinstance(row, dict) or row.keys() != {"keyid", "sig"}:
            raise Malformed("a signature has keyid and sig and nothing else")
        keyid, signature = row["keyid"], _decoded(row["sig"])
        if not isinstance(keyid, str) or not KEY_ID.fullmatch(keyid) or keyid in found:
            raise Malformed(f"{keyid!r} is no key id, or given twice")
        if len(signature) != _SIGNATURE_BYTES:
            raise Malformed(f"a signature has {_SIGNATURE_BYTES} bytes, not {len(signature)}")
        found[keyid] = signature
    return found


def _decoded(text: Any) -> bytes:
    """Base64 in its only spelling."""
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"it holds text that is not base64: {error}") from error
    if content is None or base64.b64encode(content).decode() != text:
        raise Malformed("it holds text that is not base64 in its usual spelling")
    return content


def _statement(payload: bytes) -> dict[str, Any]:
    try:
        statement = read_json(payload)
        one_spelling = canonical(statement) == payload
    except (ValueError, RecursionError) as error:
        raise Malformed(f"its payload is no JSON that can be used: {error}") from error
    if not one_spelling:
        raise Malformed("its payload is not canonical JSON")
    if not isinstance(statement, dict) or statement.keys() != {"_type", "subject", "predicateType", "predicate"}:
        raise Malformed("its payload is no in-toto statement")
    if (statement["_type"], statement["predicateType"]) != (_STATEMENT, _PREDICATE):
        raise Malformed("its payload is no statement about an audit")
    _check_predicate(statement["predicate"])
    return statement


def _subject(statement: Mapping[str, Any]) -> dict[str, str]:
    rows = statement["subject"]
    files: dict[str, str] = {}
    for row in rows if isinstance(rows, list) else []:
        right = isinstance(row, dict) and row.keys() == {"name", "digest"} and isinstance(row["name"], str)
        digest = row["digest"] if right else None
        if not isinstance(digest, dict) or digest.keys() != {"sha256"} or not isinstance(digest["sha256"], str):
            raise Malformed("a subject has a name and digest.sha256 and nothing else")
        if not row["name"] or row["name"] in files or not _HEX.fullmatch(digest["sha256"]):
            raise Malformed(f"the subject {row['name']!r} is given twice, or without a SHA-256")
        files[row["name"]] = digest["sha256"]
    if not files or list(files) != sorted(files):
        raise Malformed("its subjects are missing or not sorted")
    return files


# Required fields of the predicate, as paths, with their types.
_FIELDS: tuple[tuple[tuple[str, ...], type | tuple[type, ...]], ...] = (
    (("model", "name"), (str, type(None))),
    (("model", "version"), (str, type(None))),
    (("model", "model_id"), (str, type(None))),
    (("model", "manifest"), str),
    (("policy", "name"), str),
    (("policy", "version"), str),
    (("policy", "digest"), str),
    (("verdict", "status"), str),
    (("artifacts",), dict),
    (("created",), str),
    (("expires",), str),
    (("signature",), str),
)


def _check_predicate(predicate: Any) -> None:
    for path, kind in _FIELDS:
        value = predicate
        for key in path:
            if not isinstance(value, dict) or key not in value:
                raise Malformed(f"its predicate has no {'.'.join(path)}")
            value = value[key]
        if not isinstance(value, kind):
            raise Malformed(f"its {'.'.join(path)} is of a wrong type")
    if predicate["signature"] != "ed25519":
        raise Malformed(f"its statement says it is signed with {predicate['signature']!r}, not 'ed25519'")
    for key in ("created", "expires"):
        _moment(predicate[key])


def _moment(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S+00:00").replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise Malformed(f"{text!r} is no time in UTC such as 2030-01-31T12:00:00+00:00") from error
