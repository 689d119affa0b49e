"""What the server's gate costs: live servers, one of each pair with the gate and one without, asked the same in turns.

Usage: python -m benchmarks.gate_overhead [--servers 10] [--pairs 25] [--control]

The machine may be shared, so calls alternate between the two servers, in blocks and in changing order. Two processes of one
program differ by some percent for as long as they live, so there are many pairs of servers, started in changing order. The
figure of a pair is the ratio of its medians, of the server's CPU time and of the time the client waits; the figure of all is
the geometric mean with its 95 % interval (Student's t, over the pairs). CPU time is that of all threads of all processes of a
server (Linux). `--control` compares servers without the gate: what it shows beside 1 is the noise of this machine.

`python -m benchmarks.gate_in_process` times the gate's own code.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

PLUGIN = Path(__file__).parent.parent / "plugins" / "registry_gate"
sys.path[:0] = [str(PLUGIN), str(PLUGIN / "tests")]

from conftest import RELEASE, prepare  # noqa: E402
from servers import Server, Setup, serving  # noqa: E402
from world import API, Version, World  # noqa: E402

WARM_UP = 3
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
def pair(folder: Path, *, control: bool, gate_first: bool) -> Iterator[tuple[World, World]]:
    """A server without the gate and one with it."""
    found: dict[bool, World] = {}
    with ExitStack() as stack:
        for gated in (True, False) if gate_first else (False, True):
            place = folder / ("gated" if gated else "plain")
            place.mkdir()
            config = prepare(place) if gated and not control else None
            server = serving(Setup(gate=gated and not control, workers=1), place, config)
            found[gated] = World(stack.enter_context(server), RELEASE)
        yield found[False], found[True]


Costs = tuple[float, float]
# For each kind of call, what each block cost on each of the two servers.
Rounds = dict[str, tuple[list[Costs], list[Costs]]]


def together(found: Rounds) -> tuple[list[Costs], list[Costs]]:
    """All kinds of calls, once each."""
    sides = []
    for side in (0, 1):
        rounds = zip(*(blocks[side] for blocks in found.values()), strict=True)
        sides.append([(sum(cpu for cpu, _ in r), sum(wait for _, wait in r)) for r in rounds])
    return sides[0], sides[1]


def line(name: str, servers: list[tuple[list[Costs], list[Costs]]]) -> str:
    """A row of the table: the costs without the gate, and the ratios."""
    shown = []
    for measure in (0, 1):
        medians = [[statistics.median(cost[measure] for cost in side) for side in sides] for sides in servers]
        logs = [math.log(having / without) for without, having in medians]
        reach = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
        low, ratio, high = (math.exp(statistics.mean(logs) + sign * reach) for sign in (-1, 0, 1))
        base = statistics.median(without for without, _ in medians)
        shown.append(f"{1e3 * base:.2f} ms × {ratio:.3f} ({low:.3f} to {high:.3f})")
    return f"| {name} | {shown[0]} | {shown[1]} |"


def both_versions(worlds: tuple[World, World]) -> list[Version]:
    """A version on each server whose fields also name a run of its own."""
    found = []
    for world in worlds:
        made = world.new_version()
        found.append(Version(made.name, made.version, made.model_id, made.path, made.files, world.new_run()))
    return found


def rounds(worlds: tuple[World, World], count: int) -> Rounds:
    """Every kind of call, in turns on the two servers."""
    versions = both_versions(worlds)
    found: Rounds = {name: ([], []) for name in KINDS}
    for number in range(count + WARM_UP):
        for name, kind in KINDS.items():
            for side in (0, 1) if number % 2 else (1, 0):
                cost = kind.cost(worlds[side], versions[side], kind.block * number)
                if number >= WARM_UP:
                    found[name][side].append(cost)
    return found


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
    parser.add_argument("--servers", type=int, default=10, help="pairs of servers, two at least")
    parser.add_argument("--pairs", type=int, default=25, help="blocks of each call on each server")
    parser.add_argument("--control", action="store_true", help="two servers without the gate")
    options = parser.parse_args()
    found: list[Rounds] = []
    table = ""
    for number in range(options.servers):
        with (
            tempfile.TemporaryDirectory() as folder,
            pair(Path(folder), control=options.control, gate_first=bool(number % 2)) as worlds,
        ):
            found.append(rounds(worlds, options.pairs))
            if number == options.servers - 1 and not options.control:
                table = "\n".join(promotions(worlds[1], worlds[0]))
            print(f"{number + 1} of {options.servers} pairs of servers", file=sys.stderr, flush=True)
    print("| call | CPU of the server, without the gate × ratio | waiting, without × ratio |\n|---|---|---|")
    for name in KINDS:
        print(line(name, [one[name] for one in found]))
    print(line("**all of these, once each**", [together(one) for one in found]))
    if table:
        print("\n| model | promotion | same alias, no gate | hashing once | the rest |\n|---|---|---|---|---|")
        print(table)


if __name__ == "__main__":
    main()
