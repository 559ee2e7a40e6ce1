"""keep codec: files say what moves; those that do not are refused, or seen by their pixels if that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harvest.data.video import VideoError, write_video
from harvest.evaluation.embed import embed_videos
from harvest.interfaces import Example, Grid, HarvestError
from harvest.model.encoders import TextEncoderConfig, VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.tokens import Selection, choose

FRAMES = 12


def moving(folder: Path, name: str, *, key_every: int) -> Example:
    """A textured square that moves right over a textured background, in the second of four rows of places."""
    generator = torch.Generator().manual_seed(0)
    background = torch.randint(0, 256, (3, 32, 32), generator=generator).byte()
    video = background.repeat_interleave(2, 1).repeat_interleave(2, 2)[None].repeat(FRAMES, 1, 1, 1)
    square = torch.randint(0, 256, (3, 4, 4), generator=generator).byte()
    square = square.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for time in range(FRAMES):
        video[time, :, 16:32, 2 * time : 2 * time + 16] = square
    write_video(folder / name, video, fps=10, key_every=key_every)
    return Example(id=name, video=str(folder / name))


def model() -> VideoTextModel:
    sizes = {"width": 16, "depth": 1, "num_heads": 2, "mlp_width": 32, "embed_dim": 8}
    video = VideoEncoderConfig(image_size=64, patch_size=16, num_frames=4, **sizes)
    torch.manual_seed(0)
    return VideoTextModel(ModelConfig(video, TextEncoderConfig(vocab_size=20, context_length=8, **sizes)))


def seen(monkeypatch: pytest.MonkeyPatch, examples: list[Example], **selection: object) -> list[torch.Tensor]:
    """The tubelets kept of each clip."""
    towers, kept = model(), []
    inner = towers.encode_video
    monkeypatch.setattr(towers, "encode_video", lambda video, keep: kept.append(keep) or inner(video, keep))
    embed_videos(towers, examples, selection=Selection(**selection), batch_size=8)
    return list(torch.cat(kept))


def test_the_file_says_what_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = moving(tmp_path, "moving.mp4", key_every=99)
    (keep,) = seen(monkeypatch, [clip, clip], budget=4, keep="codec", random_share=0.0)
    assert (keep // 4 % 4 == 1).all() and len(keep) == 4  # the second row, at each time


def test_a_file_without_vectors_is_refused_or_seen_by_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [moving(tmp_path, "keys.mp4", key_every=1), moving(tmp_path, "moving.mp4", key_every=99)]
    with pytest.raises(VideoError, match=r"keys\.mp4: no motion vectors.*choose with keep motion"):
        seen(monkeypatch, clips, budget=4, keep="codec")
    settings = {"budget": 4, "random_share": 0.0}
    either = seen(monkeypatch, clips, keep="codec_or_motion", **settings)
    (pixels,) = seen(monkeypatch, clips[:1], keep="motion", **settings)
    (vectors,) = seen(monkeypatch, clips[1:], keep="codec", **settings)
    assert torch.equal(either[0], pixels) and torch.equal(either[1], vectors)


def test_where_there_are_no_files(tmp_path: Path) -> None:
    video = torch.randint(256, (2, 4, 3, 64, 64), dtype=torch.uint8)
    for keep in ("codec", "codec_or_motion"):
        with pytest.raises(HarvestError, match="keep codec reads the motion vectors of video files"):
            choose(Selection(budget=3, keep=keep), video, Grid(4, 16, 1, 16), generator=torch.Generator())
    clip = moving(tmp_path, "moving.mp4", key_every=99)
    with pytest.raises(HarvestError, match="in their own order"):
        embed_videos(model(), [clip], selection=Selection(budget=3, keep="codec"), frame_order="reversed")
