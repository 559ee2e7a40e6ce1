import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.data.sampling import dense_times, segment_times
from harvest.interfaces import HarvestError

stretches = st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
counts = st.integers(1, 64)
seeds = st.none() | st.integers(0, 2**31)


def generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


@given(stretches, counts, seeds)
def test_one_time_from_each_segment(stretch: tuple[float, float], count: int, seed: int | None) -> None:
    start, end = stretch
    times = segment_times(start, end, num_frames=count, generator=generator(seed))
    assert times.dtype == torch.float64 and times.shape == (count,)
    width = (end - start) / count
    places = torch.arange(count, dtype=torch.float64)
    slack = 1e-9 * (1 + end)
    assert (times >= start + places * width - slack).all()
    assert (times <= start + (places + 1) * width + slack).all()
    assert (times >= start).all() and ((times < end).all() or start == end)
    assert (times.diff() >= 0).all()


@given(stretches, counts, st.floats(1e-3, 100), seeds)
def test_dense_times_keep_their_distance(
    stretch: tuple[float, float], count: int, every: float, seed: int | None
) -> None:
    start, end = stretch
    times = dense_times(start, end, num_frames=count, every_s=every, generator=generator(seed))
    assert times.dtype == torch.float64 and times.shape == (count,)
    assert (times >= start).all() and ((times < end).all() or start == end)
    assert (times.diff() >= 0).all()
    if end - start >= count * every:
        assert torch.allclose(times.diff(), torch.full((count - 1,), every).double(), atol=1e-6)


def test_middles_by_eye() -> None:
    assert segment_times(2, 10, num_frames=4).tolist() == [3, 5, 7, 9]
    assert dense_times(0, 10, num_frames=2, every_s=1).tolist() == [4, 5]
    assert segment_times(5, 5, num_frames=2).tolist() == [5, 5]


def test_the_same_generator_draws_the_same_times() -> None:
    draws = [segment_times(0, 9, num_frames=8, generator=generator(7)) for _ in range(2)]
    assert draws[0].equal(draws[1]) and not draws[0].equal(segment_times(0, 9, num_frames=8))


@pytest.mark.parametrize("start, end, count", [(0, 1, 0), (2, 1, 4)])
def test_impossible_stretches_are_refused(start: float, end: float, count: int) -> None:
    with pytest.raises(HarvestError):
        segment_times(start, end, num_frames=count)
    with pytest.raises(HarvestError):
        dense_times(start, end, num_frames=count, every_s=1)
