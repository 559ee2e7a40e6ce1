from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from harvest.config import StartConfig
from harvest.interfaces import HarvestError
from harvest.model.adaptation import AdaptConfig, WiderMLP, adapt, merge
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

SIZES = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32, "embed_dim": 12}
TEXT = TextEncoderConfig(vocab_size=40, context_length=9, start_id=0, end_id=1, pad_id=2, **SIZES)


def model_of(**video: object) -> VideoTextModel:
    torch.manual_seed(0)
    settings = {"image_size": 16, "patch_size": 4, "num_frames": 4, **SIZES, **video}
    return VideoTextModel(ModelConfig(VideoEncoderConfig(**settings), TEXT)).eval()


def outputs(model: VideoTextModel) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    video = torch.randint(256, (2, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    words = torch.randint(3, 40, (2, 9), generator=generator)
    has_guide = model.config.video.pooling != "mean"
    seen = model.encode_video(video, attention=has_guide)
    guide = [seen.attention] if seen.attention is not None else []
    return [seen.tokens, seen.pooled, *guide, model.encode_text(words).pooled]


def trained(model: VideoTextModel) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def move(model: VideoTextModel) -> None:
    """Give everything that trains another value, as training would."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("how", ["lora", "adapter"])
@pytest.mark.parametrize(
    "tower",
    [
        {},
        {"key_bias": False, "prefix": "none", "pooling": "mean"},
        {"prefix": "none", "pooling": "attention"},
    ],
    ids=["clip", "umt", "siglip"],
)
def test_changes_start_at_nothing_and_are_merged_exactly(how: str, tower: dict) -> None:
    model = model_of(**tower)
    plain = [x.detach() for x in outputs(model)]
    names = set(model.state_dict())
    adapt(model, AdaptConfig(how, rank=3))
    for before, after in zip(plain, outputs(model), strict=True):
        torch.testing.assert_close(before, after.detach())
    model.log_scale.requires_grad_(False)
    move(model)
    moved = [x.detach() for x in outputs(model)]
    assert (moved[0] - plain[0]).abs().max() > 1e-3
    merge(model)
    for before, after in zip(moved, outputs(model), strict=True):
        torch.testing.assert_close(before, after.detach(), atol=1e-5, rtol=1e-5)
    assert set(model.state_dict()) == names
    # The sizes that a folder would write give a model that holds these weights.
    again = VideoTextModel(model.config)
    again.load_state_dict(model.state_dict())
    for before, after in zip(moved, outputs(again.eval()), strict=True):
        torch.testing.assert_close(before, after.detach(), atol=1e-5, rtol=1e-5)


def test_a_low_rank_change_is_heard_where_the_weight_is_read_directly() -> None:
    """Attention without key biases and the guide read `qkv.weight` themselves: a wrapped layer would miss it there."""
    model = model_of(key_bias=False)
    plain = outputs(model)[2].detach()
    adapt(model, AdaptConfig("lora", rank=2))
    with torch.no_grad():
        model.video.blocks[-1].attention.qkv.parametrizations.weight[0].up.normal_()
    assert (outputs(model)[2] - plain).abs().max() > 1e-3


def test_few_weights_train() -> None:
    model = model_of()
    whole = sum(p.numel() for p in model.parameters())
    adapt(model, AdaptConfig("lora", rank=1))
    few = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert few < 0.1 * whole and trained(model)
    assert all(name.endswith(("up", "down", "log_scale")) for name in trained(model))


def test_a_frozen_text_tower_stays_frozen() -> None:
    model = model_of()
    model.text.requires_grad_(False)
    adapt(model, AdaptConfig("lora"))
    assert not any(name.startswith("text.") for name in trained(model))
    other = model_of()
    adapt(other, AdaptConfig("adapter", rank=5))
    names = [name for name in trained(other) if name != "log_scale"]
    assert names and all(".mlp.into." in name or ".mlp.out." in name for name in names)
    assert isinstance(other.video.blocks[0].mlp, WiderMLP)
    merge(other)
    assert other.config.video.mlp_width == 37 and other.config.text_tower.mlp_width == 32
    frozen = model_of()
    adapt(frozen, AdaptConfig("frozen"))
    assert trained(frozen) == ["log_scale"]


def test_full_changes_nothing() -> None:
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    adapt(model, AdaptConfig())
    merge(model)
    assert trained(model) == list(dict(model.named_parameters()))
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_settings_that_cannot_be(tiny_run) -> None:
    with pytest.raises(HarvestError, match=r"adapt\.rank: expected at least 1, got 0"):
        AdaptConfig("lora", rank=0)
    config = tiny_run("mini-harvest")
    with pytest.raises(HarvestError, match="adapters widen the tower"):
        dataclasses.replace(config, adapt=AdaptConfig("adapter"), blend=0.5)
    assert isinstance(config.start, StartConfig)
