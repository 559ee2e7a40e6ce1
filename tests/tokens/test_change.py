"""What counts as change, against frames whose change is known."""

from __future__ import annotations

import pytest
import torch

from harvest.interfaces import Grid
from harvest.tokens import repeated_change, tubelet_change


def grid(times: int, places: int = 4, tubelet_size: int = 1, patch_size: int = 8) -> Grid:
    return Grid(times, places, tubelet_size, patch_size)


def square_moving_right(frames: int) -> torch.Tensor:
    """A bright patch of 8 x 8 that moves by one place a frame along the top row of 8 x 64 frames."""
    video = torch.full((1, frames, 3, 8, 64), 50, dtype=torch.uint8)
    for time in range(frames):
        video[0, time, :, :, 8 * time : 8 * time + 8] = 150
    return video


def test_what_moves_changes_more_than_what_it_uncovers() -> None:
    change = tubelet_change(square_moving_right(5), grid(5, places=8)).view(5, 8)
    for time in range(1, 4):
        wanted = torch.zeros(8)
        wanted[time - 1], wanted[time], wanted[time + 1] = 50, 100, 50
        assert torch.equal(change[time], wanted)
    assert change[0].tolist() == [100, 100, 0, 0, 0, 0, 0, 0]  # one neighbour tells no more
    assert change[4].tolist() == [0, 0, 0, 100, 100, 0, 0, 0]


def test_brighter_and_darker_count_alike_and_uint8_does_not_wrap() -> None:
    video = torch.zeros(1, 3, 3, 8, 8, dtype=torch.uint8)
    video[:, 1] = 255
    assert tubelet_change(video, grid(3, places=1)).tolist() == [[255.0, 255.0, 255.0]]


def test_a_tubelet_changes_as_its_most_changing_frame() -> None:
    change = tubelet_change(square_moving_right(4), grid(2, places=8, tubelet_size=2)).view(2, 8)
    assert change[0].tolist() == [100, 100, 50, 0, 0, 0, 0, 0]
    assert change[1].tolist() == [0, 50, 100, 100, 0, 0, 0, 0]


@pytest.mark.parametrize("frames", [1, 3])
def test_an_odd_last_frame_fills_its_tubelet(frames: int) -> None:
    video = square_moving_right(3)[:, :frames]
    times = (frames + 1) // 2
    change = tubelet_change(video, grid(times, places=8, tubelet_size=2))
    assert change.shape == (1, times * 8)
    if frames == 1:
        assert not change.any()
    else:
        assert change.view(2, 8)[1].tolist() == [0, 100, 100, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("patch_size", [4, 8, 14, 16])
def test_a_still_clip_does_not_change(patch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(256, (2, 1, 3, 2 * patch_size, 2 * patch_size), generator=generator).byte()
    change = tubelet_change(frame.expand(-1, 4, -1, -1, -1), grid(4, patch_size=patch_size))
    assert change.shape == (2, 16) and not change.any()


def test_normalised_pixels_are_in_about_the_same_units() -> None:
    video = square_moving_right(4)
    normal = (video.float() / 255 - 0.45) / 0.27
    grey = tubelet_change(video, grid(4, places=8))
    torch.testing.assert_close(tubelet_change(normal, grid(4, places=8)), grey, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("frames", [4, 3])
def test_a_tubelet_is_compared_with_the_one_before_it(frames: int) -> None:
    video = torch.full((1, frames, 3, 8, 16), 50, dtype=torch.uint8)
    video[:, 1, :, :, 8:] = 90  # the second place changes within its first tubelet,
    video[:, 2:, :, :, 8:] = 80  # and lies between after that
    change = repeated_change(video, grid(2, places=2, tubelet_size=2))
    assert change.tolist() == [[[0.0, 30.0]]]
    assert repeated_change(video[:, :1], grid(1, places=2)).shape == (1, 0, 2)
