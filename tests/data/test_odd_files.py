"""Files as phones, editors, screen recorders and old cameras write them, made here: read right, or refused."""

from __future__ import annotations

import gc
import os
import random
import resource
import struct
import time
import zlib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from harvest.data.guard import Guard
from harvest.data.video import VideoError, probe, read_clip, read_frames, write_video

CLIPS = Path(__file__).parents[3] / "shared/clips"
# 200 mutated copies and 150 decodes in the suite; more for the figures in docs/results.md.
MUTATIONS = int(os.environ.get("HARVEST_MUTATIONS", "200"))
DECODES = int(os.environ.get("HARVEST_DECODES", "150"))


def grey(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def levels(frames: Tensor) -> list[int]:
    """Brightness of each frame's middle, to the nearest ten."""
    middle = frames[:, :, frames.shape[2] // 2, frames.shape[3] // 2].float().mean(1)
    return (middle / 10).round().int().mul(10).tolist()


def encode(
    path: Path,
    pictures: list[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    stamps: list[int] | None = None,
    rate: int = 10,
    metadata: dict[str, str] | None = None,
    colour: tuple[int, int, int] | None = None,  # primaries, transfer, matrix
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if colour is not None:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace = colour
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


TEN = [grey(20 * (i + 1)) for i in range(10)]
SHOWN = [20 * (i + 1) for i in range(10)]
EVERY = torch.arange(10, dtype=torch.float64) / 10


def test_a_variable_frame_rate(tmp_path: Path) -> None:
    stamps = [0, 1, 2, 3, 40, 41, 42, 90, 91, 92]
    path = encode(tmp_path / "vfr.mp4", TEN, stamps=stamps)
    clip = read_frames(path, torch.tensor([0.05, 0.39, 3.9, 4.0, 8.9, 9.15]).double(), image_size=32)
    assert levels(clip.frames) == [20, 80, 80, 100, 140, 180]
    # one frame from each third of the time, not of the frames
    assert levels(read_clip(path, num_frames=3, image_size=32).frames) == [80, 140, 140]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_first_frame_that_is_not_at_zero(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"late.{suffix}", TEN, stamps=[100 + i for i in range(10)], g="5")
    assert levels(read_frames(path, EVERY, image_size=32).frames) == SHOWN
    assert probe(path).duration_s == pytest.approx(1.0, abs=0.11)


def test_an_edit_list_that_cuts_the_beginning(tmp_path: Path) -> None:
    """As a phone's editor trims: the frames before the cut are in the file and must not be shown."""
    path = encode(
        tmp_path / "trimmed.mp4",
        TEN,
        stamps=[i - 4 for i in range(10)],
        container_options={"avoid_negative_ts": "disabled", "use_editlist": "1"},
        bf="0",
    )
    assert b"elst" in path.read_bytes()
    shown = levels(read_frames(path, torch.arange(6, dtype=torch.float64) / 10, image_size=32).frames)
    assert shown == SHOWN[4:]


def test_timestamps_that_step_backwards(tmp_path: Path) -> None:
    """Two recordings in one transport stream: the clock starts anew in the middle. What came first is shown."""
    one = encode(tmp_path / "one.ts", TEN, g="5", bf="0")
    two = encode(tmp_path / "two.ts", [grey(250)] * 10, g="5", bf="0")
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    try:
        clip = read_frames(both, EVERY, image_size=32)
    except VideoError as error:
        assert error.reason
    else:
        assert levels(clip.frames)[:9] == SHOWN[:9]
        assert (clip.times_s.diff() >= 0).all()


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [
        ("libx264", "mp4", "yuv420p10le"),
        ("libx265", "mp4", "yuv420p12le"),
        ("libx265", "mkv", "yuv444p10le"),
        ("libsvtav1", "mp4", "yuv420p10le"),
        ("ffv1", "mkv", "yuv420p16le"),
    ],
)
def test_more_than_eight_bits(tmp_path: Path, codec: str, suffix: str, pix_fmt: str) -> None:
    options = {"x265-params": "log-level=none:pools=none"} if codec == "libx265" else {}
    options |= {"svtav1-params": "lp=1", "preset": "12"} if codec == "libsvtav1" else {}
    pictures = [grey(level, 64, 64) for level in SHOWN]
    try:
        path = encode(tmp_path / f"deep.{suffix}", pictures, codec=codec, pix_fmt=pix_fmt, **options)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write {codec} {pix_fmt}: {error}")
    found = levels(read_frames(path, EVERY, image_size=32).frames)
    assert max(abs(a - b) for a, b in zip(found, SHOWN, strict=True)) <= 10


def test_high_dynamic_range(tmp_path: Path) -> None:
    """BT.2020 with PQ or HLG: read as it is written, brighter pictures stay brighter. No tone mapping is claimed."""
    for name, transfer in (("pq", 16), ("hlg", 18)):
        path = encode(tmp_path / f"{name}.mp4", TEN, pix_fmt="yuv420p10le", colour=(9, transfer, 9), bf="0")
        found = levels(read_frames(path, EVERY, image_size=32).frames)
        assert found == sorted(found) and found[0] < 60 < 180 < found[-1]


@pytest.mark.parametrize(
    ("height", "matrix", "tag"), [(720, 709, 2), (480, 601, 2), (720, 601, 6), (480, 709, 1)]
)
def test_the_colours_of_untagged_files(tmp_path: Path, height: int, matrix: int, tag: int) -> None:
    """HD that says nothing is BT.709, smaller pictures are BT.601, as players have it; what is said holds."""
    kr, kb = (0.2126, 0.0722) if matrix == 709 else (0.299, 0.114)
    red, green, blue = 200 / 255, 60 / 255, 120 / 255
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    planes = [16 + 219 * luma, 128 + 112 * (blue - luma) / (1 - kb), 128 + 112 * (red - luma) / (1 - kr)]
    frame = av.VideoFrame(height * 16 // 9 // 16 * 16, height, "yuv420p")
    for plane, level in zip(frame.planes, planes, strict=True):
        plane.update(bytes([round(level)]) * plane.buffer_size)
    path = tmp_path / "colours.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
        stream.codec_context.colorspace = tag
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown = read_clip(path, num_frames=1, image_size=16).frames[0, :, 8, 8]
    assert (shown.int() - torch.tensor([200, 60, 120])).abs().max() <= 3


@pytest.mark.parametrize("size", [(35, 51), (1, 24), (48, 33), (2, 2)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures = [grey(level, *size) for level in SHOWN]
    path = encode(tmp_path / "odd.mkv", pictures, codec="ffv1", pix_fmt="yuv444p")
    assert (probe(path).height, probe(path).width) == size
    for fit in ("crop", "squash", "pad"):
        clip = read_frames(path, EVERY, image_size=32, fit=fit)
        assert clip.frames.shape == (10, 3, 32, 32)
        if fit != "pad" or min(size) > 1:  # of a picture one pixel high the middle lies between two rows
            assert max(abs(a - b) for a, b in zip(levels(clip.frames), SHOWN, strict=True)) <= 10


def test_a_gif(tmp_path: Path) -> None:
    path = encode(tmp_path / "moves.gif", TEN, codec="gif", pix_fmt="gray")
    found = levels(read_frames(path, EVERY, image_size=32).frames)
    assert max(abs(a - b) for a, b in zip(found, SHOWN, strict=True)) <= 10


def test_a_colour_profile_ends_no_process(tmp_path: Path) -> None:
    """A picture, and a video of such pictures. PyAV frees the name of a PNG's profile twice where it is looked at."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    profile = chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(bytes(3144)))
    body = chunk(b"IDAT", zlib.compress((b"\0" + bytes([90]) * 48) * 16)) + chunk(b"IEND", b"")
    path = tmp_path / "profile.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + profile + body)
    gc.freeze()
    for _ in range(25):
        assert levels(read_clip(path, num_frames=1, image_size=16).frames) == [90]
        gc.collect()
    gc.unfreeze()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_metadata_that_is_not_utf_8(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = encode(
        tmp_path / f"named.{suffix}", TEN, codec=codec, metadata={"title": "a video of a cXXXX"}, qscale="2"
    )
    whole = path.read_bytes()
    assert b"cXXXX" in whole
    path.write_bytes(whole.replace(b"cXXXX", b"caf\xe9\xff"))
    assert levels(read_frames(path, EVERY, image_size=32).frames) == SHOWN
    assert probe(path).width == 64


def test_a_picture_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    one = encode(tmp_path / "one.ts", TEN, bf="0")
    two = encode(tmp_path / "two.ts", [grey(200, 96, 64)] * 10, bf="0", stamps=[10 + i for i in range(10)])
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    with suppress(VideoError):  # cropped to squares of one size they may be read as well
        clip = read_frames(both, torch.tensor([0.0, 1.5]).double(), image_size=32)
        assert clip.frames.shape == (2, 3, 32, 32)
    with pytest.raises(VideoError):
        read_frames(both, torch.tensor([0.0, 1.5]).double(), image_size=32, fit=None)


# ---------------------------------------------------------------------------------------------------------------
# Damage


def mutated(whole: bytes, draw: random.Random) -> bytes:
    """Cut, bits flipped, a block zeroed, doubled or swapped."""
    data = bytearray(whole)
    place, other = draw.randrange(len(data)), draw.randrange(len(data))
    length = draw.choice((1, 16, 300, 5000))
    kind = draw.randrange(6)
    if kind == 0:
        del data[place:]
    elif kind == 1:
        for _ in range(draw.choice((1, 10, 100))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 2:
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == 3:
        data[place : place + length] = data[other : other + length]
    elif kind == 4:
        data[place:place] = data[other : other + length]
    else:
        for _ in range(3):  # headers stand at the beginning
            data[draw.randrange(min(600, len(data)))] = draw.randrange(256)
    return bytes(data)


def good_clips(tmp_path: Path) -> list[bytes]:
    noise = torch.randint(256, (24, 3, 6, 8), generator=torch.Generator().manual_seed(0)).byte()
    frames = noise.repeat_interleave(8, 2).repeat_interleave(8, 3)
    write_video(tmp_path / "good.mp4", frames, fps=12)
    made = [tmp_path / "good.mp4"]
    pictures = list(frames.permute(0, 2, 3, 1).numpy().copy())
    made.append(encode(tmp_path / "good.mkv", pictures, g="8"))
    made.append(encode(tmp_path / "good.ts", pictures, g="8"))
    made.append(encode(tmp_path / "good.avi", pictures, codec="mpeg4"))
    made.append(encode(tmp_path / "good.gif", pictures, codec="gif", pix_fmt="rgb8"))
    if CLIPS.exists():
        real = sorted(path for path in (CLIPS / "labelled").iterdir() if path.stat().st_size < 80_000)
        made += real[:: max(1, len(real) // 8)]
    return [path.read_bytes() for path in made]


def test_mutated_copies_are_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    clips = good_clips(tmp_path)
    draw = random.Random(0)
    path = tmp_path / "mutated"
    refused, slowest = 0, 0.0
    for number in range(MUTATIONS):
        path.write_bytes(mutated(clips[number % len(clips)], draw))
        began = time.perf_counter()
        try:
            clip = read_clip(path, num_frames=4, image_size=32)
            assert clip.frames.shape == (4, 3, 32, 32)
        except VideoError as error:
            refused += 1
            assert error.reason, number
        slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 10, number
    assert 0.1 < refused / MUTATIONS < 0.9, "the damage is too small or too large to tell anything"


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def decode_and_weigh(path: Path) -> int:
    with suppress(VideoError):
        read_clip(path, num_frames=4, image_size=64)
    return resident()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Good and damaged files alike, read as loader workers read them. The first decodes fill pools and caches."""
    (tmp_path / "clips").mkdir()
    clips = good_clips(tmp_path)
    draw = random.Random(1)
    paths = []
    for number, clip in enumerate(clips):
        for name, data in (("good", clip), ("bad", mutated(clip, draw))):
            paths.append(tmp_path / "clips" / f"{number}-{name}")
            paths[-1].write_bytes(data)
    guard = Guard(decode_and_weigh, limit_s=10, max_calls=min(1000, DECODES))
    weights = [guard(paths[number % len(paths)]) + resident() for number in range(DECODES)]
    guard.close()
    half = len(weights) // 2
    warm = max(weights[half // 2 : half])
    assert max(weights[half:]) < 1.01 * warm + 2_000_000 * (DECODES < 1000), [
        w // 1000 for w in weights[::100]
    ]
