"""What is said where torchcodec is not there, and what is not left to it. That it shows the same frames: test_video."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harvest.data import second_decoder, video
from harvest.data.loader import ClipDataset, DataConfig
from harvest.data.video import read_clip, write_video
from harvest.interfaces import Example, HarvestError


@pytest.fixture(autouse=True)
def nothing_remembered():
    second_decoder.check_decoder.cache_clear()
    yield
    second_decoder.check_decoder.cache_clear()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = torch.arange(0, 240, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 48)
    write_video(tmp_path / "a.mp4", frames.contiguous(), fps=12)
    return tmp_path / "a.mp4"


def test_a_decoder_that_is_not_installed_is_told_before_anything_is_read(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    config = DataConfig(num_frames=2, workers=0, decoder="torchcodec")
    with pytest.raises(HarvestError, match=r"pip install 'harvest-video\[torchcodec\]'"):
        ClipDataset([Example("a", str(clip))], config, image_size=16, encode_text=None, seed=0)
    with pytest.raises(HarvestError, match="expected pyav or torchcodec, got 'decord'"):
        read_clip(clip, num_frames=2, image_size=16, decoder="decord")


def test_where_it_declines_or_errs_the_file_is_read_as_ever(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_clip(clip, num_frames=4, image_size=16)
    asked = []

    class Decoder:
        """A torchcodec that answers each question with a frame of later."""

        def __init__(self, source, **options) -> None:
            self.metadata = SimpleNamespace(
                begin_stream_seconds_from_content=0.0, end_stream_seconds_from_content=2.0, rotation=None
            )

        def get_frames_played_at(self, times_s: list[float]) -> SimpleNamespace:
            asked.append(times_s)
            later = torch.tensor(times_s) + 0.5
            frames = torch.zeros(len(times_s), 3, 32, 48, dtype=torch.uint8)
            return SimpleNamespace(
                data=frames, pts_seconds=later, duration_seconds=torch.full_like(later, 0.1)
            )

    decoders = SimpleNamespace(VideoDecoder=Decoder)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=decoders))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    clipped = read_clip(clip, num_frames=4, image_size=16, decoder="torchcodec")
    assert len(asked) == 1 and clipped.frames.equal(expected.frames)

    def fails(self, times_s):
        raise RuntimeError("no such frame")

    monkeypatch.setattr(Decoder, "get_frames_played_at", fails)
    assert read_clip(clip, num_frames=4, image_size=16, decoder="torchcodec").frames.equal(expected.frames)


def test_formats_that_may_name_other_files_are_not_left_to_it(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_decoder, "check_decoder", lambda name: None)
    monkeypatch.setattr(second_decoder, "fetch", lambda *_, **__: pytest.fail("it was asked"))
    picture = clip.with_name("a.jpg")
    picture.write_bytes(video.write_pictures(read_clip(clip, num_frames=1, image_size=16).frames)[0])
    assert read_clip(picture, num_frames=1, image_size=16, decoder="torchcodec").frames.shape[0] == 1
