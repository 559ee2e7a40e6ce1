"""Which frames are read is decided on files whose frames carry their own number."""

import random
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harvest.data.video import (
    PackedVideo,
    VideoError,
    probe,
    read_clip,
    read_frames,
    reading,
    transcode,
    write_video,
)
from harvest.data.video.second_decoder import find_decoder
from harvest.interfaces import Clip, Fit, HarvestError

BITS = 8
NUM_FRAMES = 120
FPS = 10


def numbered(num_frames: int, size: int = 64) -> Tensor:
    """Frame i shows the bits of i as black and white columns, the highest on the left."""
    columns = torch.arange(size) * BITS // size
    bits = torch.arange(num_frames)[:, None] >> (BITS - 1 - columns) & 1
    return (bits * 255).byte()[:, None, None, :].expand(num_frames, 3, size, size).contiguous()


def numbers(frames: Tensor) -> list[int]:
    """The number that each frame shows."""
    size = frames.shape[-1]
    middles = (torch.arange(BITS) * 2 + 1) * size // (2 * BITS)
    is_white = frames[:, :, size // 2, :].float().mean(1)[:, middles] > 128
    return (is_white.long() << torch.arange(BITS - 1, -1, -1)).sum(1).tolist()


def encode(
    path: Path, frames: Tensor, stamps: list[int], *, codec: str, rate: int = 90, **options: str
) -> None:
    """A file whose frames are shown at the given stamps of 1 / `rate` seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = frames.shape[-1], frames.shape[-2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        for picture, stamp in zip(frames.permute(0, 2, 3, 1).numpy(), stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


def steady(num_frames: int) -> list[int]:
    return [i * 9 for i in range(num_frames)]


def uneven(num_frames: int) -> list[int]:
    return np.cumsum([1 + i * i % 17 for i in range(num_frames)]).tolist()


# name: (codec, options, stamps)
FILES = {
    "short_groups.mp4": ("libx264", {"g": "12"}, steady),
    "long_group.mp4": ("libx264", {"g": "500"}, steady),
    "many_b_frames.mp4": ("libx264", {"g": "30", "bf": "8", "b_strategy": "0"}, steady),
    "open_groups.mp4": ("libx264", {"g": "16", "bf": "4", "x264-params": "open-gop=1:b-adapt=0"}, steady),
    "uneven.mp4": ("libx264", {"g": "12"}, uneven),
    "late_start.mkv": ("libx264", {"g": "12"}, lambda n: [stamp + 900 for stamp in steady(n)]),
    "uneven.mkv": ("libx264", {"g": "12"}, uneven),
    "stream.ts": ("libx264", {"g": "12"}, steady),
    "fragments.mp4": ("libx264", {"g": "12", "movflags": "frag_keyframe+empty_moov"}, steady),
    "old.avi": ("mpeg4", {"g": "12", "qscale": "2"}, steady),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}, None),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}, steady),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=12:pools=none:frame-threads=1"}, steady),
    "pictures.mov": ("mjpeg", {}, steady),
}


@pytest.fixture(scope="module", params=FILES)
def timed(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Tensor]:
    """A file, and when each of its frames is shown, counted from the first."""
    codec, options, stamps_of = FILES[request.param]
    path = folder / request.param
    rate = 90 if stamps_of is not None else 25
    stamps = stamps_of(NUM_FRAMES) if stamps_of is not None else list(range(NUM_FRAMES))
    try:
        encode(path, numbered(NUM_FRAMES), stamps, codec=codec, rate=rate, **options)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write {codec}: {error}")
    with av.open(str(path)) as container:  # a container may round: the file's own stamps are the truth
        stamps_s = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert len(stamps_s) == NUM_FRAMES
    shown = torch.tensor(stamps_s, dtype=torch.float64)
    return path, shown - shown[0]


def expected(shown: Tensor, times: Tensor) -> list[int]:
    """The last frame not after each time, in a whole-file reading; 1e-6 s for the rounding of stamps."""
    return (torch.searchsorted(shown, times + 1e-6, right=True) - 1).clamp(min=0).tolist()


def test_random_times_show_the_right_frames(timed: tuple[Path, Tensor]) -> None:
    path, shown = timed
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 8, 40):
        for _ in range(4):
            times = (torch.rand(count, generator=generator).double() * (shown[-1] + 0.05)).sort().values
            clip = read_frames(path, times, image_size=64)
            assert numbers(clip.frames) == expected(shown, times)


def test_every_frame_is_found_at_its_own_time(timed: tuple[Path, Tensor]) -> None:
    path, shown = timed
    whole = read_frames(path, shown, image_size=64)
    assert numbers(whole.frames) == list(range(NUM_FRAMES))
    assert torch.allclose(whole.times_s - whole.times_s[0], shown, atol=1e-6)
    # the same pictures to the bit, however few are asked for
    for start in (0, 7):
        few = shown[start::23]
        assert read_frames(path, few, image_size=64).frames.equal(whole.frames[start::23])


@pytest.fixture(scope="module")
def torchcodec() -> None:
    try:
        find_decoder("torchcodec")
    except HarvestError as error:
        pytest.skip(str(error))


def test_torchcodec_shows_the_same_frames(timed: tuple[Path, Tensor], torchcodec: None) -> None:
    path, shown = timed
    generator = torch.Generator().manual_seed(1)
    for count in (1, 3, 8):
        times = (torch.rand(count, generator=generator).double() * (shown[-1] + 0.05)).sort().values
        one = read_frames(path, times, image_size=64)
        other = read_frames(path, times, image_size=64, decoder="torchcodec")
        assert one.times_s.equal(other.times_s) and one.shown_as == other.shown_as
        assert numbers(other.frames) == expected(shown, times)
        packed = PackedVideo("packed", (path.read_bytes(),))
        assert read_frames(packed, times, image_size=64, decoder="torchcodec").frames.equal(other.frames)


def test_little_is_decoded(timed: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    path, shown = timed
    monkeypatch.setattr(reading, "read_in_order", None)
    if path.name in ("old.avi", "mpeg2.mpg"):
        return  # with or without, as their libraries like
    read_frames(path, shown[[3, 50, 100]], image_size=64)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    path = folder / "plain.mp4"
    write_video(path, numbered(NUM_FRAMES), fps=FPS)
    return path


@settings(max_examples=30)
@given(
    num_frames=st.integers(1, 16),
    start=st.floats(0, 11),
    length=st.none() | st.floats(0.1, 11),
    seed=st.none() | st.integers(0, 99),
)
def test_one_frame_from_each_segment(
    plain: Path, num_frames: int, start: float, length: float | None, seed: int | None
) -> None:
    end = None if length is None else start + length
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    clip = read_clip(
        plain, num_frames=num_frames, image_size=64, start_s=start, end_s=end, generator=generator
    )
    assert clip.frames.shape == (num_frames, 3, 64, 64)
    last = NUM_FRAMES / FPS if end is None else end
    edges = torch.linspace(start, last, num_frames + 1).double()
    for number, low, high in zip(numbers(clip.frames), edges, edges[1:], strict=False):
        assert min(int(low * FPS + 1e-3), NUM_FRAMES - 1) <= number <= high * FPS + 1e-3
    assert [round(t * FPS) for t in clip.times_s.tolist()] == numbers(clip.frames)


def test_past_the_end_the_last_frame_is_repeated(plain: Path) -> None:
    clip = read_clip(plain, num_frames=4, image_size=64, start_s=10, end_s=18)
    assert numbers(clip.frames) == [110, 119, 119, 119]
    with pytest.raises(VideoError, match=r"starts at 13 s, the video ends at 12.00 s"):
        read_clip(plain, num_frames=4, image_size=64, start_s=13)


def test_times_must_not_decrease(plain: Path) -> None:
    with pytest.raises(HarvestError, match="do not decrease"):
        read_frames(plain, torch.tensor([2.0, 1.0]), image_size=64)


# ---------------------------------------------------------------------------------------------------------------
# Geometry and colour


def corners(frames: Tensor) -> list[str]:
    """Colours of the four corners, row by row."""
    side = frames.shape[-1] // 8
    near = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255)}
    found = []
    for y in (side, -side):
        for x in (side, -side):
            pixel = frames[0, :, y, x].float()
            found.append(min(near, key=lambda name: float((pixel - torch.tensor(near[name])).abs().sum())))
    return found


def quarters(height: int, width: int) -> Tensor:
    """r g / b w"""
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    picture[0, : height // 2, : width // 2] = 255
    picture[1, : height // 2, width // 2 :] = 255
    picture[2, height // 2 :, : width // 2] = 255
    picture[:, height // 2 :, width // 2 :] = 255
    return picture.expand(4, 3, height, width).contiguous()


@pytest.mark.parametrize(
    "angle, seen, size", [(0, "rgbw", (96, 64)), (90, "gwrb", (64, 96)), (180, "wbgr", (96, 64)), (270, "brwg", (64, 96))]
)  # fmt: skip
def test_rotation_is_honoured(folder: Path, angle: int, seen: str, size: tuple[int, int]) -> None:
    path = folder / f"rotated{angle}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        if angle:
            stream.set_display_rotation(angle)
        for picture in quarters(64, 96).permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode(None))
    assert (probe(path).width, probe(path).height) == size
    assert "".join(corners(read_clip(path, num_frames=1, image_size=48, fit="squash").frames)) == seen


@pytest.mark.parametrize(
    "fit, shape", [("crop", (32, 32)), ("squash", (32, 32)), ("pad", (32, 32)), (None, (32, 48))]
)
def test_fits(folder: Path, fit: Fit | None, shape: tuple[int, int]) -> None:
    path = folder / "wide.mp4"
    write_video(path, quarters(64, 96), fps=5)
    clip = read_clip(path, num_frames=2, image_size=32, fit=fit)
    assert clip.frames.shape == (2, 3, *shape)
    if fit == "pad":  # all of the picture, as wide as the square, between black borders
        assert clip.frames[:, :, :5].max() == clip.frames[:, :, -5:].max() == 0
        clip = Clip(clip.pixels[:, :, 6:26], clip.seconds)
    assert "".join(corners(clip.frames)) == "rgbw"


def test_center_is_the_middle(folder: Path) -> None:
    path = folder / "ramp.mp4"
    ramp = torch.linspace(0, 255, 192).byte().expand(2, 3, 64, 192).contiguous()
    write_video(path, ramp, fps=5, crf=1)
    seen = read_clip(path, num_frames=1, image_size=64).frames.float()
    assert (seen - ramp[:1, :, :, 64:128]).abs().max() < 6


def test_what_is_written_is_read(folder: Path) -> None:
    path = folder / "clean.mp4"
    smooth = torch.nn.functional.interpolate(
        torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255,
        size=(64, 64),
        mode="bicubic",
    )
    frames = smooth.clamp(0, 255).byte()
    write_video(path, frames, fps=3)
    clip = read_frames(path, torch.arange(6) / 3, image_size=64)
    difference = (clip.frames.float() - frames.float()).abs()
    assert difference.mean() < 4 and difference.quantile(0.9) < 12
    info = probe(path)
    assert (info.width, info.height, info.num_frames, info.codec) == (64, 64, 6, "h264")
    assert info.fps == 3 and abs(info.duration_s - 2) < 0.01
    again = folder / "again.mp4"
    write_video(again, frames, fps=3)
    assert again.read_bytes() == path.read_bytes()


def test_folders_of_pictures(folder: Path) -> None:
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, picture in enumerate(numbered(12).permute(0, 2, 3, 1).numpy()):
        with av.open(str(pictures / f"f{number}.png"), "w", format="image2", options={"update": "1"}) as file:
            stream = file.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
            file.mux(stream.encode(None))
    clip = read_clip(pictures, num_frames=4, image_size=64)
    assert numbers(clip.frames) == [1, 4, 7, 10]  # by number: f2 before f10
    assert numbers(read_frames(pictures, torch.tensor([0.0, 0.5, 9]), image_size=64).frames) == [0, 6, 11]
    assert probe(pictures).num_frames == 12
    still = read_clip(pictures / "f5.png", num_frames=2, image_size=64)
    assert numbers(still.frames) == [5, 5]
    (folder / "nothing").mkdir()
    with pytest.raises(VideoError, match="no pictures in this folder"):
        read_clip(folder / "nothing", num_frames=1, image_size=8)


# ---------------------------------------------------------------------------------------------------------------
# What cannot be read


def damage(plain: Path, folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    whole = plain.read_bytes()
    if kind == "missing":
        return path
    if kind == "sound only":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path
    path.write_bytes(
        {
            "empty": b"",
            "text": b"this is not a video\n" * 50,
            "cut": whole[: len(whole) * 2 // 3],
            "no header": whole[2000:],
            "zeros": bytes(5000),
        }[kind]
    )
    return path


@pytest.mark.parametrize(
    "kind, says",
    [
        ("missing", "no such file"),
        ("empty", "empty"),
        ("text", "the decoder says: Invalid data"),
        ("no header", "the decoder says: Invalid data|not in a container format"),
        ("zeros", "the decoder says: Invalid data"),
        ("sound only", "no video stream .it holds: audio"),
        ("cut", "cut short: it claims 12.00 s|the decoder says: Invalid data"),
    ],
)
def test_unreadable_files_say_why(plain: Path, folder: Path, kind: str, says: str) -> None:
    path = damage(plain, folder, kind)
    with pytest.raises(VideoError, match=says) as error:
        read_clip(path, num_frames=8, image_size=64)
    assert error.value.path == str(path) and str(path) in str(error.value)
    if kind not in ("cut",):
        with pytest.raises(VideoError):
            probe(path)


def test_a_path_that_the_system_refuses_is_a_broken_video(folder: Path) -> None:
    path = folder / ("a caption in the column of videos " * 12)
    for read in (lambda: read_clip(path, num_frames=2, image_size=8), lambda: probe(path)):
        with pytest.raises(VideoError, match="name too long"):
            read()


def test_a_stretch_begins_at_its_frame_far_into_a_file(tmp_path: Path) -> None:
    """In 32 bits a time past 32 s is off by more than the rounding that is allowed for."""
    levels = torch.tensor([60, 180], dtype=torch.uint8).repeat(520)
    write_video(tmp_path / "a.mp4", levels[:, None, None, None].expand(-1, 3, 16, 16).contiguous(), fps=25)
    for number in range(1001, 1030, 2):
        data, info = transcode(
            tmp_path / "a.mp4", short_side=16, start_s=number / 25, end_s=(number + 5) / 25
        )
        assert info.num_frames == 5
        first = (
            read_clip(PackedVideo("cut", (data,)), num_frames=5, image_size=16).frames.float().mean((1, 2, 3))
        )
        assert (first > 120).tolist() == [True, False, True, False, True]


def test_a_cut_file_still_gives_what_lies_before_the_cut(plain: Path, folder: Path) -> None:
    path = damage(plain, folder, "cut")
    clip = read_clip(path, num_frames=4, image_size=64, end_s=4)
    assert numbers(clip.frames) == [5, 15, 25, 35]


def test_damaged_copies_are_read_or_refused(timed: tuple[Path, Tensor], folder: Path) -> None:
    """Cut, bits flipped, blocks zeroed, blocks swapped: never anything but a clip or a VideoError."""
    path, _ = timed
    whole = path.read_bytes()
    draw = random.Random(path.name)
    for number in range(15):
        data = bytearray(whole)
        place, other = draw.randrange(len(data)), draw.randrange(len(data))
        length = draw.randrange(1, 400)
        if number % 4 == 0:
            del data[place:]
        elif number % 4 == 1:
            for _ in range(draw.choice((1, 10, 100))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif number % 4 == 2:
            data[place : place + length] = bytes(len(data[place : place + length]))
        else:
            data[place : place + length] = data[other : other + length]
        damaged = folder / f"damaged{path.suffix}"
        damaged.write_bytes(data)
        start = time.perf_counter()
        with suppress(VideoError):
            assert read_clip(damaged, num_frames=4, image_size=32).frames.shape == (4, 3, 32, 32)
        assert time.perf_counter() - start < 10


def test_a_playlist_opens_nothing_else(plain: Path, folder: Path) -> None:
    path = folder / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile http://localhost:9/{plain.name}\n")
    with pytest.raises(VideoError):
        read_clip(path, num_frames=1, image_size=8)


def test_errors_cross_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "because")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "because", "video a.mp4: because")


def test_writing_refuses_what_it_cannot_encode(tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match="even sides, got 33 x 32"):
        write_video(tmp_path / "a.mp4", torch.zeros(2, 3, 32, 33, dtype=torch.uint8), fps=5)
    with pytest.raises(HarvestError, match=r"expected uint8 \[T, 3, H, W\]"):
        write_video(tmp_path / "a.mp4", torch.zeros(2, 3, 32, 32), fps=5)
    with pytest.raises(HarvestError, match="cannot write"):
        write_video(tmp_path / "nowhere/a.mp4", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), fps=5)
    assert not list(tmp_path.iterdir())
