from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from harvest.interfaces import HarvestError
from harvest.model.fusion import FusionConfig
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.training.optim import OptimConfig, build_optimizer, is_decayed, layer_factors, lr_at, set_lr

schedules = st.builds(
    lambda lr, end, warmup, main: (OptimConfig(lr=lr, lr_end=lr * end, warmup_steps=warmup), warmup + main),
    st.floats(1e-7, 1.0),
    st.floats(0, 1),
    st.integers(0, 50),
    st.integers(1, 200),
)


@given(schedules)
def test_warm_up_is_linear_and_what_follows_falls_from_lr_to_lr_end(
    schedule: tuple[OptimConfig, int],
) -> None:
    config, steps = schedule
    rates = [lr_at(step, config=config, steps=steps) for step in range(steps)]
    warm, rest = rates[: config.warmup_steps], rates[config.warmup_steps :]
    assert warm == pytest.approx([config.lr * (n + 1) / config.warmup_steps for n in range(len(warm))])
    assert rest[0] == pytest.approx(config.lr)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(rest))
    assert all(config.lr_end * (1 - 1e-12) <= rate <= config.lr * (1 + 1e-12) for rate in rest)
    middle = config.warmup_steps + (steps - config.warmup_steps) // 2
    if (steps - config.warmup_steps) % 2 == 0:
        assert rates[middle] == pytest.approx((config.lr + config.lr_end) / 2)
    assert all(rate > 0 for rate in rates)


@given(schedules, st.integers(1, 40), st.floats(1e-9, 1e-2))
def test_tuning_has_a_schedule_of_its_own(schedule: tuple[OptimConfig, int], tuning: int, lr: float) -> None:
    config, main = schedule
    at = dict(config=config, steps=main + tuning, tuning_from=main, tuning_lr=lr)
    for step in range(main):
        assert lr_at(step, **at) == lr_at(step, config=config, steps=main)
    rates = [lr_at(step, **at) for step in range(main, main + tuning)]
    assert rates[0] == lr
    assert all(0 < later < earlier for earlier, later in itertools.pairwise(rates))


def test_no_warm_up_starts_at_lr() -> None:
    assert lr_at(0, config=OptimConfig(lr=3.0, warmup_steps=0), steps=5) == 3.0


@pytest.fixture(scope="module")
def model() -> VideoTextModel:
    sizes = {"width": 16, "depth": 1, "num_heads": 2, "mlp_width": 32, "embed_dim": 8}
    return VideoTextModel(
        ModelConfig(
            VideoEncoderConfig(image_size=8, patch_size=4, **sizes),
            TextEncoderConfig(vocab_size=20, context_length=6, start_id=0, end_id=1, pad_id=2, **sizes),
            FusionConfig(1, 2),
        )
    )


def test_matrices_alone_are_decayed(model: VideoTextModel) -> None:
    decayed = {name for name, parameter in model.named_parameters() if is_decayed(name, parameter)}
    matrices = ("patches", "qkv", "out", "up", "down", "projection", "words", "query", "key_value")
    matrices += ("video_in", "text_in", "head_dense", "head_words")
    assert decayed == {
        name
        for name, _ in model.named_parameters()
        if name.endswith(".weight") and name.removesuffix(".weight").rpartition(".")[2] in matrices
    }


def test_groups_hold_each_training_parameter_once(model: VideoTextModel) -> None:
    model.text.requires_grad_(False)
    config = OptimConfig(
        lr=2.0, weight_decay=0.3, lr_factors={"log_scale": 10.0, "fusion": 5.0, "video_in": 7.0}
    )
    optimizer = build_optimizer(model, config)
    set_lr(optimizer, 0.5)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    for name, parameter in model.named_parameters():
        if name.startswith("text."):
            assert id(parameter) not in found
            continue
        group = found[id(parameter)]
        factor = (
            10.0 if name == "log_scale" else 5.0 if name.startswith("fusion.") else 1.0
        )  # the first match counts
        assert group["lr"] == 0.5 * factor
        assert group["weight_decay"] == (0.3 if is_decayed(name, parameter) else 0.0)
    model.text.requires_grad_(True)


def test_one_step_is_adamw() -> None:
    """After one step from zero moments AdamW moves each weight by lr * sign(gradient), and decays matrices."""
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    optimizer = build_optimizer(layer, OptimConfig(weight_decay=0.5, eps=1e-12))
    set_lr(optimizer, 0.1)
    layer(torch.tensor([[3.0, -2.0]])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight, torch.tensor([[0.95 - 0.1, 0.95 + 0.1]]))
    torch.testing.assert_close(layer.bias, torch.tensor([0.9]))


def test_layers_decay_from_the_head_down() -> None:
    names = [
        "model.video.patches.weight",
        "model.video.place_positions",
        "model.video.blocks.0.mlp.up.weight",
    ]
    names += ["model.video.blocks.1.mlp.up.weight", "model.video.norm_post.bias", "head.linear.weight"]
    names += ["model.text.words.weight", "model.text.blocks.0.mlp.up.weight", "model.log_scale"]
    factors = layer_factors(names, 0.5)
    assert list(factors.values()) == [0.125, 0.125, 0.25, 0.5, 1.0, 1.0, 0.25, 0.5, 1.0]
    assert set(layer_factors(names, 1.0).values()) == {1.0}


def test_layer_decay_multiplies_the_groups(model: VideoTextModel) -> None:
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5, lr_factors={"patches": 4.0}))
    found = {id(p): group["factor"] for group in optimizer.param_groups for p in group["params"]}
    depth = model.config.video.depth
    assert found[id(model.video.patches.weight)] == 4.0 * 0.5 ** (depth + 1)
    assert found[id(model.video.blocks[0].mlp.up.weight)] == 0.5**depth
    assert found[id(model.video.blocks[-1].mlp.up.weight)] == 0.5
    assert found[id(model.log_scale)] == 1.0
    with pytest.raises(HarvestError, match="layer_decay"):
        OptimConfig(layer_decay=1.5)
