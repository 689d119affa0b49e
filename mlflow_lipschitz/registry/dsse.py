"""The envelope around a signed statement: DSSE (Dead Simple Signing Envelope, secure-systems-lab/dsse, version 1).

A signature covers the type of the payload together with its bytes, so a signature over one kind of document is none over
another. Nothing here knows what the payload says or whom anybody trusts.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from mlflow_lipschitz.registry.strict_json import canonical_json, only_keys, strict_base64, strict_object

PAYLOAD_TYPE = "application/vnd.in-toto+json"
KEY_ID = re.compile(r"sha256:[0-9a-f]{64}")
SIGNATURE_BYTES = 64

ENVELOPE_LIMIT = 8 << 20
"""Bytes of an envelope that are read; an attestation has some ten thousand."""

_MOST_SIGNATURES = 16


@dataclass(frozen=True)
class Signature:
    """One signature and the name of the key it claims to be by; `sig` are 64 bytes of Ed25519 (RFC 8032)."""

    keyid: str
    sig: bytes


@dataclass(frozen=True)
class Envelope:
    """The exact bytes of a payload and the signatures over them."""

    payload: bytes
    signatures: tuple[Signature, ...]

    def to_json(self) -> str:
        """Canonical JSON of the envelope."""
        rows = [{"keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()} for s in self.signatures]
        payload = base64.b64encode(self.payload).decode()
        return canonical_json({"payload": payload, "payloadType": PAYLOAD_TYPE, "signatures": rows}).decode()

    @classmethod
    def from_json(cls, content: bytes) -> Envelope:
        """The inverse of `to_json`. Raises ValueError for anything that is not exactly such an envelope."""
        value = strict_object(content, limit=ENVELOPE_LIMIT)
        only_keys(value, {"payload", "payloadType", "signatures"}, "an envelope")
        if value["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"its payloadType is {value['payloadType']!r}, not {PAYLOAD_TYPE!r}")
        rows = value["signatures"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= _MOST_SIGNATURES:
            raise ValueError(f"it must have 1 to {_MOST_SIGNATURES} signatures")
        signatures = tuple(_signature(row) for row in rows)
        if len({s.keyid for s in signatures}) != len(signatures):
            raise ValueError("it has two signatures by one key")
        return cls(strict_base64(value["payload"], "its payload"), signatures)


def pre_authentication_encoding(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """What a signature covers: `DSSEv1`, then type and payload, each with its length, all between single spaces."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _signature(row: object) -> Signature:
    value = only_keys(row, {"keyid", "sig"}, "a signature")
    keyid, sig = value["keyid"], strict_base64(value["sig"], "a signature")
    if not isinstance(keyid, str) or not KEY_ID.fullmatch(keyid):
        raise ValueError(f"{keyid!r} is no key id: sha256: and 64 hexadecimal digits")
    if len(sig) != SIGNATURE_BYTES:
        raise ValueError(f"a signature has {len(sig)} bytes, not {SIGNATURE_BYTES}")
    return Signature(keyid, sig)
