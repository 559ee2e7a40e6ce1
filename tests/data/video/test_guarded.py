"""Reading in a process of its own is reading, and a file that ends the process costs that file."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from harvest.data.video import VideoError, guarded, probe, read_frames, stream_frames, write_video
from harvest.data.video.guarded import GuardedReader


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    levels = torch.arange(20, 220, 25, dtype=torch.uint8)
    write_video(path, levels[:, None, None, None].expand(-1, 3, 32, 48).contiguous(), fps=4)
    return path


def test_it_gives_what_reading_here_gives(clip: Path) -> None:
    with GuardedReader() as reader:
        assert reader.probe(clip) == probe(clip)
        times = torch.tensor([0.1, 1.2], dtype=torch.float64)
        one, other = (
            reader.read_frames(clip, times, image_size=16, fit="pad"),
            read_frames(clip, times, image_size=16, fit="pad"),
        )
        assert one.frames.equal(other.frames) and one.times_s.equal(other.times_s)
        assert one.shown_as == other.shown_as
        here = list(stream_frames(clip, every_s=0.1, image_size=16))
        there = list(reader.stream_frames(clip, every_s=0.1, image_size=16))
        assert [time_s for time_s, _ in there] == [time_s for time_s, _ in here]
        assert all(a.equal(b) for (_, a), (_, b) in zip(here, there, strict=True))
        assert there[1][1] is there[0][1] and there[-1][1] is not there[0][1]  # shown on: the same tensor
        with pytest.raises(VideoError, match="no such file"):
            reader.probe(clip.with_name("gone.mp4"))


def crash(path: Path, **how: object):
    yield from stream_frames(path, **how)
    if path.name == "bad.mp4":
        ctypes.string_at(0)


def test_a_crash_costs_one_file(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = clip.with_name("bad.mp4")
    bad.write_bytes(clip.read_bytes())
    monkeypatch.setattr(guarded, "stream_frames", crash)  # before the child is forked
    with GuardedReader() as reader:
        for _ in range(2):
            with pytest.raises(VideoError, match="SIGSEGV") as error:
                list(reader.stream_frames(bad, every_s=0.25, image_size=16))
            assert error.value.path == str(bad)
            assert len(list(reader.stream_frames(clip, every_s=0.25, image_size=16))) == 8
