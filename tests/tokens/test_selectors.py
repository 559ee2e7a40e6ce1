"""Which tubelets are kept: counts, order, places, chances and what happens at the edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harvest.interfaces import HarvestError, Packed
from harvest.tokens import attention_keep, motion_keep, num_kept, random_keep, run_length_keep, tube_keep


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(name: str, clips: int, times: int, places: int, budget: int, seed: int, **more: object) -> Tensor:
    """Any selector, on weights that are a function of the seed."""
    weights = torch.rand(clips, times * places, generator=seeded(seed + 1)) ** 8
    calls: dict[str, Callable[..., Tensor]] = {
        "random": lambda **k: random_keep(clips, times * places, **k),
        "tube": lambda **k: tube_keep(clips, times, places, **k),
        "attention": lambda **k: attention_keep(weights, times, **k),
        "motion": lambda **k: motion_keep(30 * weights, times, **k),
    }
    return calls[name](budget=budget, generator=seeded(seed), **more)


NAMES = ("random", "tube", "attention", "motion")
sizes = {"clips": st.integers(1, 4), "times": st.integers(1, 6), "places": st.integers(1, 30)}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(**sizes, share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_an_exact_number_ascending_and_repeatable(
    name: str, clips: int, times: int, places: int, share: float, seed: int
) -> None:
    budget = max(1, round(share * times * places))
    keep = draw(name, clips, times, places, budget, seed)
    assert keep.dtype == torch.int64 and keep.shape == (clips, budget)
    assert ((keep >= 0) & (keep < times * places)).all()
    assert (keep.diff(dim=1) > 0).all()  # ascending, so pairwise different
    assert torch.equal(keep, draw(name, clips, times, places, budget, seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_s_choice_does_not_depend_on_its_place_in_the_batch(name: str) -> None:
    weights = torch.rand(1, 48, generator=seeded()).expand(5, -1)
    keeps = {
        "random": lambda **k: random_keep(5, 48, **k),
        "tube": lambda **k: tube_keep(5, 4, 12, **k),
        "attention": lambda **k: attention_keep(weights, 4, **k),
        "motion": lambda **k: motion_keep(weights, 4, **k),
    }[name](budget=17, generator=seeded(), same_draws=True)
    assert torch.equal(keeps, keeps[:1].expand(5, -1))
    apart = draw(name, 5, 4, 12, 17, 0)
    assert not torch.equal(apart, apart[:1].expand(5, -1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [0, -1, 25])
def test_a_budget_that_no_clip_has_is_refused(name: str, budget: int) -> None:
    with pytest.raises(HarvestError, match=f"budget: expected 1 to 24, .* got {budget}"):
        draw(name, 2, 4, 6, budget, 0)


@settings(max_examples=60)
@given(**sizes, ratio=st.floats(0, 0.99), seed=st.integers(0, 2**31))
def test_tubes_are_the_same_places_at_all_times(
    clips: int, times: int, places: int, ratio: float, seed: int
) -> None:
    count = num_kept(places, ratio)
    by_time = draw("tube", clips, times, places, times * count, seed).view(clips, times, count)
    assert torch.equal(by_time // places, torch.arange(times)[None, :, None].expand_as(by_time))
    assert torch.equal(by_time % places, (by_time % places)[:, :1].expand_as(by_time))


def test_tubes_of_a_budget_that_times_do_not_divide() -> None:
    keep = tube_keep(3, 4, 9, budget=18, generator=seeded())
    for row in keep.tolist():
        places = [{n % 9 for n in row if n // 9 == time} for time in range(4)]
        assert sorted(len(at) for at in places) == [4, 4, 5, 5]
        assert min(places, key=len) <= max(places, key=len)  # the larger set holds the smaller


@settings(max_examples=60)
@given(**sizes, ratio=st.floats(0, 0.99), seed=st.integers(0, 2**31))
def test_attention_keeps_as_many_at_each_time(
    clips: int, times: int, places: int, ratio: float, seed: int
) -> None:
    attention = torch.rand(clips, times * places, generator=seeded(seed)) ** 8
    count = num_kept(places, ratio)
    keep = attention_keep(attention, times, budget=times * count, generator=seeded(seed))
    by_time = keep.view(clips, times, count)
    assert torch.equal(by_time // places, torch.arange(times)[None, :, None].expand_as(by_time))
    scaled = attention_keep(attention * 4, times, budget=times * count, generator=seeded(seed))
    assert torch.equal(keep, scaled)  # rows need not sum to one


def test_more_attention_is_kept_more_often() -> None:
    attention = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(4000, -1)
    keep = attention_keep(attention, 1, budget=1, generator=seeded())
    shares = torch.bincount(keep.flatten(), minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_defect_31_zeros_stay_random(dtype: torch.dtype) -> None:
    """Where attention underflowed, the reference keeps the same zeros every time, in falling order."""
    attention = torch.zeros(4000, 8, dtype=dtype)
    attention[:, 3] = 1
    keep = attention_keep(attention, 1, budget=4, generator=seeded())
    shares = torch.bincount(keep.flatten(), minlength=8) / 4000
    assert shares[3] == 1
    others = torch.cat([shares[:3], shares[4:]])
    assert ((others - 3 / 7).abs() < 0.04).all()


def test_all_zeros_are_a_random_choice() -> None:
    keep = attention_keep(torch.zeros(4000, 5), 1, budget=2, generator=seeded())
    shares = torch.bincount(keep.flatten(), minlength=5) / 4000
    assert ((shares - 0.4).abs() < 0.04).all()


@pytest.mark.parametrize("select", [attention_keep, motion_keep])
def test_times_must_divide(select: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="7 tubelets are not the same number at each of 2 times"):
        select(torch.rand(1, 7), 2, budget=3, generator=seeded())


@settings(max_examples=60)
@given(
    **sizes,
    share=st.floats(0, 1),
    random_ratio=st.floats(0, 1),
    groups=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_motion_keeps_the_largest_changes_of_every_part(
    clips: int, times: int, places: int, share: float, random_ratio: float, groups: int, seed: int
) -> None:
    N = times * places
    budget = max(1, round(share * N))
    change = 2 + torch.rand(clips, N, generator=seeded(seed)) * 100
    keep = motion_keep(
        change, times, budget=budget, random_ratio=random_ratio, num_groups=groups, generator=seeded(seed)
    )
    assert keep.shape == (clips, budget) and (keep.diff(dim=1) > 0).all()
    groups = min(groups, times)
    ends = [times * (g + 1) // groups * places for g in range(groups)]
    for start, end in zip([0, *ends], ends, strict=False):
        wanted = budget * end // N - budget * start // N
        for row, changes in zip(keep.tolist(), change, strict=True):
            kept = {n for n in row if start <= n < end}
            assert len(kept) == wanted
            first = wanted - round(wanted * random_ratio)
            assert set((changes[start:end].topk(first).indices + start).tolist()) <= kept


def test_what_has_appeared_is_seen_while_it_stays() -> None:
    """Two places change from time 0 to 1: at times 2 and 3 they are kept, although nothing changes there."""
    change = torch.zeros(500, 4, 20)
    change[:, :2, :2] = 50.0
    keep = motion_keep(change.flatten(1), 4, budget=8, random_ratio=0.0, generator=seeded())
    assert torch.equal(keep, torch.tensor([0, 1, 20, 21, 40, 41, 60, 61]).expand(500, -1))


def test_still_things_are_seen_too() -> None:
    change = torch.zeros(4000, 20)
    change[:, :4] = 50.0
    keep = motion_keep(change, 1, budget=4, random_ratio=0.5, generator=seeded())
    counts = torch.bincount(keep.flatten(), minlength=20) / 4000
    assert counts[4:].sum().item() == pytest.approx(2 * 16 / 18, abs=0.05)
    assert (counts[4:] > 0.05).all()
    keep = motion_keep(change, 1, budget=4, random_ratio=0.0, generator=seeded())
    assert torch.equal(keep, torch.arange(4).expand(4000, -1))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_still_clip_is_a_random_choice(noise: float) -> None:
    """Also where a codec's noise is all that changes, and more so always at the same places."""
    change = torch.zeros(4000, 10)
    change[:, :2] = noise
    keep = motion_keep(change, 2, budget=4, generator=seeded())
    shares = torch.bincount(keep.flatten(), minlength=10) / 4000
    assert ((shares - 0.4).abs() < (0.04 if noise == 0 else 0.15)).all()
    assert shares[[2, 3, 4]].min() > 0.25


def test_settings_of_motion_are_checked() -> None:
    for wrong in ({"random_ratio": 1.5}, {"num_groups": 0}):
        with pytest.raises(ValueError, match="expected a random_ratio"):
            motion_keep(torch.rand(1, 8), 2, budget=3, generator=seeded(), **wrong)


def test_counts_of_the_paper() -> None:
    """196 places, 80 %: 40 a frame, 320 of 1568; 50 % of an image: 98."""
    assert [num_kept(196, 0.8) * 8, num_kept(1568, 0.8), num_kept(196, 0.5)] == [320, 314, 98]
    with pytest.raises(ValueError, match="drop_ratio"):
        num_kept(10, 1.0)


def unpacked(packed: Packed, clips: int) -> list[tuple[list[int], list[int]]]:
    """Of each clip what is kept and how long it lasts."""
    found: list[tuple[list[int], list[int]]] = [([], [])] * clips
    start, number = 0, 0
    for count, length in packed.groups:
        for _ in range(count):
            part = slice(start, start + length)
            found[int(packed.clips[number])] = (packed.keep[part].tolist(), packed.runs[part].tolist())
            start, number = start + length, number + 1
    assert start == len(packed.keep) == len(packed.runs) and number == clips
    return found


@settings(max_examples=100)
@example(
    clips=1, times=4, places=10, still=0.875, capped=True, seed=0
)  # 12 change, 13 is the most, 14 the next length
@given(**sizes, still=st.floats(0, 1), capped=st.booleans(), seed=st.integers(0, 2**31))
def test_runs_cover_every_repeat_once(
    clips: int, times: int, places: int, still: float, capped: bool, seed: int
) -> None:
    N = times * places
    moves = torch.rand(clips, times - 1, places, generator=seeded(seed)) > still
    change = torch.where(moves, 50.0, 1.0) + torch.rand(moves.shape, generator=seeded(seed + 1))
    budget = max(1, N // 3) if capped else None
    packed = run_length_keep(change, budget=budget)
    again = run_length_keep(change, budget=budget)
    assert torch.equal(packed.keep, again.keep) and packed.groups == again.groups
    assert sorted(packed.clips.tolist()) == list(range(clips))
    for moved, (keep, runs) in zip(moves, unpacked(packed, clips), strict=True):
        changed = {p for p in range(places)}
        changed |= {(s + 1) * places + p for s, p in moved.nonzero().tolist()}
        assert keep == sorted(set(keep)) and 0 < len(keep) <= (budget or N)
        covered = [n + i * places for n, run in zip(keep, runs, strict=True) for i in range(run)]
        assert len(covered) == len(set(covered)) and all(0 <= n < N for n in covered)
        if budget is None or len(changed) <= budget:
            assert changed <= set(keep)
            assert sorted(covered) == list(range(N))  # everything is seen, or repeats what is
            assert len(keep) < len(changed) + max(1, N // 16)
        for n, run in zip(keep, runs, strict=True):
            assert not any(n + i * places in changed for i in range(1, run))


def test_a_still_clip_is_its_first_time_and_a_single_time_is_itself() -> None:
    packed = run_length_keep(torch.zeros(2, 3, 16))
    assert packed.groups == ((2, 16),) and packed.runs.tolist() == [4] * 32
    assert packed.keep.tolist() == [*range(16)] * 2
    packed = run_length_keep(torch.zeros(2, 0, 5))
    assert packed.groups == ((2, 5),) and packed.runs.tolist() == [1] * 10
    assert len(run_length_keep(torch.zeros(2, 0, 5), budget=3).keep) == 6


def test_a_budget_below_what_changes_keeps_what_changes_most() -> None:
    change = torch.full((1, 3, 4), 50.0)
    change[0, :, 2] = 200.0
    packed = run_length_keep(change, budget=4)
    assert packed.keep.tolist() == [2, 6, 10, 14]
    with pytest.raises(HarvestError, match="budget: expected 1 to 16"):
        run_length_keep(change, budget=17)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_as_on_a_cpu() -> None:
    change = torch.rand(3, 48, generator=seeded()) * 40
    for name, select in {"motion": motion_keep, "attention": attention_keep}.items():
        here = select(change, 4, budget=17, generator=seeded())
        there = select(change.cuda(), 4, budget=17, generator=seeded())
        assert there.is_cuda and torch.equal(here, there.cpu()), name
    here, there = run_length_keep(change.view(3, 4, 12)), run_length_keep(change.view(3, 4, 12).cuda())
    assert torch.equal(here.keep, there.keep.cpu()) and torch.equal(here.runs, there.runs.cpu())
    assert here.groups == there.groups
