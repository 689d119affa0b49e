"""Where and in what portions a certification runs: the device, and the one number that bounds memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.errors import UsageError

T = TypeVar("T")

# Float64 numbers in one tensor of linear forms. On a CPU what stays in the cache; on a GPU what fills it.
_CPU_ENTRIES = 1 << 17
_CUDA_ENTRIES = 1 << 26
_ROWS = (64, 1 << 20)  # at least, at most


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        UsageError: an unknown name, or a device this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}; choose auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("the device cuda was asked for, but this machine has none; use --device cpu or auto")
    return torch.device(device)


def default_chunk_size(device: torch.device, graph: Graph) -> int:
    """Linear forms in flight, so that the widest node's coefficients fit the device."""
    entries = _CUDA_ENTRIES if device.type == "cuda" else _CPU_ENTRIES
    widest = max(math.prod(node.shape) for node in graph.nodes)
    return min(max(entries // max(1, widest), _ROWS[0]), _ROWS[1])


def portions(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) pairs that cover `total` in steps of at most `size`."""
    for start in range(0, total, max(1, size)):
        yield start, min(total, start + max(1, size))


def halving(chunk_size: int, work: Callable[[int], T]) -> T:
    """Call `work(chunk_size)`, halving the size while the GPU is out of memory; says so when it does."""
    while True:
        try:
            return work(chunk_size)
        except torch.cuda.OutOfMemoryError:
            if chunk_size <= 1:
                raise
            chunk_size //= 2
            torch.cuda.empty_cache()
            warnings.warn(f"out of GPU memory; going on with chunk_size={chunk_size}", ResourceWarning, stacklevel=2)


@contextmanager
def rigorous_arithmetic() -> Iterator[None]:
    """No gradients kept, and no convolution algorithm for which the γ_n bound of rounding.py would not hold.

    cuDNN may choose transforms (FFT, Winograd) whose error is not bounded entrywise; PyTorch's own kernels only sum products.
    """
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        yield
