"""Carrying out a promotion: what is written, in which order, and how it is taken back.

The order makes a kill at any moment harmless. The record comes first, for an alias without a record would be worse than a
record without an alias; the alias or stage is one write of the store; and what was verified before is verified again
after, since files may be swapped between two looks.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import LipschitzError, RegistryError
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.store import ModelReference, store_errors
from mlflow_lipschitz.registry.vouching import VouchedAudit

Recheck = Callable[[str, str], None]
"""Given name and version of what was promoted: raises when the evidence does not hold any more."""


@dataclass(frozen=True)
class Target:
    """Where to: an alias or a stage, of the version itself or of a copy in the registered model `to`."""

    alias: str | None
    stage: str | None
    to: str | None


def carry_out(
    target: Target, source: ModelReference, vouched: VouchedAudit, client: MlflowClient, recheck: Recheck
) -> tuple[str, str]:
    """Copy, record, set alias or stage, look again; name and version of what holds the alias now.

    Raises whatever `recheck` raises, after everything was put back; RegistryError when the store refuses a write.
    """
    name, version = str(source.name), str(source.version)
    if not target.to:
        _promoted(target, (name, version), (source, vouched), client, recheck)
        return name, version
    with store_errors(f"copy to {target.to}", "Check that you may create versions there."):
        copy = client.copy_model_version(f"models:/{name}/{version}", target.to)
    place = (target.to, str(copy.version))
    try:
        # The copy must serve the audited bytes before anything points to it.
        recheck(*place)
        _promoted(target, place, (source, vouched), client, recheck)
    except BaseException:
        with suppress(MlflowException, OSError):  # the first failure is the one to report
            client.delete_model_version(*place)
        raise
    return place


def _promoted(
    target: Target,
    place: tuple[str, str],
    proof: tuple[ModelReference, VouchedAudit],
    client: MlflowClient,
    recheck: Recheck,
) -> None:
    name, version = place
    with store_errors(f"promote {name} version {version}", "Check your rights on this model; nothing was promoted."):
        before = _state(target, place, client)
        with _recorded(_record(target, proof, before), place, proof[1].run_id, client):
            try:
                _set(target, place, client)
                recheck(name, version)
                _still_set(target, place, client)
            except BaseException as error:
                # Ctrl-C and a store that went away included: what could not be looked at again is not promoted.
                _put_back(target, place, before, error, client)
                raise


def _state(target: Target, place: tuple[str, str], client: MlflowClient) -> str | None:
    """What the alias points to, or the stage the version is in."""
    if target.alias:
        version = client.get_registered_model(place[0]).aliases.get(target.alias)
        return None if version is None else str(version)
    return str(client.get_model_version(*place).current_stage)


def _set(target: Target, place: tuple[str, str], client: MlflowClient) -> None:
    if target.stage:
        client.transition_model_version_stage(*place, target.stage)
    if target.alias:
        client.set_registered_model_alias(place[0], target.alias, place[1])


def _still_set(target: Target, place: tuple[str, str], client: MlflowClient) -> None:
    held = _state(target, place, client)
    if target.alias and held != place[1]:
        raise RegistryError(
            f"somebody else moved the alias {target.alias} meanwhile; it now points to version {held}. Promote again if "
            "that is not wanted."
        )


def _put_back(
    target: Target, place: tuple[str, str], before: str | None, cause: BaseException, client: MlflowClient
) -> None:
    """Undo `_set`, unless somebody else has moved the alias since: theirs is not ours to touch."""
    try:
        if target.stage:
            client.transition_model_version_stage(*place, str(before))
        elif target.alias and _state(target, place, client) == place[1] != before:
            if before is None:
                client.delete_registered_model_alias(place[0], target.alias)
            else:
                client.set_registered_model_alias(place[0], target.alias, before)
    except (MlflowException, OSError) as error:
        held = f"the alias {target.alias}" if target.alias else f"the stage {target.stage}"
        raise RegistryError(
            f"{held} of {place[0]} may point to version {place[1]}, which is not to be promoted ({_reason(cause)}), and "
            f"could not be put back: {error}. Set it by hand; it was {before or 'not set'}."
        ) from cause


def _record(target: Target, proof: tuple[ModelReference, VouchedAudit], before: str | None) -> dict[str, object]:
    source, vouched = proof
    return {
        "by": _who(),
        "host": socket.gethostname(),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": f"models:/{source.name}/{source.version}",
        **asdict(target),
        "before": before,
        "attestation": vouched.attestation.digest,
        "signature": vouched.signature,
        "policy": vouched.policy.reference,
    }


@contextmanager
def _recorded(record: dict[str, object], place: tuple[str, str], run_id: str, client: MlflowClient) -> Iterator[None]:
    """Leave the record as an artifact of the audit's run, which stays, and as a tag, which goes when nothing was promoted."""
    name, version = place
    file = f"{tags.PROMOTIONS_FOLDER}/{str(record['at']).replace(':', '')}-{uuid.uuid4().hex[:8]}.json"
    full = {**record, "version": f"models:/{name}/{version}"}
    _log(full, "begun", run_id, file, client)
    client.set_model_version_tag(name, version, tags.PROMOTION, json.dumps(record, sort_keys=True))
    try:
        yield
    except BaseException as error:
        with suppress(MlflowException, OSError):  # the first failure is the one to report
            client.delete_model_version_tag(name, version, tags.PROMOTION)
            _log(full, f"not promoted: {_reason(error)}", run_id, file, client)
        raise
    # The alias is set and holds; that the word "promoted" could not be added to the record undoes nothing.
    with suppress(MlflowException, OSError):
        _log(full, "promoted", run_id, file, client)


def _log(record: dict[str, object], outcome: str, run_id: str, file: str, client: MlflowClient) -> None:
    text = json.dumps({**record, "outcome": outcome}, sort_keys=True, indent=1)
    client.log_text(run_id, text + "\n", file)


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, (LipschitzError, MlflowException)) else type(error).__name__


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
