"""The webhook that docs/gate.md creates, sent by a live MLflow server to a live receiver."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.webhooks.queue import Queue
from mlflow_lipschitz.webhooks.receiver import receiver
from tests.registry.stores import fresh_name, mlflow_server
from tests.webhooks.test_receiver import SECRET, listening, settings, wait_until

# MLflow sends to https and to public addresses only, unless it is told otherwise.
_SENDING = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(bytes(range(32))).decode(),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("sending"), _SENDING) as uri:
        yield uri


def test_a_servers_own_webhook_takes_an_unaudited_alias_back(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _SENDING.items():  # the client looks at the address as well
        monkeypatch.setenv(name, value)
    client, queue = MlflowClient(server, server), Queue(tmp_path / "queue.db")
    guarded, other = fresh_name("guarded"), fresh_name("other")
    how = settings(tmp_path, tracking_uri=server, models="guarded-*")
    with listening(receiver(queue, how, SECRET)) as url:
        events = ["model_version.created", "model_version_alias.created"]
        client.create_webhook("lipschitz", f"{url}/webhook", events, secret=SECRET)
        for name in (other, guarded):
            run = client.create_run("0")
            client.create_registered_model(name)
            client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
            client.set_registered_model_alias(name, "champion", "1")
        wait_until(lambda: sum(queue.counts().values()) >= 4, 120)
        wait_until(lambda: "champion" not in client.get_registered_model(guarded).aliases, 120)
    assert '"removed": "champion"' in client.get_model_version(guarded, "1").tags[tags.RECEIVER]
    assert client.get_registered_model(other).aliases == {"champion": "1"}, "another model is none of its business"
