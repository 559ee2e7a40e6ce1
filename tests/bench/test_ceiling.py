from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harvest.bench import ceiling

CPU = torch.device("cpu")


def test_products_and_copies_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half a second a product of [100, 20] x [20, 50] is 2 x 100 x 20 x 50 FLOP, a copy of 4 MB moves 8."""
    monkeypatch.setattr(ceiling, "computed_in", lambda device, precision: precision)
    works = []
    monkeypatch.setattr(ceiling, "_fastest", lambda work, device, seconds: works.append(work()) or 0.5)
    found = ceiling.matmul_gflop_per_s(100, 20, 50, precision="bf16", device=CPU)
    assert found == pytest.approx(2 * 100 * 20 * 50 / 0.5 / 1e9)
    assert [(list(w.shape), w.dtype) for w in works] == [
        ([100, 50], torch.bfloat16),
        ([100, 20], torch.bfloat16),
    ]
    assert ceiling.copy_gb_per_s(CPU, megabytes=4) == pytest.approx(2 * 4 * 2**20 / 0.5 / 1e9)


def test_the_fastest_call_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 3.0, 3.0, 5.0, 5.0, 9.0))  # calls of 3, 2 and 4 seconds, after one that nobody times
    calls: list[int] = []
    monkeypatch.setattr(ceiling, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert ceiling._fastest(lambda: calls.append(1), CPU, seconds=8.0) == 2.0
    assert len(calls) == 4


def test_this_machine_multiplies_and_copies() -> None:
    fast = ceiling.matmul_gflop_per_s(64, 32, 128, precision="fp32", device=CPU, seconds=0.01)
    assert 0 < fast < 1e6
    assert 0 < ceiling.copy_gb_per_s(CPU, megabytes=1, seconds=0.01) < 1e5
