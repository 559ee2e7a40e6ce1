"""What is said where torchcodec or a GPU for it is not there, what is asked of it, and what is not left to it.

That it shows the same frames: test_video. Decoding on a GPU is tested with a stand-in that tells what it was asked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from harvest.data.dataset import ClipDataset, DataConfig
from harvest.data.video import read_clip, reading, second_decoder, write_pictures, write_video
from harvest.interfaces import Example, HarvestError


@pytest.fixture(autouse=True)
def nothing_remembered():
    second_decoder._find.cache_clear()
    yield
    second_decoder._find.cache_clear()


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
    with pytest.raises(HarvestError, match=r"pip install torchcodec"):
        ClipDataset([Example("a", str(clip))], config, image_size=16, encode_text=None, seed=0)
    with pytest.raises(
        HarvestError, match="expected auto, pyav, torchcodec or torchcodec_cuda, got 'decord'"
    ):
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
    monkeypatch.setattr(reading, "find_decoder", lambda name: name)
    monkeypatch.setattr(second_decoder, "fetch", lambda *_, **__: pytest.fail("it was asked"))
    picture = clip.with_name("a.jpg")
    picture.write_bytes(write_pictures(read_clip(clip, num_frames=1, image_size=16).frames)[0])
    assert read_clip(picture, num_frames=1, image_size=16, decoder="torchcodec").frames.shape[0] == 1


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


class StandIn:
    """A torchcodec of 24 frames at 12 a second, each of its own grey level, that tells where it was asked to decode."""

    asked: ClassVar[list[str]] = []
    has_gpu: ClassVar[bool] = True

    def __init__(self, source, *, device: str = "cpu", **options) -> None:
        if device.startswith("cuda") and not self.has_gpu:
            raise RuntimeError("Unsupported device: cuda\nat some.cpp:12")
        self.asked.append(device)
        self.kind = OnGpu if device.startswith("cuda") else torch.Tensor
        self.metadata = SimpleNamespace(
            begin_stream_seconds_from_content=0.0, end_stream_seconds_from_content=2.0, rotation=None
        )

    def get_frames_played_at(self, times_s: list[float]) -> SimpleNamespace:
        number = (torch.tensor(times_s) * 12).floor()
        level = (10 * number).byte()[:, None, None, None].expand(-1, 3, 32, 48).contiguous()
        return SimpleNamespace(
            data=level.as_subclass(self.kind),
            pts_seconds=number / 12,
            duration_seconds=torch.full_like(number, 1 / 12),
        )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    decoders = SimpleNamespace(VideoDecoder=StandIn)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=decoders))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setattr(StandIn, "asked", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return StandIn


def test_frames_of_a_gpu_come_back_as_bytes_in_memory(
    clip: Path, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    on_gpu = read_clip(clip, num_frames=4, image_size=16, decoder="torchcodec_cuda")
    assert stand_in.asked == ["cuda:3", "cuda:3"]  # the first to see whether it can
    assert type(on_gpu.frames) is torch.Tensor and on_gpu.frames.dtype == torch.uint8
    expected = read_clip(clip, num_frames=4, image_size=16)
    assert on_gpu.times_s.equal(expected.times_s)
    assert (on_gpu.frames.int() - expected.frames.int()).abs().max() < 4
    assert read_clip(clip, num_frames=4, image_size=16, decoder="torchcodec").frames.equal(on_gpu.frames)
    assert stand_in.asked[2:] == ["cpu"]


def test_without_a_gpu_or_a_build_for_one_it_is_told(
    clip: Path, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(num_frames=2, workers=0, decoder="torchcodec_cuda")
    rows, how = [Example("a", str(clip))], {"image_size": 16, "encode_text": None, "seed": 0}
    monkeypatch.setattr(stand_in, "has_gpu", False)
    with pytest.raises(HarvestError, match=r"cannot decode on cuda:0 \(Unsupported device: cuda\)"):
        ClipDataset(rows, config, **how)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    second_decoder._find.cache_clear()
    with pytest.raises(HarvestError, match="finds no NVIDIA GPU here"):
        ClipDataset(rows, config, **how)
    assert stand_in.asked == []


def test_auto_is_the_gpu_where_there_is_one_else_pyav(
    clip: Path, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DataConfig().decoder == "pyav"
    rows, how = [Example("a", str(clip))], {"image_size": 16, "encode_text": None, "seed": 0}
    config = DataConfig(num_frames=2, workers=0, decoder="auto")
    assert ClipDataset(rows, config, **how).decoder == "torchcodec_cuda"
    second_decoder._find.cache_clear()
    monkeypatch.setattr(stand_in, "has_gpu", False)
    assert ClipDataset(rows, config, **how).decoder == "pyav"
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    second_decoder._find.cache_clear()
    assert read_clip(clip, num_frames=2, image_size=16, decoder="auto").frames.shape[0] == 2


def test_a_process_that_was_forked_finds_out_anew(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not use the GPU of its parent: what was found there would be taken for refusals of single files."""
    assert second_decoder.find_decoder("torchcodec_cuda") == "torchcodec_cuda"
    monkeypatch.setattr(stand_in, "has_gpu", False)
    assert second_decoder.find_decoder("torchcodec_cuda") == "torchcodec_cuda"  # remembered
    monkeypatch.setattr(second_decoder.os, "getpid", lambda: -1)
    with pytest.raises(HarvestError, match="cannot decode on cuda:0"):
        second_decoder.find_decoder("torchcodec_cuda")
