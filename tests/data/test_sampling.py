import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.data.sampling import dense_times, segment_times
from harvest.interfaces import HarvestError

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "umt_sampling_meta.json"
stretches = st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
counts = st.integers(1, 64)
seeds = st.none() | st.integers(0, 2**31)


def generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


@given(stretches, counts, seeds)
def test_one_time_from_each_segment(stretch: tuple[float, float], count: int, seed: int | None) -> None:
    start, end = stretch
    times = segment_times(start, end, num_frames=count, generator=generator(seed))
    assert times.dtype == np.float64 and times.shape == (count,)
    width = (end - start) / count
    places = np.arange(count)
    slack = 1e-9 * (1 + end)
    assert (times >= start + places * width - slack).all()
    assert (times <= start + (places + 1) * width + slack).all()
    assert (times >= start).all() and ((times < end).all() or start == end)
    assert (np.diff(times) >= 0).all()


@given(stretches, counts, st.floats(1e-3, 100), seeds)
def test_dense_times_keep_their_distance(
    stretch: tuple[float, float], count: int, every: float, seed: int | None
) -> None:
    start, end = stretch
    times = dense_times(start, end, num_frames=count, every_s=every, generator=generator(seed))
    assert times.dtype == np.float64 and times.shape == (count,)
    assert (times >= start).all() and ((times < end).all() or start == end)
    assert (np.diff(times) >= 0).all()
    if end - start >= count * every:
        assert np.allclose(np.diff(times), every, rtol=0, atol=1e-6)


def test_middles_by_eye() -> None:
    assert segment_times(2, 10, num_frames=4).tolist() == [3, 5, 7, 9]
    assert dense_times(0, 10, num_frames=2, every_s=1).tolist() == [4, 5]
    assert segment_times(5, 5, num_frames=2).tolist() == [5, 5]


@pytest.mark.skipif(not REFERENCE.is_file(), reason="no indices of the reference")
def test_the_frames_of_umt_where_it_takes_the_middle() -> None:
    """Equal to its SSV2 sampler; its others end their segments a frame early (defect 11) and are at most two off."""
    found = json.loads(REFERENCE.read_text())
    lengths = [5, 8, 9, 20, 64, 100, 301]
    for length in lengths:
        frames = segment_times(0, length, num_frames=8).astype(int).tolist()
        assert frames == found[f"len{length}"]["ssv2_val_8seg"]
        views = segment_times(0, length, num_frames=8, num_clips=4).astype(int).reshape(8, 4)
        for clip in range(4):
            theirs = np.array(found[f"len{length}"][f"sparse_test_8f_4seg_clip{clip}"])
            assert np.abs(views[:, clip] - theirs).max() <= 2
    for name, theirs in found["retrieval_middle"].items():
        count, length = (int(part) for part in name[1:].split("_len"))
        frames = segment_times(0, length, num_frames=count).astype(int)
        assert np.abs(frames - np.array(theirs)).max() <= (1 if length >= count else 2)


@pytest.mark.skipif(not REFERENCE.is_file(), reason="no indices of the reference")
def test_defect_3_a_dense_clip_in_the_middle_is_in_the_middle() -> None:
    """The reference's starts before the clip does: frames -16 to 15 of 64."""
    theirs = json.loads(REFERENCE.read_text())["len64"]["dense_val_8f_rate4"]
    frames = dense_times(0, 64, num_frames=8, every_s=4).astype(int).tolist()
    assert min(theirs) < 0 <= min(frames) and frames == [16, 20, 24, 28, 32, 36, 40, 44]


def test_the_same_generator_draws_the_same_times() -> None:
    draws = [segment_times(0, 9, num_frames=8, generator=generator(7)) for _ in range(2)]
    assert np.array_equal(*draws) and not np.array_equal(draws[0], segment_times(0, 9, num_frames=8))


@pytest.mark.parametrize("start, end, count", [(0, 1, 0), (2, 1, 4)])
def test_impossible_stretches_are_refused(start: float, end: float, count: int) -> None:
    with pytest.raises(HarvestError):
        segment_times(start, end, num_frames=count)
    with pytest.raises(HarvestError):
        dense_times(start, end, num_frames=count, every_s=1)


def test_leading_views_are_those_of_umts_something_something() -> None:
    """Clip c of n takes a frame at c / n of each segment; one clip takes the middle."""
    times = segment_times(0, 16, num_frames=8, num_clips=2, view_places="leading").reshape(8, 2)
    assert times[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert times[:, 1].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    inner = segment_times(0, 12, num_frames=4, num_clips=2).reshape(4, 2)
    assert inner[0].tolist() == pytest.approx([1, 2])
    one = segment_times(0, 16, num_frames=8, view_places="leading")
    assert np.array_equal(one, segment_times(0, 16, num_frames=8))
