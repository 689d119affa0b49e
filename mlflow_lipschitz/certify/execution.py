"""Where and in what portions a certification runs: the device, and the one number that bounds memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from mlflow_lipschitz.errors import UsageError

T = TypeVar("T")

# Linear forms in flight. On a CPU as many as stay in the cache; on a GPU enough to fill it.
_CPU_CHUNK = 4096
_CUDA_CHUNK = 1 << 18


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


def default_chunk_size(device: torch.device) -> int:
    return _CUDA_CHUNK if device.type == "cuda" else _CPU_CHUNK


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
