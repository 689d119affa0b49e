"""The long profile: `python -m tests.soundness.long --draws 20000 --seed 7`, and with `--claim deployed` of the second claim.

Prints a line every 1,000 draws, every violation with the command that repeats it, and what was covered. The exit code is 1 when
a bound is violated and 130 when the run was interrupted: it then tells what was covered, and where `--start` goes on. Draw i of
a seed is the same in every run.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

import torch

from tests.soundness import deployed, draws
from tests.soundness.draws import Outcome, check_draws

CLAIMS = {"real": draws.check_network, "deployed": deployed.check_network}
_EVERY = 1000
_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soundness.long", description=__doc__)
    parser.add_argument("--draws", type=int, default=20_000, help="how many (network, region, objective) triples")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--start", type=int, default=0, help="number of the first draw")
    parser.add_argument("--claim", choices=CLAIMS, default="real", help="of exact, or of served programs")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    total, begun, code = Outcome(), time.monotonic(), 0
    try:
        _run(asked, total, begun)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    finally:
        if total.counts["draws"] < asked.draws:
            _say(
                f"stopped; go on with --claim {asked.claim} --seed {asked.seed} --start {asked.start + total.counts['draws']}"
            )
    _say("\n".join(f"{name:52s} {count}" for name, count in sorted(total.counts.items())))
    _say("\n".join(f"{name:52s} {share:.4f}" for name, share in sorted(total.largest.items())))
    _say(f"{total.counts['draws']} draws, {len(total.broken)} violations, {_spent(begun)}")
    return 1 if total.broken else code


def _run(asked: argparse.Namespace, total: Outcome, begun: float) -> None:
    for outcome in check_draws(asked.seed, asked.start, asked.start + asked.draws, CLAIMS[asked.claim]):
        before = total.counts["draws"]
        total.add(outcome)
        for number, violation in outcome.broken:
            again = (
                f"python -m tests.soundness.long --claim {asked.claim} --seed {asked.seed} --start {number} --draws 1"
            )
            _say(f"VIOLATION {violation}\n  {again}")
        done = total.counts["draws"]
        if done // _EVERY > before // _EVERY:
            _say(f"{done} of {asked.draws} draws, {len(total.broken)} violations, {_spent(begun)}")


def _spent(begun: float) -> str:
    return f"{time.monotonic() - begun:.0f} s, {time.process_time():.0f} s of them on a core"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # A shell makes what runs in the background ignore interrupts; asked to end, this tells what it has seen.
    for asked_to_stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked_to_stop, signal.default_int_handler)
    sys.exit(main())
