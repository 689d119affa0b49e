"""Attestations made by hand, with nothing but a key: what the gate reads must not depend on who wrote it."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TYPE = "application/vnd.in-toto+json"
POLICY = {"name": "credit-scorer", "version": "3", "digest": "sha256:" + "ab" * 32, "reference": "credit-scorer@3"}


def raw_public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def key_id(key: Ed25519PrivateKey) -> str:
    return "sha256:" + hashlib.sha256(raw_public(key)).hexdigest()


def write_public(key: Ed25519PrivateKey, path: Path) -> Path:
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(pem)
    return path


def manifest_digest(files: dict[str, bytes]) -> str:
    rows = [{"path": p, "sha256": sha256(c), "size": len(c)} for p, c in sorted(files.items())]
    return "sha256:" + sha256(json.dumps({"files": rows}, sort_keys=True, separators=(",", ":")).encode())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S+00:00")


def statement(
    files: dict[str, bytes], name: str, version: str, model_id: str | None = None, **changed: Any
) -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    predicate = {
        "model": {"name": name, "version": version, "model_id": model_id, "manifest": manifest_digest(files)},
        "policy": POLICY,
        "verdict": {"status": "passed", "checks": []},
        "artifacts": {},
        "created": text(now),
        "expires": text(now + timedelta(days=90)),
        "signature": "ed25519",
        **changed,
    }
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": p, "digest": {"sha256": sha256(c)}} for p, c in sorted(files.items())],
        "predicateType": "urn:mlflow-lipschitz:audit:v1",
        "predicate": predicate,
    }


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def pae(payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), len(payload), payload)


def envelope(said: dict[str, Any], *keys: Ed25519PrivateKey) -> bytes:
    payload = canonical(said)
    rows = [{"keyid": key_id(k), "sig": base64.b64encode(k.sign(pae(payload))).decode()} for k in keys]
    return json.dumps({"payload": base64.b64encode(payload).decode(), "payloadType": TYPE, "signatures": rows}).encode()
