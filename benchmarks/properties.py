"""Properties of public networks (VNN-LIB): our answer, the expected one, and the seconds.

    python -m benchmarks.properties [--only NAME] [--timeout 60] [--device cpu|cuda] [--jobs 1]

The networks and properties are test data beside the checkout; without them it says so and stops. Every instance runs in a
process of its own with one thread: what one of them needs or breaks does not touch the next. `WRONG` would be an answer that
contradicts the expected one; nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parents[2] / "shared" / "models"
WORDS = {"certified": "unsat", "violated": "sat"}
GRACE = 30.0  # seconds for starting up, and for an operator that cannot be interrupted
HEADER = f"{'network':34} {'property':58} {'expected':>8} {'ours':>9} {'seconds':>8} {'boxes':>8}"


@dataclass(frozen=True)
class Instance:
    group: str
    network: str
    vnnlib: str
    expected: str

    @property
    def name(self) -> str:
        return f"{self.network} {self.vnnlib}"


@dataclass(frozen=True)
class Result:
    answer: str
    seconds: float
    boxes: int
    note: str = ""


def instances() -> Iterator[Instance]:
    """All of the manifest, none where it is absent."""
    if not (MODELS / "manifest.json").is_file():
        return
    for group in json.loads((MODELS / "manifest.json").read_text(encoding="utf-8"))["benchmarks"]:
        for network in group["networks"]:
            for row in network["instances"]:
                yield Instance(group["benchmark"], network["file"], row["vnnlib"], row["expected"])


def solve(instance: Instance, timeout: float, device: str) -> Result:
    """The command line's answer, in a process of its own."""
    command = [sys.executable, "-m", "mlflow_lipschitz.cli", "verify-property", str(MODELS / instance.network)]
    command += [str(MODELS / instance.vnnlib), "--timeout", str(timeout), "--device", device, "--format", "json"]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout + GRACE, env={**os.environ, **threads}
        )
    except subprocess.TimeoutExpired:
        return Result("unknown", time.perf_counter() - began, 0, "had to be killed")
    if not done.stdout.strip():
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Result("error", time.perf_counter() - began, 0, lines[-1])
    found = json.loads(done.stdout)
    answer = WORDS.get(found["status"], "unknown")
    return Result(answer, found["seconds"], found["boxes"], found["message"] if answer == "unknown" else "")


def is_wrong(expected: str, answer: str) -> bool:
    return {expected, answer} == {"sat", "unsat"}


def line(instance: Instance, result: Result) -> str:
    network = Path(instance.network).stem[-34:]
    name = Path(instance.vnnlib).name.removesuffix(".gz").removesuffix(".vnnlib")[-58:]
    wrong = " WRONG" if is_wrong(instance.expected, result.answer) else ""
    note = f"  {result.note}" if result.answer == "error" else ""
    return (
        f"{network:34} {name:58} {instance.expected:>8} {result.answer:>9} {result.seconds:8.1f} {result.boxes:8}"
        f"{wrong}{note}"
    )


def totals(rows: list[tuple[Instance, Result]]) -> list[str]:
    """Per group: decided of all, and how many are wrong."""
    text = [f"{'group':24} {'unsat':>10} {'sat':>10} {'open':>6} {'wrong':>6} {'seconds':>8}"]
    for group in [*dict.fromkeys(instance.group for instance, _ in rows), None]:
        own = [(i, r) for i, r in rows if group in (None, i.group)]
        expected = Counter(i.expected for i, _ in own)
        found = Counter(r.answer for i, r in own if r.answer == i.expected)
        opened = sum(r.answer not in ("sat", "unsat") for _, r in own)
        wrong = sum(is_wrong(i.expected, r.answer) for i, r in own)
        counts = [f"{found[word]}/{expected[word]}" for word in ("unsat", "sat")]
        seconds = sum(r.seconds for _, r in own)
        text.append(f"{group or 'all':24} {counts[0]:>10} {counts[1]:>10} {opened:6} {wrong:6} {seconds:8.0f}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="instances whose network or property contains this")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; times are comparable with 1")
    options = parser.parse_args()
    chosen = [instance for instance in instances() if options.only in instance.name]
    if not chosen:
        print("no such properties are beside this checkout; nothing to do")
        return 2
    print(HEADER)
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda instance: solve(instance, options.timeout, options.device), chosen)
        for instance, result in zip(chosen, results, strict=True):
            rows.append((instance, result))
            print(line(instance, result), flush=True)
    print("\n" + "\n".join(totals(rows)))
    return 1 if any(is_wrong(instance.expected, result.answer) for instance, result in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
