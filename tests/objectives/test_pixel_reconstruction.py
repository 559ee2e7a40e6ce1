"""VideoMAE's pixels: which are asked for, by brute force, and that a tower learns to rebuild them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small import small_batch
from test_masked_alignment import STUDENT

from harvest.interfaces import HarvestError
from harvest.model.alignment import init_xavier
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.pixel_reconstruction import (
    PixelReconstruction,
    PixelReconstructionConfig,
    hidden_of,
    normalised_patches,
    tubelet_pixels,
)
from harvest.training.optim import OptimConfig, build_optimizer

DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def objective_of(tubelet_size: int = 2, **settings: object) -> PixelReconstruction:
    torch.manual_seed(0)
    video = dataclasses.replace(STUDENT, tubelet_size=tubelet_size)
    model = VideoTextModel(ModelConfig(video=video, text=None))
    init_xavier(model.video.blocks)
    return PixelReconstruction(PixelReconstructionConfig(**DECODER | settings), model, seed=0)


def test_nine_tenths_are_hidden_as_tubes() -> None:
    objective, seen = objective_of(), []
    objective.model.video.register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    objective(small_batch(3), 0)
    keep = seen[0]
    assert keep.shape == (3, 2 * 2)  # 16 - int(14.4) places at each of two times
    assert torch.equal(keep[:, 2:], keep[:, :2] + 16)


def test_pixels_by_brute_force() -> None:
    video = small_batch(2).video  # [2, 4, 3, 16, 16], patches of 4
    keep = torch.tensor([[0, 5, 17], [2, 16, 31]])
    hidden = hidden_of(keep, 32)
    assert all(
        sorted([*k.tolist(), *h.tolist()]) == list(range(32)) for k, h in zip(keep, hidden, strict=True)
    )
    found = tubelet_pixels(video, hidden, patch_size=4, tubelet_size=2)
    assert found.shape == (2, 29, 2 * 4 * 4, 3)
    for clip in range(2):
        for place, number in enumerate(hidden[clip].tolist()):
            time, row, column = number // 16, number % 16 // 4, number % 4
            cut = video[clip, 2 * time : 2 * time + 2, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            wanted = cut.permute(0, 2, 3, 1).reshape(-1, 3).float() / 255
            assert torch.equal(found[clip, place], wanted)
    normal = normalised_patches(found)
    assert normal.mean(dim=-2).abs().max() < 1e-5
    torch.testing.assert_close(normal.std(dim=-2), torch.ones(2, 29, 3), atol=1e-3, rtol=0)
    flat = normalised_patches(torch.full((1, 1, 32, 3), 0.5))
    assert (flat == 0).all()  # a patch of one colour has no deviation


@pytest.mark.parametrize(
    "settings", [{}, {"normalise_pixels": False}, {"selector": "random", "drop_path": 0.2}]
)
def test_it_learns(settings: dict) -> None:
    objective, batch = objective_of(**settings).train(), small_batch(4)
    optimizer = build_optimizer(objective, OptimConfig(lr=1e-2))
    losses = []
    for _ in range(15):
        loss = objective(batch, 0).total
        loss.backward()
        assert all((p.grad is not None) == p.requires_grad for p in objective.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_wrong_settings() -> None:
    for wrong, said in (
        ({"drop_ratio": 0.0}, "hidden"),
        ({"decoder_heads": 5}, "decoder"),
        ({"drop_path": 1.0}, "drop_path"),
    ):
        with pytest.raises(HarvestError, match=said):
            PixelReconstructionConfig(**wrong)
    objective = objective_of()
    objective.selection = dataclasses.replace(objective.selection, budget=32)
    with pytest.raises(HarvestError, match="all are seen"):
        objective(small_batch(2), 0)
