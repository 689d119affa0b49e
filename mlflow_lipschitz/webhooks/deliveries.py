"""One delivery of an MLflow webhook: is it really from the server that knows the secret, and what does it say?"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIGNATURE, TIMESTAMP, DELIVERY = "x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id"
TOLERANCE_SECONDS = 900
"""How old a delivery may be. MLflow signs the time of the first try and gives up after a few minutes."""

SECRET = "LIPSCHITZ_WEBHOOK_SECRET"
"""The variable that holds the webhook's secret. Audits, which read files of strangers, do not inherit it."""

VERSION_CREATED, ALIAS_CREATED = "model_version.created", "model_version_alias.created"


class BadDelivery(Exception):
    """The delivery is refused; `status` is the HTTP status to answer with."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


@dataclass(frozen=True)
class Delivery:
    """What a webhook told. `event` is `entity.action`; `alias` is None for events that have none."""

    id: str
    event: str
    name: str
    version: str
    alias: str | None = None

    def to_json(self) -> str:
        """For the queue."""
        return json.dumps({"event": self.event, "name": self.name, "version": self.version, "alias": self.alias})

    @classmethod
    def from_json(cls, id_: str, text: str) -> Delivery:
        """The inverse of `to_json`."""
        return cls(id_, **json.loads(text))


def read_delivery(headers: Mapping[str, str], body: bytes, secret: str, *, now: float) -> Delivery | None:
    """The delivery, or None for an event that is of no interest here.

    Args:
        headers: with names in lower case. now: seconds since the epoch.
    Raises:
        BadDelivery: the signature is not by this secret, or the time is not now, or the body is not what MLflow sends.
    """
    delivery_id, timestamp = headers.get(DELIVERY, ""), headers.get(TIMESTAMP, "")
    expected = signature_of(secret, delivery_id, timestamp, body)
    if not delivery_id or not hmac.compare_digest(expected.encode(), headers.get(SIGNATURE, "").encode()):
        raise BadDelivery(401, "the signature is not by this receiver's secret")
    # The time is part of what was signed, so an old delivery cannot be dressed up as a new one.
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now - int(timestamp[:15])) > TOLERANCE_SECONDS:
        raise BadDelivery(401, f"the delivery is not from the last {TOLERANCE_SECONDS} seconds; are the clocks right?")
    try:
        told = json.loads(body)
        event = f"{told['entity']}.{told['action']}"
        return _interesting(delivery_id, event, told["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadDelivery(400, f"this is no webhook of MLflow: {error!r}") from error


def signature_of(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """What MLflow puts into `X-MLflow-Signature`."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()


def _interesting(delivery_id: str, event: str, data: Any) -> Delivery | None:
    if event not in (VERSION_CREATED, ALIAS_CREATED):
        return None
    alias = str(data["alias"]) if event == ALIAS_CREATED else None
    return Delivery(delivery_id, event, str(data["name"]), str(int(data["version"])), alias)
