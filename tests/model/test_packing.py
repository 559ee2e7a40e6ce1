"""Clips that keep different numbers in one batch: what each alone would give, and nothing computed for padding."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
from toys import toy_model, with_time_positions

from harvest.interfaces import Packed
from harvest.model import layers
from harvest.model.video_encoder import VideoEncoder

CLIPS, TIMES, PLACES = 5, 4, 16


def packed_of(keeps: list[list[int]], runs: list[list[int]] | None = None) -> Packed:
    order = sorted(range(len(keeps)), key=lambda clip: len(keeps[clip]))
    lengths = [len(keeps[clip]) for clip in order]
    return Packed(
        torch.tensor([n for clip in order for n in keeps[clip]]),
        torch.tensor([n for clip in order for n in (runs or [[1] * len(k) for k in keeps])[clip]]),
        torch.tensor(order),
        tuple((lengths.count(length), length) for length in sorted(set(lengths))),
    )


def some_keeps() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randperm(64, generator=generator)[:count].sort().values.tolist() for count in (7, 20, 3, 7, 64)
    ]


@pytest.fixture
def video() -> torch.Tensor:
    return torch.randint(256, (CLIPS, TIMES, 3, 16, 16), generator=torch.Generator().manual_seed(2)).byte()


SETTINGS = [
    {"prefix": "frame"},
    {"prefix": "clip"},
    {"prefix": "none", "pooling": "mean", "positions": "sinusoid"},
    {"prefix": "none", "pooling": "attention"},
    {"prefix": "clip", "positions": "joint"},
]


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
def test_packed_clips_are_what_each_is_alone(settings: dict, video: torch.Tensor) -> None:
    model = with_time_positions(toy_model()[0], **settings)
    keeps = some_keeps()
    together = model.encode_video(video, packed_of(keeps))
    assert together.tokens.shape == (CLIPS, 64, 48)
    for clip, keep in enumerate(keeps):
        alone = model.encode_video(video[clip : clip + 1], torch.tensor([keep]))
        torch.testing.assert_close(together.pooled[clip], alone.pooled[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.tokens[clip, : len(keep)], alone.tokens[0], atol=1e-5, rtol=1e-4)
        assert together.mask[clip].tolist() == [True] * len(keep) + [False] * (64 - len(keep))
        assert not together.tokens[clip, len(keep) :].any()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_each_alone(checkpointing: bool, video: torch.Tensor) -> None:
    model, keeps = toy_model()[0].train(), some_keeps()
    model.video.checkpointing = checkpointing
    alone = copy.deepcopy(model)
    weights = torch.randn(CLIPS, 24, generator=torch.Generator().manual_seed(0))
    (model.encode_video(video, packed_of(keeps)).pooled * weights).sum().backward()
    for clip, keep in enumerate(keeps):
        (
            alone.encode_video(video[clip : clip + 1], torch.tensor([keep])).pooled * weights[clip]
        ).sum().backward()
    for (name, one), other in zip(model.video.named_parameters(), alone.video.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_nothing_is_computed_for_padding(video: torch.Tensor) -> None:
    model, keeps = toy_model()[0], some_keeps()
    seen = []
    inner = layers.MLP.forward
    with patch.object(layers.MLP, "forward", lambda self, x: (seen.append(x.shape[:2]), inner(self, x))[1]):
        model.encode_video(video, packed_of(keeps))
    tokens = sum(map(len, keeps)) + CLIPS * TIMES  # a class token a frame
    assert seen == [(1, tokens)] * model.config.video.depth


@torch.no_grad()
@pytest.mark.parametrize("positions", ["factored", "joint", "sinusoid"])
def test_a_run_has_the_mean_position_of_its_times(positions: str, video: torch.Tensor) -> None:
    model = with_time_positions(toy_model()[0], positions=positions, prefix="clip")
    encoder: VideoEncoder = model.video
    packed = packed_of([[5, 21], [5], [5, 21, 37], [5], [5]], [[1, 3], [4], [1, 1, 2], [2], [1]])
    rows = torch.tensor([1, 3, 4, 0, 0, 2, 2, 2])
    tokens = encoder._embed_packed(video, packed)
    if positions == "factored":
        table = encoder.time_positions(TIMES) + encoder.place_positions[5]
    else:
        table = encoder._positions(TIMES, PLACES).view(TIMES, PLACES, -1)[:, 5]
    pixels = encoder._pixels(video)[rows, packed.keep // PLACES, 1, 1]
    plain = encoder.patches(encoder.normalise(pixels).flatten(1))
    means = [table[0:4], table[0:2], table[0:1], table[0:1], table[1:4], table[0:1], table[1:2], table[2:4]]
    expected = plain + torch.stack([part.mean(dim=0) for part in means])
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)


def test_what_needs_equal_numbers_is_refused(video: torch.Tensor) -> None:
    model = toy_model()[0]
    for more in ({"layers": (0,)}, {"attention": True}, {"drop_path_scale": torch.ones(2, 2, CLIPS)}):
        with pytest.raises(ValueError, match="equally many kept tubelets"):
            model.encode_video(video, packed_of(some_keeps()), **more)
    framewise = with_time_positions(model, attention="frame")
    with pytest.raises(ValueError, match="attention 'frame'"):
        framewise.encode_video(video, packed_of(some_keeps()))


@torch.no_grad()
def test_words_do_not_attend_to_padding(video: torch.Tensor) -> None:
    model = toy_model(fusion=True)[0]
    keeps = some_keeps()
    ids = torch.randint(3, 20, (CLIPS, 12), generator=torch.Generator().manual_seed(1))
    together = model.fuse(model.encode_video(video, packed_of(keeps)), model.encode_text(ids))
    for clip, keep in enumerate(keeps):
        part = slice(clip, clip + 1)
        alone = model.fuse(
            model.encode_video(video[part], torch.tensor([keep])),
            model.encode_text(ids).__class__(*(x[part] for x in model.encode_text(ids))),
        )
        torch.testing.assert_close(together[clip], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_kernel_agrees() -> None:
    segments = layers.Segments.of([(2, 5), (1, 9)], torch.device("cuda"))
    q, k, v = torch.randn(3, 1, 4, 19, 64, device="cuda", dtype=torch.bfloat16)
    mixed = layers.attend_within(q, k, v, segments)
    plain = layers.attend_within(*(part.float().cpu() for part in (q, k, v)), segments)
    torch.testing.assert_close(mixed.float().cpu(), plain, atol=2e-2, rtol=2e-2)
