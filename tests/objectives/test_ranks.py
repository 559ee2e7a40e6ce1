"""The same global batch on one, two and four processes gives the same loss and the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from small import loss_and_gradients, objective_of, on_a_rank, small_batch, still

CLIPS = 8
KINDS = {
    2: (
        "contrastive",
        "sigmoid",
        "bank",
        "masked_words",
        "image_text",
        "image_text_sigmoid",
        "alignment",
        "multimodal",
        "classification",
        "detection",
        "choice",
    ),
    4: ("contrastive", "sigmoid", "sigmoid_bank", "both_trained", "multimodal"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What ranks found, a file a kind: started once for all kinds, since starting is most of the time."""
    found = {}
    for size, kinds in KINDS.items():
        found[size] = tmp_path_factory.mktemp(f"ranks-{size}")
        mp.spawn(on_a_rank, args=(size, kinds, str(found[size]), CLIPS), nprocs=size)
    return found


@pytest.mark.parametrize(("size", "kind"), [(size, kind) for size, kinds in KINDS.items() for kind in kinds])
def test_gradients_do_not_depend_on_the_number_of_processes(
    size: int, kind: str, folders: dict[int, Path]
) -> None:
    objective = objective_of(kind)
    alone = loss_and_gradients(objective, objective, still(small_batch(CLIPS, captions=2)))
    together = torch.load(folders[size] / f"{kind}.pt", weights_only=True)
    assert alone.keys() == together.keys() and len(alone) > 10
    for name, value in alone.items():
        torch.testing.assert_close(
            together[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert sum(bool(value.any()) for value in alone.values()) >= len(alone) - 2
