"""Nested sizes of embeddings: turning the shared space changes no cosine and orders its axes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toys import toy_model

from harvest.interfaces import HarvestError
from harvest.model.matryoshka import shorten, turn_to_main_axes


def embedded(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    size = model.config.video.image_size
    videos = torch.randint(256, (5, 4, 3, size, size), generator=generator).byte()
    texts = torch.randint(3, 20, (40, 12), generator=generator)
    with torch.no_grad():
        return model.encode_video(videos).pooled, model.encode_text(texts).pooled


def test_turning_changes_no_cosine_and_orders_the_axes() -> None:
    model, _ = toy_model()
    videos, texts = embedded(model)
    turn_to_main_axes(model, texts)
    turned_videos, turned_texts = embedded(model)
    torch.testing.assert_close(turned_videos @ turned_texts.T, videos @ texts.T, atol=1e-5, rtol=0)
    assert not torch.allclose(turned_texts, texts, atol=1e-2)
    variance = turned_texts.double().var(dim=0)
    assert (variance.diff() <= 1e-9).all()  # falling
    assert variance[:8].sum() > texts.double().var(dim=0).topk(8).values.sum()
    again, _ = toy_model()
    turn_to_main_axes(again, texts)
    assert torch.equal(embedded(again)[1], turned_texts)


def test_the_first_entries_are_unit_vectors() -> None:
    pooled = F.normalize(torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), dim=-1)
    short = shorten(pooled, 4)
    torch.testing.assert_close(short.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(short, F.normalize(pooled[:, :4], dim=1))
    assert shorten(pooled, None) is pooled and shorten(pooled, 10) is pooled
    for wrong in (0, 11, -1):
        with pytest.raises(HarvestError, match=f"dim: expected 1 to 10, .* got {wrong}"):
            shorten(pooled, wrong)
