"""What the server's gate costs: two live servers, one with the gate and one without, asked the same in turns.

Usage: python -m benchmarks.gate_overhead [--pairs 200] [--control]

The machine may be shared, so calls alternate between the servers, in blocks and in changing order, and the figure is the ratio
of the medians over all blocks, of the server's CPU time and of the time the client waits, with an interval from 2 000
resamples of the pairs. CPU time is that of all threads of all processes of a server (Linux). `--control` compares two servers
without the gate: what it shows beside 1 is the noise of this machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PLUGIN = Path(__file__).parent.parent / "plugins" / "registry_gate"
sys.path[:0] = [str(PLUGIN), str(PLUGIN / "tests")]

from conftest import RELEASE, prepare  # noqa: E402
from servers import Server, Setup, serving  # noqa: E402
from world import API, Version, World  # noqa: E402

Call = Callable[[World, Version, int], object]


def get_version(world: World, version: Version, _: int) -> object:
    return world.read(version)


def search(world: World, version: Version, _: int) -> object:
    return world.call(
        "GET", f"{API}/model-versions/search", params={"filter": f"name='{version.name}'", "max_results": 1}
    )


def set_tag(world: World, version: Version, number: int) -> object:
    return world.tag(version, str(number), "note")


def set_alias(world: World, version: Version, _: int) -> object:
    return world.done(world.set_alias(version, "challenger"))


def set_stage(world: World, version: Version, _: int) -> object:
    return world.done(world.set_stage(version, "Staging"))


def create_version(world: World, version: Version, _: int) -> object:
    body = {"name": version.name, "source": f"models:/{version.model_id}", "model_id": version.model_id}
    return world.done(world.post("model-versions/create", body))


def log_metric(world: World, version: Version, number: int) -> object:
    body = {"run_id": version.run_id, "key": "loss", "value": 0.5, "timestamp": number + 1}
    return world.done(world.post("runs/log-metric", body))


def upload(world: World, version: Version, number: int) -> object:
    return world.done(world.put(f"0/{version.run_id}/artifacts/plots/{number % 10}.bin", b"x" * 100_000))


def download(world: World, version: Version, _: int) -> object:
    return world.call("GET", f"/api/2.0/mlflow-artifacts/artifacts/{version.path}/MLmodel")


@dataclass(frozen=True)
class Kind:
    """A kind of call, how many are timed together, and what is done before each such block and not timed."""

    call: Call
    block: int = 5
    before: Call | None = None

    def cost(self, world: World, version: Version, start: int) -> tuple[float, float]:
        """CPU and waiting time of one call, the mean of a block."""
        if self.before is not None:
            self.before(world, version, start)
        cpu, clock = cpu_seconds(world.server), time.perf_counter()
        for number in range(start, start + self.block):
            self.call(world, version, number)
        waited = time.perf_counter() - clock
        return (cpu_seconds(world.server) - cpu) / self.block, waited / self.block


def pause(_: World, __: Version, ___: int) -> None:
    """Longer than the gate trusts what it read in the database."""
    time.sleep(1.2)


KINDS = {
    "read a version": Kind(get_version),
    "search versions": Kind(search),
    "tag a version": Kind(set_tag),
    "set an alias": Kind(set_alias),
    "set a stage": Kind(set_stage),
    "create a version": Kind(create_version),
    "log a metric": Kind(log_metric),
    "upload 100 kB": Kind(upload),
    "download a file": Kind(download),
    "upload 100 kB, the first after a registration": Kind(upload, 1, create_version),
    "upload 100 kB after a second without one": Kind(upload, 1, pause),
}


def cpu_seconds(server: Server) -> float:
    """CPU time of every thread of every process in the server's group, which began as a session of its own."""
    total = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            group = int((process / "stat").read_text().rpartition(")")[2].split()[2])
            if group == server.process.pid:
                total += sum(int((task / "schedstat").read_text().split()[0]) for task in (process / "task").iterdir())
        except (OSError, IndexError):
            continue  # it has ended
    return total / 1e9


@contextmanager
def pair(folder: Path, *, control: bool) -> Iterator[tuple[World, World]]:
    """A server without the gate and one with it."""
    plain, gated = folder / "plain", folder / "gated"
    for place in (plain, gated):
        place.mkdir()
    config = None if control else prepare(gated)
    with (
        serving(Setup(gate=False, workers=1), plain, None) as without,
        serving(Setup(gate=not control, workers=1), gated, config) as having,
    ):
        yield World(without, RELEASE), World(having, RELEASE)


Pairs = list[tuple[float, float]]


def ratio(pairs: Pairs) -> float:
    return statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)


def interval(pairs: Pairs) -> tuple[float, float]:
    """95 % of the ratios of medians of resampled pairs."""
    generator = random.Random(1)
    found = sorted(ratio(generator.choices(pairs, k=len(pairs))) for _ in range(2000))
    return found[50], found[-51]


def line(name: str, cpu: Pairs, wall: Pairs) -> str:
    shown = []
    for pairs in (cpu, wall):
        low, high = interval(pairs)
        base = statistics.median(a for a, _ in pairs)
        shown.append(f"{1e3 * base:.2f} ms × {ratio(pairs):.3f} ({low:.3f} to {high:.3f})")
    return f"| {name} | {shown[0]} | {shown[1]} |"


def both_versions(worlds: tuple[World, World]) -> list[Version]:
    """A version on each server whose fields also name a run of its own."""
    found = []
    for world in worlds:
        made = world.new_version()
        found.append(Version(made.name, made.version, made.model_id, made.path, made.files, world.new_run()))
    return found


def overhead(worlds: tuple[World, World], rounds: int) -> Iterator[str]:
    """One line per kind of call, then all of them together."""
    versions = both_versions(worlds)
    found: dict[str, tuple[Pairs, Pairs]] = {name: ([], []) for name in KINDS}
    for count in range(-3, rounds):
        sums = [[0.0, 0.0], [0.0, 0.0]]
        for name, kind in KINDS.items():
            result = {}
            for side in (0, 1) if count % 2 else (1, 0):
                result[side] = kind.cost(worlds[side], versions[side], kind.block * (count + 3))
                sums[side] = [s + r for s, r in zip(sums[side], result[side], strict=True)]
            if count >= 0:  # the first rounds warm up
                for pairs, without, having in zip(found[name], *(result[side] for side in (0, 1)), strict=True):
                    pairs.append((without, having))
        if count >= 0:
            together = found.setdefault("**all of these, once each**", ([], []))
            for pairs, without, having in zip(together, *sums, strict=True):
                pairs.append((without, having))
    for name, (cpu, wall) in found.items():
        yield line(name, cpu, wall)


def promotions(world: World, plain: World) -> Iterator[str]:
    """A protected alias, by the size of the model, beside the same call where nothing is protected, and beside hashing alone."""
    for size in (1_000, 10_000_000, 100_000_000, 500_000_000):
        good, other = world.new_version(content=b"x" * size), plain.new_version(content=b"x" * size)
        world.attest(good)
        waits: tuple[list[float], list[float], list[float]] = ([], [], [])
        for _ in range(7):
            for measured, step in (
                (waits[0], lambda v=good: world.done(world.set_alias(v))),
                (waits[1], lambda v=other: plain.done(plain.set_alias(v))),
                (waits[2], lambda v=good: hashed(world, v)),
            ):
                clock = time.perf_counter()
                step()
                measured.append(time.perf_counter() - clock)
        gate, without, hashing = (statistics.median(w) for w in waits)
        rest = gate - 2 * hashing
        yield f"| {size / 1e6:g} MB | {gate:.3f} s | {without:.3f} s | {hashing:.3f} s | {rest:.3f} s |"


def hashed(world: World, version: Version) -> None:
    import hashlib

    for path in sorted((world.server.files / version.path).rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200, help="blocks of each call on each server")
    parser.add_argument("--control", action="store_true", help="two servers without the gate")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, pair(Path(folder), control=options.control) as (without, having):
        print("| call | CPU of the server, without the gate × ratio | waiting, without × ratio |\n|---|---|---|")
        for text in overhead((without, having), options.pairs):
            print(text, flush=True)
        if options.control:
            return
        print("\n| model | promotion | same alias, no gate | hashing once | the rest |\n|---|---|---|---|---|")
        for text in promotions(having, without):
            print(text, flush=True)


if __name__ == "__main__":
    main()
