"""Moments that no client can hit on purpose, brought about inside a process of their own each: run by test_moments.py.

Usage: python inside.py FOLDER. It prints as JSON what was found in each case.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
from flask import Flask
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.server import handlers
from mlflow.store.artifact import artifact_repository_registry as repositories
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow_lipschitz_gate import doors, verification
from mlflow_lipschitz_gate.config import load_config
from mlflow_lipschitz_gate.doors import MARK
from mlflow_lipschitz_gate.gated_store import gated
from mlflow_lipschitz_gate.install import install
from signing import envelope, statement

FILES = {"MLmodel": b"flavors: {}\n", "data/model.onnx": b"weights"}


class World:
    """A store with the gate, in `folder`, and models made without a server."""

    def __init__(self, folder: Path) -> None:
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = str(folder / "artifacts")
        os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        self.folder = folder
        self.config = load_config(conftest.prepare(folder))
        install(self.config, Flask("inside"))
        self.tracking: Any = handlers._get_tracking_store()
        self.store: Any = handlers._get_model_registry_store()

    def new_model(self) -> tuple[str, Path]:
        """A logged model with files: its id and their folder."""
        model = self.tracking.create_logged_model(experiment_id="0", name="m")
        place = self.folder / "artifacts" / model.artifact_location.removeprefix("mlflow-artifacts:/")
        for name, content in FILES.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return model.model_id, place

    def register(self, name: str, model_id: str) -> None:
        """The model as version 1 of `name`, with an attestation."""
        self.store.create_registered_model(name)
        self.store.create_model_version(name, f"models:/{model_id}", model_id=model_id)
        run = self.tracking.create_run("0", "u", 1, [], "r")
        where = self.folder / "artifacts" / run.info.artifact_uri.removeprefix("mlflow-artifacts:/") / "lipschitz"
        where.mkdir(parents=True)
        said = statement(FILES, name, "1", model_id)
        (where / "attestation.json").write_bytes(envelope(said, conftest.RELEASE))
        self.store.set_model_version_tag(name, "1", ModelVersionTag("lipschitz.run_id", run.info.run_id))

    def audited(self, name: str = "m") -> Path:
        model_id, place = self.new_model()
        self.register(name, model_id)
        return place

    def aliases(self, name: str) -> dict[str, str]:
        return {alias: str(version) for alias, version in self.store.get_registered_model(name).aliases.items()}

    def marks(self, name: str) -> list[str]:
        return [key for key in self.store.get_model_version(name, "1").tags if key.startswith(MARK)]


def between(method: str, act: Callable[[], None], *, before: bool = False) -> None:
    """Do `act` whenever the store without the gate has done `method`, or before it does."""
    real = getattr(SqlAlchemyStore, method)

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before:
            act()
        done = real(self, *args, **kwargs)
        if not before:
            act()
        return done

    setattr(SqlAlchemyStore, method, changed)


def outcome(action: Callable[[], Any]) -> str:
    try:
        action()
    except MlflowException as error:
        return str(error.error_code)
    except BaseException as error:  # noqa: BLE001 - what it was is what is asked
        return type(error).__name__
    return "done"


def promoted(world: World, name: str, version: str = "1") -> list[Any]:
    """What became of a promotion, and the aliases after it."""
    return [outcome(lambda: world.store.set_registered_model_alias(name, "champion", version)), world.aliases(name)]


def swapped_behind_another_spelling(world: World) -> Any:
    """The second look finds other files, and the version was called ` 1`."""
    places: list[Path] = []
    between("set_registered_model_alias", lambda: (places[-1] / "MLmodel").write_bytes(b"evil"))
    found = []
    for count, number in enumerate(("1", " 1", "01", "\u0661")):
        places.append(world.audited(f"m{count}"))
        found.append(promoted(world, f"m{count}", number))
    return found


def second_look_breaks(world: World) -> Any:
    """The library of a store, the database or the server itself ends the second look in its own way."""
    plain, fails = verification.hash_files, range(3, 9)
    looks: list[BaseException] = []

    def broken(*args: Any) -> Any:
        looks.append(looks[0])
        if len(looks) in fails:
            raise looks[0]
        return plain(*args)

    verification.hash_files = broken
    found = []
    for number, error in enumerate((RuntimeError("bucket"), MemoryError(), SystemExit(1), KeyboardInterrupt())):
        world.audited(f"m{number}")
        looks[:] = [error]
        found.append([*promoted(world, f"m{number}"), world.marks(f"m{number}")])
        looks[:] = [error]
        said = outcome(lambda n=number: world.store.transition_model_version_stage(f"m{n}", "1", "Production", False))
        found.append([said, world.store.get_model_version(f"m{number}", "1").current_stage, world.marks(f"m{number}")])
    return found


def the_database_is_away(world: World) -> Any:
    """It goes away when the door has been opened and the files were swapped, and stays away for a while."""
    place = world.audited("m")
    away: list[int] = []
    plain = SqlAlchemyStore.get_model_version

    def get(self: Any, *args: Any) -> Any:
        if away and away.pop():
            raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)
        return plain(self, *args)

    def by_alias(self: Any, name: str, alias: str) -> Any:
        return get(self, name, self.get_registered_model(name).aliases.get(alias, 99))

    def swap() -> None:
        (place / "MLmodel").write_bytes(b"evil")
        away.extend([1] * 12)

    doors._AGAIN_SECONDS, doors._PAUSES = 0.01, (0.01,)
    SqlAlchemyStore.get_model_version = get
    SqlAlchemyStore.get_model_version_by_alias = by_alias
    between("set_registered_model_alias", swap)
    said = outcome(lambda: world.store.set_registered_model_alias("m", "champion", "1"))
    for _ in range(500):
        if not world.aliases("m"):
            break
        time.sleep(0.02)
    return [said, world.aliases("m"), len(away)]


def a_busy_database_takes_nothing_back(world: World) -> Any:
    """The second look fails because somebody else writes; the files are as they were."""
    world.audited("m")
    plain, away = SqlAlchemyStore.get_model_version, [1]

    def get(self: Any, *args: Any) -> Any:
        if world.aliases("m") and away:
            away.pop()
            raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)
        return plain(self, *args)

    SqlAlchemyStore.get_model_version = get
    said = outcome(lambda: world.store.set_registered_model_alias("m", "champion", "1"))
    return [said, world.aliases("m"), world.marks("m")]


def another_worker_starts(world: World) -> Any:
    """A worker that starts while another one is about to open a door leaves that one's mark alone."""
    world.audited("m")
    seen: list[list[str]] = []

    def start() -> None:
        gated(SqlAlchemyStore(world.store.db_uri), world.config, world.store.lipschitz_registrations)
        seen.append([mark.partition(":")[0] for mark in world.marks("m")])

    between("set_registered_model_alias", start, before=True)
    said = outcome(lambda: world.store.set_registered_model_alias("m", "champion", "1"))
    return [said, seen, world.marks("m"), world.aliases("m")]


def alias_set_during_a_rename(world: World) -> Any:
    """The model is renamed just as it gets the alias: its attestation is for the old name."""
    world.audited("m")

    def promote() -> None:
        world.store.set_registered_model_alias("m", "champion", "1")

    between("rename_registered_model", promote, before=True)
    return [outcome(lambda: world.store.rename_registered_model("m", "other")), world.aliases("other")]


class Slow(LocalArtifactRepository):
    """A bucket whose uploads land late: while one is under way, others go on."""

    meanwhile: Callable[[], None]

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        Slow.meanwhile()
        super().log_artifact(local_file, artifact_path)


def upload_that_lands_late(world: World) -> Any:
    """An upload that began before the registration lands after the promotion."""
    repositories._artifact_repository_registry._registry[""] = Slow
    model_id, place = world.new_model()
    handlers._artifact_repo = None
    repository = handlers._get_artifact_repo_mlflow_artifacts()

    def meanwhile() -> None:
        world.register("m", model_id)
        world.store.set_registered_model_alias("m", "champion", "1")
        assert world.aliases("m") == {"champion": "1"}

    Slow.meanwhile = meanwhile
    evil = world.folder / "MLmodel"
    evil.write_bytes(b"evil")
    inside = str(place.relative_to(world.folder / "artifacts"))
    return [outcome(lambda: repository.log_artifact(str(evil), inside)), world.aliases("m")]


def the_whole_store_is_registered(world: World) -> Any:
    """Whoever registers the folder above everything must not stop everybody's uploads."""
    world.audited("good")
    world.store.create_registered_model("m")
    world.store.create_model_version("m", "mlflow-artifacts:/")
    file = world.folder / "x.txt"
    file.write_bytes(b"x")
    repository = handlers._get_artifact_repo_mlflow_artifacts()
    upload = outcome(lambda: repository.log_artifact(str(file), "0/run/artifacts"))
    return [upload, outcome(lambda: repository.delete_artifacts("0")), promoted(world, "m")]


CASES = (
    the_whole_store_is_registered,
    swapped_behind_another_spelling,
    second_look_breaks,
    the_database_is_away,
    a_busy_database_takes_nothing_back,
    another_worker_starts,
    alias_set_during_a_rename,
    upload_that_lands_late,
)


def main(folder: Path) -> None:
    """Each case in a process of its own, with a copy of a database that was made once."""
    empty = folder / "empty.db"
    SqlAlchemyStore(f"sqlite:///{empty}").engine.dispose()
    SqlAlchemyStore._engine_map.clear()
    for case in CASES:
        own = folder / case.__name__
        own.mkdir()
        shutil.copy(empty, own / "mlflow.db")
        if not os.fork():
            (own / "found.json").write_text(json.dumps(case(World(own))))
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
