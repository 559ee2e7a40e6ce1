from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harvest.data.read_once import eval_batches
from harvest.data.sampling import segment_times
from harvest.data.transforms import side_crops
from harvest.data.video import write_video
from harvest.interfaces import Example, HarvestError


def test_clips_take_equal_shares_of_each_segment() -> None:
    times = segment_times(0.0, 8.0, num_frames=2, num_clips=3)
    assert times[0::3].tolist() == [1.0, 5.0] and times[1::3].tolist() == [2.0, 6.0]
    assert times[2::3].tolist() == [3.0, 7.0]
    assert segment_times(0.0, 8.0, num_frames=2, num_clips=1).tolist() == [2.0, 6.0]
    with pytest.raises(HarvestError, match="num_clips"):
        segment_times(0.0, 8.0, num_frames=2, num_clips=2, generator=torch.Generator())


def test_crops_reach_from_side_to_side() -> None:
    frames = torch.arange(10, dtype=torch.uint8).expand(2, 3, 4, 10)
    assert [crop[0, 0, 0, 0].item() for crop in side_crops(frames, 4, num_crops=3)] == [0, 3, 6]
    assert [crop[0, 0, 0, 0].item() for crop in side_crops(frames, 4, num_crops=1)] == [3]
    tall = side_crops(frames.transpose(2, 3), 4, num_crops=2)
    assert [crop[0, 0, 0, 0].item() for crop in tall] == [0, 6] and tall[0].shape == (2, 3, 4, 4)


def test_views_of_a_file(tmp_path: Path) -> None:
    """Brightness tells the time, a bright side tells where the crop lies."""
    frames = torch.zeros(12, 3, 32, 64, dtype=torch.uint8)
    frames += (torch.arange(12, dtype=torch.uint8) * 10)[:, None, None, None]
    frames[..., 32:] += 100
    write_video(tmp_path / "a.mp4", frames, fps=4)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    examples = [Example(name, str(tmp_path / f"{name}.mp4"), label=0) for name in "ab"]
    refused = []
    ((numbers, video),) = eval_batches(
        examples,
        num_frames=3,
        image_size=32,
        views=(2, 2),
        batch_size=4,
        workers=0,
        on_broken=lambda example, reason: refused.append(example.id),
    )
    assert numbers.tolist() == [0] and refused == ["b"]
    assert video.shape == (1, 4, 3, 3, 32, 32)
    level = video[0].float().mean(dim=(2, 3, 4))  # [views, T]
    # Of each second, four frames long, the first clip takes what is shown at 1/3, the second at 2/3.
    expected = torch.tensor([[10.0, 50, 90], [110, 150, 190], [20, 60, 100], [120, 160, 200]])
    assert (level - expected).abs().max() < 4
