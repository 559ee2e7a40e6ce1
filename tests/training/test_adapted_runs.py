"""Fine-tuning with low-rank changes or adapters: goes on to the bit, and ends as a plain model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_loop import weights

from harvest.config import RunConfig
from harvest.model.adaptation import AdaptConfig
from harvest.model.folder import load_head, load_model
from harvest.training.loop import train


@pytest.mark.parametrize("how", ["lora", "adapter", "frozen"])
def test_an_adapted_run(how: str, runs: Path, image_model: Path, tiny_run: Callable[..., RunConfig]) -> None:
    config = tiny_run(
        "ft-ssv2-b16",
        adapt=AdaptConfig(how, rank=4),
        data={"workers": 0},
        loop={"steps": 4, "save_every": 2, "keep_last": 9},
    )
    run = runs / f"adapted-{how}"
    train(config, run)
    model, _ = load_model(run / "model")
    start, _ = load_model(image_model)
    added = 4 if how == "adapter" else 0
    assert model.config.video.mlp_width == start.config.video.mlp_width + added
    own, old = model.video.blocks[0].attention.qkv.weight, start.video.blocks[0].attention.qkv.weight
    assert own.equal(old) == (how != "lora")
    assert model.video.patches.weight.equal(start.video.patches.weight)
    assert load_head(run / "model").linear.weight.abs().max() > 0.001  # it began a thousandth of that
    unbroken = weights(run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    train(config, run)
    again = weights(run)
    assert [name for name in unbroken if not unbroken[name].equal(again[name])] == []
