"""`serve`: the receiver of MLflow's webhooks, on one process of uvicorn."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_lipschitz.cli.failures import PASSED
from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.webhooks.deliveries import SECRET

if TYPE_CHECKING:
    from mlflow_lipschitz.registry.trust import TrustSources


@dataclass(frozen=True)
class ServeRequest:
    """The options of `serve`."""

    policy: Path
    data: Path | None
    aliases: tuple[str, ...]
    models: str
    queue: Path
    host: str
    port: int
    sign_key: Path | None
    trusted_keys: tuple[Path, ...]
    revoked: tuple[Path, ...]
    allow_unsigned: bool
    tracking_uri: str | None


def serve(request: ServeRequest) -> int:
    """Serve until interrupted. Raises UsageError before anything is listened to when the settings cannot work."""
    try:
        import uvicorn

        from mlflow_lipschitz.webhooks.receiver import receiver
    except ImportError as error:
        raise UsageError(f"serve needs {error.name}: pip install 'mlflow-lipschitz[serve]'") from error
    from mlflow_lipschitz.registry.trust import TrustSources as Sources
    from mlflow_lipschitz.webhooks.handling import ReceiverSettings
    from mlflow_lipschitz.webhooks.queue import Queue

    sources = Sources(request.trusted_keys, request.revoked)
    secret = _checked_secret(request, sources)
    settings = ReceiverSettings(
        policy=request.policy,
        data=request.data,
        aliases=request.aliases,
        models=request.models,
        tracking_uri=request.tracking_uri,
        sign_key=request.sign_key,
        trust=sources,
        allow_unsigned=request.allow_unsigned,
    )
    app = receiver(Queue(request.queue), settings, secret)
    click.echo(f"webhooks are received at http://{request.host}:{request.port}/webhook; queue: {request.queue}")
    # What the receiver does is its log; other commands keep log lines off the terminal.
    logging.disable(logging.NOTSET)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    uvicorn.run(app, host=request.host, port=request.port, log_level="warning")
    return PASSED


def _checked_secret(request: ServeRequest, sources: TrustSources) -> str:
    """The webhook's secret, after policy and keys have been read once. Raises PolicyError and UsageError."""
    from mlflow_lipschitz.policy import load_policy
    from mlflow_lipschitz.registry.keys import signing_key
    from mlflow_lipschitz.registry.trust import trust_from

    secret = os.environ.get(SECRET, "").strip()
    if not secret:
        raise UsageError(f"{SECRET} is not set: it holds the secret that the webhook was created with")
    load_policy(request.policy)
    signing_key(request.sign_key)
    if request.aliases and not trust_from(sources).keys and not request.allow_unsigned:
        raise UsageError(
            "no trusted key is configured, so every guarded alias would be removed: --trusted-key FILE, or "
            "--allow-unsigned for trying out"
        )
    return secret
