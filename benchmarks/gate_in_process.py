"""What the gate's own code takes for each call, in front of a store that does nothing, and what the store alone takes.

Usage: python -m benchmarks.gate_in_process [--batches 60]

The quickest of many batches, which no neighbor disturbed. The quotient is an upper bound of what a request pays, for a server
does more than its store for each call. `python -m benchmarks.gate_overhead` compares whole servers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).parent.parent / "plugins" / "registry_gate"
sys.path[:0] = [str(PLUGIN), str(PLUGIN / "tests")]

import inside  # noqa: E402
from mlflow.entities.model_registry import ModelVersionTag  # noqa: E402
from mlflow.server import handlers  # noqa: E402
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository  # noqa: E402
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore  # noqa: E402
from mlflow_lipschitz_gate.gated_files import _gated_class  # noqa: E402
from mlflow_lipschitz_gate.gated_store import GatedStore  # noqa: E402

WRITES = (
    "set_registered_model_alias",
    "transition_model_version_stage",
    "set_model_version_tag",
    "create_model_version",
)


def _nothing(*_: Any, **__: Any) -> None:
    pass


@dataclass(frozen=True)
class Kinds:
    """An object's class as it is, one whose writes do nothing, and that one behind the gate."""

    target: Any
    plain: type
    idle: type
    gated: type

    def microseconds(self, call: Callable[[], object], batches: int) -> tuple[float, float]:
        """What the object itself takes for `call`, and what the gate adds."""
        taken = []
        for kind, size in ((self.plain, 5), (self.idle, 500), (self.gated, 500)):
            self.target.__class__ = kind
            taken.append(1e6 * quickest(call, batches, size))
        return taken[0], taken[2] - taken[1]


def quickest(action: Callable[[], object], batches: int, size: int) -> float:
    """CPU seconds of one action: the quickest of many batches, which is the one that nobody disturbed."""
    found = []
    for _ in range(batches):
        begun = time.thread_time_ns()
        for _ in range(size):
            action()
        found.append((time.thread_time_ns() - begun) / size / 1e9)
    return min(found)


def store_kinds(store: Any) -> Kinds:
    """The registry's store."""
    idle = type("IdleStore", (SqlAlchemyStore,), dict.fromkeys(WRITES, _nothing))
    return Kinds(store, SqlAlchemyStore, idle, type("GatedIdleStore", (GatedStore, idle), {}))


def file_kinds(repository: Any) -> Kinds:
    """The artifact repository."""
    idle = type("IdleFiles", (LocalArtifactRepository,), {"log_artifact": _idle_upload})
    return Kinds(repository, LocalArtifactRepository, idle, _gated_class(idle))


def _idle_upload(self: Any, local_file: str, artifact_path: str | None = None) -> None:
    pass  # the gate asks its parameters by name


def lines(folder: Path, batches: int) -> Iterator[str]:
    """One row of the table per call."""
    world = inside.World(folder)
    model_id, _ = world.new_model()
    world.register("model", model_id)
    store: Any = world.store
    repository: Any = handlers._get_artifact_repo_mlflow_artifacts()
    file = folder / "plot.bin"
    file.write_bytes(b"x" * 100_000)
    registry, files = store_kinds(store), file_kinds(repository)
    tag, source = ModelVersionTag("a", "b"), f"models:/{model_id}"
    calls: dict[str, tuple[Kinds, Callable[[], object]]] = {
        "set an alias": (registry, lambda: store.set_registered_model_alias("model", "challenger", "1")),
        "set a stage": (registry, lambda: store.transition_model_version_stage("model", "1", "Staging", False)),
        "tag a version": (registry, lambda: store.set_model_version_tag("model", "1", tag)),
        "create a version": (registry, lambda: store.create_model_version("model", source, tags=[tag])),
        "upload 100 kB": (files, lambda: repository.log_artifact(str(file), "0/run/artifacts")),
    }
    for name, (kinds, call) in calls.items():
        plain, more = kinds.microseconds(call, batches)
        yield f"| {name} | {1e-3 * plain:.2f} ms | {more:.1f} µs | {100 * more / plain:.2f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=60, help="batches of each call, of which the quickest counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("| call | the store alone | the gate's own code | quotient |\n|---|---|---|---|")
        for text in lines(Path(folder), options.batches):
            print(text, flush=True)


if __name__ == "__main__":
    main()
