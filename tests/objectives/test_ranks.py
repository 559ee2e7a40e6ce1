"""The same global batch on one, two and four processes gives the same loss and the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from small import loss_and_gradients, objective_of, on_a_rank, small_batch, still

CLIPS = 8


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("contrastive", 2),
        ("both_trained", 4),
        ("masked_words", 2),
        ("image_text", 2),
        ("alignment", 2),
        ("multimodal", 2),
        ("multimodal", 4),
        ("classification", 2),
        ("detection", 2),
        ("choice", 2),
    ],
)
def test_gradients_do_not_depend_on_the_number_of_processes(kind: str, size: int, tmp_path: Path) -> None:
    objective = objective_of(kind)
    alone = loss_and_gradients(objective, objective, still(small_batch(CLIPS, captions=2)))
    mp.spawn(on_a_rank, args=(size, kind, str(tmp_path), CLIPS), nprocs=size)
    together = torch.load(tmp_path / "found.pt", weights_only=True)
    assert alone.keys() == together.keys() and len(alone) > 10
    for name, value in alone.items():
        torch.testing.assert_close(
            together[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert sum(bool(value.any()) for value in alone.values()) >= len(alone) - 2
