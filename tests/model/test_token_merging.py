"""Merging: plans that reach the budget, sums that lose nothing, and a tower that does not notice equal tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_model, with_time_positions

from harvest.interfaces import HarvestError, Merged
from harvest.model.token_merging import merge_plan, merge_tokens


@given(tokens=st.integers(1, 3000), share=st.floats(0, 1), depth=st.integers(1, 24))
def test_a_plan_falls_to_the_budget_by_half_at_most(tokens: int, share: float, depth: int) -> None:
    budget = max(1, round(share * tokens))
    if budget * 2 ** (depth - 1) < tokens:
        with pytest.raises(HarvestError, match="merging halves the tokens at most"):
            merge_plan(tokens, budget, depth)
        return
    plan = merge_plan(tokens, budget, depth)
    assert len(plan) == depth and plan[0] == tokens and plan[-1] == budget
    assert all(a >= b >= a - a // 2 for a, b in itertools.pairwise(plan))


@settings(max_examples=50)
@given(tokens=st.integers(2, 40), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_weighted_sums_are_kept(tokens: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, tokens, 5, generator=generator)
    sizes = torch.randint(1, 4, (3, tokens), generator=generator).float()
    count = round(share * (tokens // 2))
    merged, new_sizes = merge_tokens(x, sizes, count)
    assert merged.shape == (3, tokens - count, 5) and (new_sizes >= 1).all()
    torch.testing.assert_close(new_sizes.sum(dim=1), sizes.sum(dim=1))
    before, after = (x * sizes[..., None]).sum(dim=1), (merged * new_sizes[..., None]).sum(dim=1)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_the_most_similar_pair_is_merged() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [-1.0, 0.0]]])
    merged, sizes = merge_tokens(x, torch.ones(1, 4), 1)
    assert merged.tolist() == [[[1.0, 0.0], [0.0, 1.5], [-1.0, 0.0]]] and sizes.tolist() == [[1, 2, 1]]
    with pytest.raises(ValueError, match="at most 2"):
        merge_tokens(x, torch.ones(1, 4), 3)


SETTINGS = [
    {"prefix": "frame"},
    {"prefix": "clip", "positions": "joint"},
    {"prefix": "none", "pooling": "mean"},
    {"prefix": "none", "pooling": "attention"},
]


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_budget_of_all_is_all(settings: dict) -> None:
    model = with_time_positions(toy_model()[0], **settings)
    video = torch.randint(256, (2, 4, 3, 16, 16), generator=torch.Generator().manual_seed(2)).byte()
    whole, merged = model.encode_video(video), model.encode_video(video, Merged(64))
    torch.testing.assert_close(merged.pooled, whole.pooled, atol=1e-5, rtol=0)
    assert model.encode_video(video, Merged(40)).tokens.shape == (2, 40, 48)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
def test_equal_tokens_merge_without_a_trace(settings: dict) -> None:
    """Clips of one colour have pairs of equal tokens where there are no positions: half of them say as much."""
    model = with_time_positions(toy_model()[0], **settings)
    for name, parameter in model.video.named_parameters():
        if "positions" in name:
            parameter.zero_()
    video = torch.full((2, 4, 3, 16, 16), 90, dtype=torch.uint8)
    video[1] = 200
    whole, merged = model.encode_video(video), model.encode_video(video, Merged(32))
    assert merged.tokens.shape[1] == 32
    torch.testing.assert_close(merged.pooled, whole.pooled, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_does_not_go_with_merging() -> None:
    model = toy_model()[0]
    video = torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="do not go with merged tokens"):
        model.encode_video(video, Merged(40), attention=True)
    with pytest.raises(HarvestError, match="not 3"):
        model.encode_video(video, Merged(3))
