"""Which tubelets are kept: counts, order, places and chances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.tokens import attention_keep, random_keep, tube_keep
from harvest.tokens.selectors import num_kept


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


sizes = {
    "clips": st.integers(1, 4),
    "times": st.integers(1, 6),
    "places": st.integers(1, 30),
    "ratio": st.floats(0, 0.99),
    "seed": st.integers(0, 2**31),
}


def check(keep: torch.Tensor, clips: int, count: int, num_tubelets: int) -> None:
    assert keep.dtype == torch.int64 and keep.shape == (clips, count)
    assert ((keep >= 0) & (keep < num_tubelets)).all()
    assert (keep.diff(dim=1) > 0).all()  # ascending, so pairwise different


@settings(deadline=None, max_examples=60)
@given(**sizes)
def test_tubes(clips: int, times: int, places: int, ratio: float, seed: int) -> None:
    keep = tube_keep(clips, times, places, drop_ratio=ratio, generator=seeded(seed))
    count = num_kept(places, ratio)
    check(keep, clips, times * count, times * places)
    by_time = keep.view(clips, times, count)
    assert torch.equal(by_time // places, torch.arange(times)[None, :, None].expand_as(by_time))
    assert torch.equal(by_time % places, (by_time % places)[:, :1].expand_as(by_time))
    assert torch.equal(keep, tube_keep(clips, times, places, drop_ratio=ratio, generator=seeded(seed)))


@settings(deadline=None, max_examples=60)
@given(**sizes)
def test_attention(clips: int, times: int, places: int, ratio: float, seed: int) -> None:
    attention = torch.rand(clips, times * places, generator=seeded(seed)) ** 8
    keep = attention_keep(attention, times, drop_ratio=ratio, generator=seeded(seed))
    count = num_kept(places, ratio)
    check(keep, clips, times * count, times * places)
    by_time = keep.view(clips, times, count)  # the same number at each time
    assert torch.equal(by_time // places, torch.arange(times)[None, :, None].expand_as(by_time))
    assert torch.equal(keep, attention_keep(attention, times, drop_ratio=ratio, generator=seeded(seed)))
    scaled = attention_keep(attention * 4, times, drop_ratio=ratio, generator=seeded(seed))
    assert torch.equal(keep, scaled)  # rows need not sum to one


def test_counts_of_the_paper() -> None:
    """196 places, 80 %: 40 a frame, 320 of 1568; 50 % of an image: 98."""
    attention = torch.rand(2, 1568, generator=seeded())
    assert attention_keep(attention, 8, drop_ratio=0.8, generator=seeded()).shape == (2, 320)
    assert tube_keep(2, 8, 196, drop_ratio=0.8, generator=seeded()).shape == (2, 320)
    assert random_keep(2, 1568, drop_ratio=0.8, generator=seeded()).shape == (2, 1568 - 1254)
    assert attention_keep(attention[:, :196], 1, drop_ratio=0.5, generator=seeded()).shape == (2, 98)


def test_more_attention_is_kept_more_often() -> None:
    attention = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(4000, -1)
    keep = attention_keep(attention, 1, drop_ratio=0.75, generator=seeded())
    shares = torch.bincount(keep.flatten(), minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_defect_31_zeros_stay_random(dtype: torch.dtype) -> None:
    """Where attention underflowed, the reference keeps the same zeros every time, in falling order."""
    attention = torch.zeros(4000, 8, dtype=dtype)
    attention[:, 3] = 1
    keep = attention_keep(attention, 1, drop_ratio=0.5, generator=seeded())
    shares = torch.bincount(keep.flatten(), minlength=8) / 4000
    assert shares[3] == 1
    others = torch.cat([shares[:3], shares[4:]])
    assert ((others - 3 / 7).abs() < 0.04).all()


def test_all_zeros_are_a_random_choice() -> None:
    keep = attention_keep(torch.zeros(4000, 5), 1, drop_ratio=0.6, generator=seeded())
    shares = torch.bincount(keep.flatten(), minlength=5) / 4000
    assert ((shares - 0.4).abs() < 0.04).all()


def test_times_must_divide() -> None:
    with pytest.raises(ValueError, match="7 tubelets are not the same number at each of 2 times"):
        attention_keep(torch.rand(1, 7), 2, drop_ratio=0.5, generator=seeded())
