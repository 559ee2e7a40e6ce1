import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.data import transforms
from harvest.data.transforms import fit_square, flip, random_resized_crop
from harvest.interfaces import HarvestError

sides = st.integers(3, 50)


def ramp(height: int, width: int, num_frames: int = 3) -> torch.Tensor:
    """Brightness rises to the right and, in green, downwards; all frames are equal."""
    red = torch.linspace(0, 250, width).expand(height, width)
    green = torch.linspace(0, 250, height)[:, None].expand(height, width)
    return torch.stack([red, green, red]).byte().expand(num_frames, 3, height, width).contiguous()


@settings(max_examples=40)
@given(st.integers(16, 50), st.integers(16, 50), st.integers(2, 40))
def test_fit_gives_the_middle_square(height: int, width: int, size: int) -> None:
    out = fit_square(ramp(height, width), size)
    assert out.shape == (3, 3, size, size) and out.dtype == torch.uint8
    assert out[0].equal(out[2])
    scaled_height, scaled_width = transforms.scaled_size(height, width, size, "crop")  # in whole pixels
    for channel, side, scaled in ((0, width, scaled_width), (1, height, scaled_height)):
        pixel = side / scaled  # of the result, in the source: half a one may be cut off unevenly
        mean = float(out[0, channel].float().mean())
        assert abs(mean - 125) <= (0.5 * pixel + 1) * 250 / (side - 1)


def test_fit_leaves_a_fitting_square_alone() -> None:
    frames = ramp(16, 16)
    assert fit_square(frames, 16).equal(frames)


@settings(max_examples=40)
@given(sides, sides, st.integers(2, 40), st.integers(0, 2**31), st.floats(0.05, 1), st.floats(0.05, 1))
def test_random_crop_is_one_for_all_frames(
    height: int, width: int, size: int, seed: int, a: float, b: float
) -> None:
    scale = (min(a, b), max(a, b))
    crops = [
        random_resized_crop(
            ramp(height, width), size, scale=scale, generator=torch.Generator().manual_seed(seed)
        )
        for _ in range(2)
    ]
    assert crops[0].shape == (3, 3, size, size) and crops[0].dtype == torch.uint8
    assert crops[0].equal(crops[1]) and crops[0][0].equal(crops[0][2])


def test_random_crop_takes_the_share_of_the_area_it_is_told() -> None:
    frames = ramp(200, 300)
    for seed in range(20):
        out = random_resized_crop(
            frames, 64, scale=(0.25, 0.25), generator=torch.Generator().manual_seed(seed)
        ).float()
        wide = (out[0, 0, 0, -1] - out[0, 0, 0, 0]) / 250
        high = (out[0, 1, -1, 0] - out[0, 1, 0, 0]) / 250
        assert 0.2 < float(wide * high) < 0.3


def test_whole_crop_of_a_square_is_the_square() -> None:
    frames = ramp(32, 32)
    out = random_resized_crop(
        frames, 32, scale=(1, 1), aspect=(1, 1), generator=torch.Generator().manual_seed(0)
    )
    assert out.equal(frames)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.5)])
def test_impossible_scales_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(HarvestError, match="crop_scale"):
        random_resized_crop(ramp(9, 9), 8, scale=scale, generator=torch.Generator())


def test_flip_mirrors_left_and_right() -> None:
    frames = ramp(5, 7)
    assert flip(frames)[..., 0].equal(frames[..., -1]) and flip(flip(frames)).equal(frames)


@pytest.mark.parametrize("size", [16, 40])  # smaller and larger than the boxes
def test_a_batch_is_cropped_in_one_pass_as_one_by_one(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (5, 2, 3, 12, 16), generator=generator).float()
    video = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=(48, 64), mode="bicubic")
    video = video.clamp(0, 255).byte().unflatten(0, (5, 2))
    boxes, expected = [], []
    for clip in range(5):
        top, left, height, width = transforms.random_box(48, 64, scale=(0.2, 0.9), generator=generator)
        boxes.append((top / 48, left / 64, height / 48, (-1) ** clip * width / 64))
        part = video[clip, ..., top : top + height, left : left + width]
        part = transforms.resize(part, size, size)
        expected.append(transforms.flip(part) if clip % 2 else part)
    found = transforms.crop_batch(video, torch.tensor(boxes), size)
    assert found.shape == (5, 2, 3, size, size) and found.dtype == torch.uint8
    off = (found.int() - torch.stack(expected).int()).abs()
    assert off.max() <= 3 and off.float().mean() < 0.6
