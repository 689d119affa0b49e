"""The published example of docs/attestation-format.md: what any reader has to accept, and what any reader has to refuse."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.registry.attestation import Attestation
from mlflow_lipschitz.registry.checking import check_attestation
from mlflow_lipschitz.registry.manifest import manifest_of
from mlflow_lipschitz.registry.trust import Trust, TrustSources, trust_from

VECTORS = Path(__file__).parent / "vectors"
BAD = sorted((VECTORS / "bad").glob("*.json"))


@pytest.fixture(scope="module")
def trust() -> Trust:
    return trust_from(TrustSources(keys=(VECTORS / "trusted.pub",)), {})


def test_the_example_vouches(trust: Trust) -> None:
    attestation = Attestation.from_json((VECTORS / "attestation.json").read_bytes())
    status = trust.status(attestation)
    assert (status.problems, status.verified_by) == ((), (trust.keys[0].keyid,))
    identity = {"name": "scorer", "version": "7", "model_id": "m-1"}
    now = datetime(2030, 2, 1, tzinfo=timezone.utc)
    assert check_attestation(attestation, manifest_of(VECTORS / "files"), identity, now=now) == ()


def test_the_public_file_names_its_key(trust: Trust) -> None:
    assert (VECTORS / "trusted.pub").read_text().splitlines()[0] == f"# key id {trust.keys[0].keyid}"


def test_there_are_examples_of_every_refusal() -> None:
    assert len(BAD) >= 18


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_what_has_to_be_refused_is(path: Path, trust: Trust) -> None:
    assert json.loads(path.read_bytes())  # all of it is JSON: the refusal is for what it says
    try:
        status = trust.status(Attestation.from_json(path.read_bytes()))
    except AuditError:
        return
    assert status.problems
    assert not status.verified_by
