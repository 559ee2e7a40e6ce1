from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_loop import weights
from torch import nn

from harvest.config import RunConfig
from harvest.interfaces import HarvestError
from harvest.model.folder import load_head, load_model
from harvest.training.average import WeightAverage
from harvest.training.loop import train


def test_it_is_the_average_written_out() -> None:
    layer = nn.Linear(1, 1, bias=False)
    frozen = nn.Linear(1, 1).requires_grad_(False)
    module = nn.ModuleList([layer, frozen])
    layer.weight.data.fill_(1.0)
    average = WeightAverage(module, decay=0.75)
    for value in (5.0, 9.0):
        layer.weight.data.fill_(value)
        average.update()
    # 0.75 * (0.75 * 1 + 0.25 * 5) + 0.25 * 9
    assert average.tensors.keys() == {"0.weight"} and average.tensors["0.weight"].item() == 3.75
    with average.in_place():
        assert layer.weight.item() == 3.75
    assert layer.weight.item() == 9.0


def test_a_run_ends_with_the_average_and_goes_on_to_the_bit(
    runs: Path, tiny_run: Callable[..., RunConfig]
) -> None:
    """Mixup, erasing, RandAugment and the average: all that fine-tuning draws and keeps."""
    config = tiny_run("ft-k400-b16", loop={"average_decay": 0.5, "keep_last": 9}, data={"workers": 0})
    run = runs / "averaged"
    train(config, run)
    unbroken, head = weights(run), load_head(run / "model").state_dict()
    last = run / "checkpoints" / "step-00000006"
    import safetensors.torch

    own = safetensors.torch.load_file(last / "weights.safetensors")
    kept = safetensors.torch.load_file(last / "average.safetensors")
    assert head["linear.weight"].equal(kept["head.linear.weight"])
    assert not head["linear.weight"].equal(own["head.linear.weight"])
    shutil.rmtree(run / "model")
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    train(config, run)
    again = weights(run)
    assert [name for name in unbroken if not unbroken[name].equal(again[name])] == []
    assert load_head(run / "model").state_dict()["linear.weight"].equal(head["linear.weight"])
    assert len(load_head(run / "model").config.names) == 32  # the motions


def test_a_model_without_a_head_says_so(image_model: Path) -> None:
    load_model(image_model)
    with pytest.raises(HarvestError, match=r"has no head.*ft-"):
        load_head(image_model)
