"""Programs of many kinds that serve a network, and points at which they are likely to be far from the exact function.

This only chooses points; how far a program is there is decided in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from mlflow_lipschitz.engine.attack.sampling import clip
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.served.formats import format_named
from tests.served import FORMATS, Manner, serve_all
from tests.soundness.drafts import Rng
from tests.soundness.exported import LEVELS, NotExported, TorchNetwork, onnx_model, onnx_session
from tests.soundness.probes import points_of_every_kind

_SIMULATED = 3
_CLIMBS, _KEPT, _TRIES = 2, 4, 12


@dataclass(frozen=True)
class Program:
    """`serve` takes (points, *input shape) to (points, outputs), float64; `model` is what onnxruntime runs, if it does."""

    name: str
    serve: Callable[[np.ndarray], np.ndarray]
    model: onnx.ModelProto | None = None

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(samples, rows, outputs) of points (samples, rows, *input shape)."""
        return self.serve(points.reshape(-1, *points.shape[2:])).reshape(*points.shape[:2], -1)


def programs_of(graph: Graph, rng: Rng, format: str) -> list[Program]:
    """Simulated ones with sums in different orders, torch's operators, and onnxruntime where the network can be exported."""
    manners = [Manner(), *(Manner.drawn(rng) for _ in range(_SIMULATED - 1))]
    programs = [_simulated(graph, format, manner, int(rng.integers(2**31))) for manner in manners]
    programs.append(_torch(graph, format))
    if format == "float32":
        try:
            model = onnx_model(graph)
        except NotExported:
            return programs
        programs += [Program(f"onnxruntime: {level.name}", onnx_session(model, level), model) for level in LEVELS]
    return programs


def _simulated(graph: Graph, format: str, manner: Manner, seed: int) -> Program:
    return Program(
        f"simulated: {manner}, order {seed}",
        lambda points: serve_all(graph, points, np.random.default_rng(seed), format, manner),
    )


def _torch(graph: Graph, format: str) -> Program:
    kind = FORMATS[format]
    network = TorchNetwork(graph, kind)

    def answers(points: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(points).to(kind)).to(torch.float64).numpy()

    return Program("torch", answers)


def largest_share(answers: Iterable[np.ndarray], truth: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(samples, rows): how much of a bound (rows, outputs) some answer needs; infinite where there is no number."""
    known = np.isfinite(bounds)
    scale = np.where(known & (bounds > 0), bounds, 1.0)
    share = np.zeros(truth.shape[:2])
    for answer in answers:
        off = np.where(known, np.abs(answer - truth) / scale, 0.0)
        share = np.maximum(share, np.where(np.isnan(off), np.inf, off).max(-1))
    return share


def served_points(
    graph: Graph, region: Region, bounds: np.ndarray, programs: Sequence[Program], format: str, rng: Rng
) -> np.ndarray:
    """(samples, rows, *input shape): of every kind, numbers of the format, halfway between two, and from the worst onward."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        x = torch.cat(list(points_of_every_kind(graph, region, generator)))
        near = x[: x.shape[0] // 2]
        x = torch.cat(
            [x, clip(region, near.to(FORMATS[format]).to(torch.float64)), clip(region, _between(near, format, rng))]
        )
        for _ in range(_CLIMBS):
            points = x.numpy()
            truth = evaluate(graph, x.flatten(0, 1)).reshape(*x.shape[:2], -1).numpy()
            share = largest_share((program(points) for program in programs), truth, bounds)
            x = torch.cat([x, clip(region, _beside(x, torch.from_numpy(share), format, rng))])
    return x.numpy()


def _between(x: Tensor, format: str, rng: Rng) -> Tensor:
    """Almost halfway between a number of the format and one next to it, on a random side: rounded there most."""
    held = x.to(FORMATS[format]).to(torch.float64)
    form = format_named(format)
    _, exponent = torch.frexp(held)
    halfway = torch.ldexp(torch.full_like(held, 0.4999 * form.unit), exponent).clamp(min=form.tiny * form.unit)
    halfway = torch.where(held == 0, form.tiny * form.unit, halfway)
    sides = torch.from_numpy(rng.choice([-1.0, 1.0], tuple(x.shape)))
    return held + halfway * sides


def _beside(x: Tensor, share: Tensor, format: str, rng: Rng) -> Tensor:
    """From the points of the largest shares a few entries moved: to another number of the format, or to where another point is."""
    best = share.argsort(dim=0, descending=True, stable=True)[: min(_KEPT, len(x))]
    rows = torch.arange(x.shape[1])
    start = x[best, rows][torch.arange(_TRIES) % len(best)]
    other = x[torch.from_numpy(rng.integers(len(x), size=tuple(start.shape[:2]))), rows]
    moved = torch.from_numpy(rng.random(tuple(start.shape))) < 0.4
    away = torch.from_numpy(rng.choice([0.0, 0.5, 1.0], (_TRIES, *[1] * (x.dim() - 1))))
    return torch.where(moved, _between(start + (other - start) * away, format, rng), start)
