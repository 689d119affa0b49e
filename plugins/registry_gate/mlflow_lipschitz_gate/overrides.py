"""Opening a door without an attestation: for named users, with a reason, and never without a line in the log."""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone

import flask

from mlflow_lipschitz_gate.config import GateConfig
from mlflow_lipschitz_gate.refusals import denied

HEADER = "X-Lipschitz-Override"
_logger = logging.getLogger("mlflow_lipschitz_gate")


def override_reason() -> str | None:
    """The reason given with the request at hand; None when it asks for no override, or when there is no request."""
    if not flask.has_request_context():
        return None
    return flask.request.headers.get(HEADER, "").strip()[:1000] or None


def record_override(config: GateConfig, what: str, reason: str) -> None:
    """Check that this user may override, and write the line before anything is changed.

    Raises MlflowException (403) when the user may not, or when the line cannot be written: an override that leaves no
    trace is none.
    """
    user = flask.g.get("mlflow_authenticated_user")
    allowed, log = config.file.override, config.override_log
    remedy = "Ask whoever runs the server, or promote an audited version: mlflow-lipschitz promote models:/NAME/VERSION"
    if user is None:
        raise denied(
            what, [f"{HEADER} needs a user, and this server knows none (--app-name lipschitz-gate-auth)"], remedy
        )
    if allowed is None or log is None or user not in allowed.users:
        raise denied(what, [f"{user} may not override the gate"], remedy)
    line = {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "user": user,
        "what": what,
        "reason": reason,
        "from": flask.request.remote_addr,
    }
    try:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise denied(what, [f"the override log {log} cannot be written: {error.strerror}"], remedy) from error
    _logger.warning("override by %s: %s: %s", user, what, reason)
