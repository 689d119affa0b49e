"""Promotions that are killed: a program of its own, since it forks, and a forked child must inherit no open store.

Every child counts what Python does (calls and returns, those into C included) and kills itself with SIGKILL at a given
count. A count is a moment of a promotion and, unlike a time, the same on a slow machine. Prints one JSON line per trial.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import mlflow
import mlflow.store.artifact.local_artifact_repo
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
from mlflow.tracking import MlflowClient
from sqlalchemy.orm import configure_mappers

from mlflow_lipschitz.registry.promotion import PromotionOptions, promote
from mlflow_lipschitz.registry.trust import TrustSources, trust_from
from mlflow_lipschitz.registry.verification import Subject, examined, verified


def forked(act: Callable[[], Any]) -> tuple[int, Any]:
    """Run `act` in a child: the signal that ended it (0: none), and its answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            os.write(writing, json.dumps(act()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the child failed; see above")
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0), json.loads(content) if content else None


def counted_promotion(store: str, uri: str, target: dict[str, str], public: Path, end: int | None) -> dict[str, int]:
    """Promote; be killed at the count `end`. Else the counts at which changes began and at which all was done."""
    seen = {"all": 0, "changes": 0}

    def count(frame: FrameType, event: str, _: object) -> None:
        seen["all"] += 1
        if event == "call" and frame.f_code.co_name == "carry_out":
            seen["changes"] = seen["all"]
        if seen["all"] == end:
            os.kill(os.getpid(), signal.SIGKILL)

    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    MlflowClient()
    sys.setprofile(count)
    promote(uri, options=PromotionOptions(trust=TrustSources((public,))), **target)
    sys.setprofile(None)
    return seen


def look(store: str, name: str, alias: str, public: Path) -> list[Any]:
    """What the alias points to, and whether the evidence of that is valid."""
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    held = MlflowClient().search_registered_models(f"name='{name}'")
    version = held[0].aliases.get(alias) if held else None
    if version is None:
        return [None, False]
    with examined(Subject(f"models:/{name}/{version}"), trust_from(TrustSources((public,)))) as found:
        return [str(version), verified(found)]


def reset(store: str, name: str, alias: str, version: str | None) -> None:
    """Point the alias to `version` again, or nowhere."""
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    if version is not None:
        client.set_registered_model_alias(name, alias, version)
    elif client.search_registered_models(f"name='{name}'"):
        client.delete_registered_model_alias(name, alias)


def main(store: str, name: str, public: str, trials: str, copies: str) -> None:
    """Kill `trials` promotions of version 1, and `copies` promotions of a copy of it; `champion` was 2, or not there."""
    # What every child would import and set up, done once; so the moments counted are those of the work itself.
    configure_mappers()
    generator = random.Random(20_260)
    where = {name: ("2", {"alias": "champion"}), f"prod-{name}": (None, {"alias": "champion", "to": f"prod-{name}"})}
    for (place, (before, target)), count in zip(where.items(), (int(trials), int(copies)), strict=True):
        if not count:
            continue
        act = (store, f"models:/{name}/1", target, Path(public))
        _, whole = forked(lambda act=act: counted_promotion(*act, None))
        for trial in range(count):
            forked(lambda place=place, before=before: reset(store, place, "champion", before))
            # Every other one among the changes, where a kill could do harm.
            end = generator.randint(whole["changes"] if trial % 2 else 1, whole["all"])
            ended, _ = forked(lambda act=act, end=end: counted_promotion(*act, end))
            _, (held, valid) = forked(lambda place=place: look(store, place, "champion", Path(public)))
            line = {"place": place, "end": end, "of": whole["all"], "changes": whole["changes"]}
            answer = {**line, "signal": ended, "before": before, "held": held, "valid": valid}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
