"""What a device can do at most, measured: matrix products at the sizes of a model's layers, and copies.

Peak figures on data sheets are of other machines and other sizes; a step's rate is compared with these.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from harvest.parallel import Precision, computed_in

_LARGEST_ELEMENTS = 1 << 26
"""Of one matrix: more rows than that make a product slower to measure, not faster."""


def matmul_gflop_per_s(
    rows: int, width: int, mlp_width: int, *, precision: Precision, device: torch.device, seconds: float = 0.5
) -> float:
    """The fastest of the products `[rows, width] x [width, mlp_width]` and back, as a transformer's MLP takes them."""
    rows = max(1, min(rows, _LARGEST_ELEMENTS // max(width, mlp_width)))
    dtype = torch.bfloat16 if computed_in(device, precision) == "bf16" else torch.float32
    best = 0.0
    for inner, outer in ((width, mlp_width), (mlp_width, width)):
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(outer, inner, device=device).to(dtype)
        fastest_s = _fastest(lambda a=left, b=right: a @ b.T, device, seconds / 2)  # type: ignore[misc]
        best = max(best, 2 * rows * inner * outer / fastest_s / 1e9)
    return best


def copy_gb_per_s(device: torch.device, *, megabytes: int = 64, seconds: float = 0.3) -> float:
    """Gigabytes a second that a copy within the device's memory moves, reads and writes counted."""
    source = torch.zeros(megabytes << 18, device=device)  # fp32
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device, seconds) / 1e9


def send_gb_per_s(device: torch.device, *, pinned: bool, megabytes: int = 64, seconds: float = 0.3) -> float:
    """Gigabytes a second from the host's memory, pinned or pageable, to the device's."""
    source = torch.zeros(megabytes << 20, dtype=torch.uint8, pin_memory=pinned)
    target = torch.empty_like(source, device=device)
    return source.nbytes / _fastest(lambda: target.copy_(source, non_blocking=True), device, seconds) / 1e9


def _fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of the calls that fit into `seconds`, three at least; the first is not counted."""
    work()
    fastest, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or spent < seconds:
        wait_for(device)
        before = time.perf_counter()
        work()
        wait_for(device)
        took = time.perf_counter() - before
        fastest, spent, calls = min(fastest, took), spent + took, calls + 1
    return fastest


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
