from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.data import rand_augment as ops
from harvest.data.rand_augment import OPERATIONS, rand_augment


def clip(seed: int = 0, height: int = 12, width: int = 16, num_frames: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num_frames, 3, height, width), generator=generator, dtype=torch.uint8)


@settings(max_examples=60)
@given(st.sampled_from(OPERATIONS), st.floats(0, 1), st.sampled_from([1, -1]), st.integers(0, 99))
def test_an_operation_treats_equal_frames_alike(operation, strength: float, sign: int, seed: int) -> None:
    frame = clip(seed, num_frames=1)
    other = clip(seed + 1, num_frames=1)
    out = operation(torch.cat([frame, frame, other]), strength, sign)
    assert out.shape == (3, 3, 12, 16) and out.dtype == torch.uint8
    assert out[0].equal(out[1])
    assert out[2:].equal(operation(other, strength, sign))  # what the other frames are does not matter


def test_draws_are_a_function_of_the_generator() -> None:
    def of(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return rand_augment(clip(), num_ops=4, magnitude=7, generator=generator)

    assert of(3).equal(of(3))
    changed = [not of(seed).equal(clip()) for seed in range(40)]
    assert 30 <= sum(changed) <= 40  # about 1 in 16 draws applies none of four
    assert len({of(seed).float().mean().item() for seed in range(40)}) > 20
    generator = torch.Generator().manual_seed(0)
    assert rand_augment(clip(), num_ops=0, magnitude=7, generator=generator).equal(clip())


@pytest.mark.parametrize(
    "strength, name, value", [(0.5, "_posterize", 0xC0), (1.0, "_posterize", 0), (0.0, "_posterize", 0xF0)]
)
def test_posterize_keeps_the_highest_bits(strength: float, name: str, value: int) -> None:
    assert getattr(ops, name)(
        torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), strength, 1
    ).unique().tolist() == [value]


def test_values_by_hand() -> None:
    ramp = torch.tensor([0, 100, 127, 128, 200, 255], dtype=torch.uint8).expand(1, 3, 1, 6)
    assert ops._invert(ramp, 0.3, 1)[0, 0, 0].tolist() == [255, 155, 128, 127, 55, 0]
    assert ops._solarize(ramp, 0.5, 1)[0, 0, 0].tolist() == [0, 100, 127, 127, 55, 0]
    assert ops._solarize(ramp, 0.0, 1).equal(ramp)
    assert ops._solarize_add(ramp, 0.5, 1)[0, 0, 0].tolist() == [55, 155, 182, 128, 200, 255]
    assert ops._brightness(ramp, 1.0, 1)[0, 0, 0].tolist() == [0, 190, 241, 243, 255, 255]
    assert ops._brightness(ramp, 1.0, -1)[0, 0, 0].tolist() == [0, 10, 13, 13, 20, 26]
    assert ops._contrast(ramp, 0.0, 1).equal(ramp) and ops._colour(ramp, 0.7, 1).equal(
        ramp
    )  # grey has no colour
    narrow = torch.tensor([100, 110, 120], dtype=torch.uint8).expand(1, 3, 1, 3)
    assert ops._auto_contrast(narrow, 0, 1)[0, 0, 0].tolist() == [0, 128, 255]
    flat = torch.full((1, 3, 4, 4), 77, dtype=torch.uint8)
    assert ops._auto_contrast(flat, 0, 1).equal(flat) and ops._equalize(flat, 0, 1).equal(flat)


def test_equalize_is_the_textbook_loop() -> None:
    """`ImageOps.equalize`, written out for one channel."""
    picture = (clip(5, 20, 30, 1).float().pow(2) / 255).byte()
    out = ops._equalize(picture, 0.0, 1)
    for channel in range(3):
        values = picture[0, channel].flatten().tolist()
        histogram = [values.count(value) for value in range(256)]
        step = (len(values) - histogram[max(values)]) // 255
        total, table = step // 2, []
        for value in range(256):
            table.append(min(255, total // step))
            total += histogram[value]
        assert out[0, channel].flatten().tolist() == [table[value] for value in values]


def test_a_shift_moves_and_fills_with_grey() -> None:
    picture = clip(1, 20, 20, 1)
    moved = ops._shift_x(picture, 1 / 9, 1)  # a twentieth of the width: one pixel
    assert moved[..., :-1].equal(picture[..., 1:]) and moved[..., -1].unique().tolist() == [128]
    back = ops._shift_y(picture, 1 / 9, -1)
    assert back[..., 1:, :].equal(picture[..., :-1, :]) and back[..., 0, :].unique().tolist() == [128]


def test_a_turn_there_and_back_is_nearly_nothing() -> None:
    smooth = (torch.linspace(0, 255, 40)[:, None] + torch.linspace(0, 60, 60)).clamp(max=255).byte()
    picture = smooth.expand(1, 3, 40, 60)
    out = ops._rotate(ops._rotate(picture, 0.3, 1), 0.3, -1)
    middle = (slice(None), slice(None), slice(14, 26), slice(22, 38))
    assert (out[middle].int() - picture[middle].int()).abs().max() <= 3
    assert not ops._rotate(picture, 0.3, 1)[middle].equal(picture[middle])
