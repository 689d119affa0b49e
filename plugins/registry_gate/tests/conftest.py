"""One live server per configuration and module."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PLUGIN = Path(__file__).parent.parent
for place in (str(PLUGIN), str(PLUGIN / "tests")):
    if place not in sys.path:
        sys.path.insert(0, place)

from servers import Server, Setup, postgres, serving, write_config  # noqa: E402
from signing import write_public  # noqa: E402
from world import World  # noqa: E402

RELEASE, STRANGER, LEAKED = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (11, 12, 13))


def needed(setup: Setup) -> None:
    """Skip what cannot run here, and say why."""
    if setup.auth and importlib.util.find_spec("flask_wtf") is None:
        pytest.skip("basic-auth needs Flask-WTF: pip install 'mlflow[auth]'")
    if setup.stack == "gunicorn" and importlib.util.find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    if setup.database == "postgres":
        if shutil.which("initdb") is None:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql, and initdb on PATH)")
        if importlib.util.find_spec("psycopg2") is None:
            pytest.skip("no driver for PostgreSQL: pip install psycopg2-binary")


def prepare(folder: Path, **changed: object) -> Path:
    """Keys, revocation list and configuration in `folder`."""
    from signing import key_id

    (folder / "keys").mkdir()
    write_public(RELEASE, folder / "keys" / "release.pub")
    write_public(LEAKED, folder / "keys" / "leaked.pub")
    (folder / "revoked.yaml").write_text(
        "apiVersion: mlflow-lipschitz/v1\nkind: RevocationList\nrevoked:\n"
        f"  - {{keyid: '{key_id(LEAKED)}', reason: laptop lost}}\n"
    )
    return write_config(folder, **changed)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    setup: Setup = request.param
    needed(setup)
    folder = tmp_path_factory.mktemp(str(setup))
    changed = {"override": {"users": ["admin"], "log": "override.jsonl"}} if setup.auth else {}
    config = prepare(folder, **changed)
    with ExitStack() as stack:
        database = stack.enter_context(postgres()) if setup.database == "postgres" else None
        yield stack.enter_context(serving(setup, folder, config, database))


@pytest.fixture(scope="module")
def world(server: Server) -> World:
    return World(server, RELEASE)
