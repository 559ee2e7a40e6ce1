"""Pictures: files of one, folders of many, those of a packed sample; and JPEGs."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import av
import torch
from torch import Tensor

from harvest.data.video.decoding import first_frame
from harvest.data.video.frames import Fitting, shown_size
from harvest.data.video.opening import MAX_PIXELS, ROUNDING_S, opened, timeline_of
from harvest.data.video.source import PackedVideo, Source, Unreadable, VideoError, named
from harvest.interfaces import Clip

FOLDER_FPS = 12.0  # of a folder of pictures; Something-Something's own rate
_JPEG = b"\xff\xd8\xff"  # how its bytes begin
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_folder(path: Path, pick: Callable[[float], Tensor], fitting: Fitting, *, fps: float) -> Clip:
    pictures = pictures_in(path)
    places = (pick(len(pictures) / fps) * fps + 1e-6).floor().long().clamp(0, len(pictures) - 1).tolist()
    read: dict[int, Tensor] = {}
    for place in dict.fromkeys(places):
        read[place], (width, height) = _read_picture(pictures[place], fitting)
    times_s = torch.tensor([place / fps for place in places], dtype=torch.float64)
    return Clip(stacked(path, [read[place] for place in places]), times_s, (height, width))


def read_packed_pictures(packed: PackedVideo, pick: Callable[[float], Tensor], fitting: Fitting) -> Clip:
    """Pictures taken at given times: at each time wanted the last one taken by then."""
    times = packed.times_s or ()
    if len(times) != len(packed.files) or list(times) != sorted(times) or not times:
        raise VideoError(
            packed, f"{len(packed.files)} pictures with {len(times)} times that must not decrease"
        )
    taken = torch.tensor(times, dtype=torch.float64)
    wanted = pick(max(packed.duration_s, times[-1]))
    places = (torch.searchsorted(taken, wanted + ROUNDING_S, right=True) - 1).clamp(min=0).tolist()
    read: dict[int, Tensor] = {}
    for place in dict.fromkeys(places):
        one = PackedVideo(f"{packed.name} picture {place}", (packed.files[place],))
        read[place], (width, height) = _read_picture(one, fitting)
    return Clip(stacked(packed, [read[place] for place in places]), taken[places], (height, width))


def _read_picture(path: Source, fitting: Fitting) -> tuple[Tensor, tuple[int, int]]:
    """A file that is one picture, uint8 [3, H, W], and its width and height as shown."""
    with named(path):
        data = path.files[0] if isinstance(path, PackedVideo) else path.read_bytes()
        if data.startswith(
            _JPEG
        ):  # opening a container would look for its streams by decoding it a first time
            decoder = av.CodecContext.create("mjpeg", "r")
            decoder.options = {"max_pixels": str(MAX_PIXELS)}
            decoder.thread_count = 1
            for frame in [*decoder.decode(av.Packet(data)), *decoder.decode(None)]:
                return fitting.picture_of(frame, decoder), shown_size(frame, decoder)
            raise Unreadable("the picture is empty")
    with opened(path) as (container, stream):
        clock = timeline_of(path, container, stream).clock
    with opened(path) as (container, stream):
        frame = first_frame(path, container, stream, clock)
        return fitting.picture_of(frame, stream), shown_size(frame, stream)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in order of the numbers in their names (2 before 10)."""
    with named(folder):
        found = os.listdir(folder)
    names = [name for name in found if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
    if not names:
        raise VideoError(folder, f"no pictures in this folder (expected {', '.join(IMAGE_SUFFIXES)})")
    return [folder / name for name in sorted(names, key=_by_numbers)]


def _by_numbers(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], name


def stacked(path: Source, pictures: list[Tensor]) -> Tensor:
    if len({picture.shape for picture in pictures}) > 1:
        raise VideoError(path, "the size of the pictures changes within the stretch")
    return torch.stack(pictures)


def write_pictures(frames: Tensor, *, quality: int = 3) -> list[bytes]:
    """Each frame of uint8 `[T, 3, H, W]` as the bytes of a JPEG; `quality` is FFmpeg's, 2 (best) to 31."""
    files = []
    for picture in frames.permute(0, 2, 3, 1).contiguous().numpy():
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="image2pipe") as container:
            options = {"flags": "+qscale", "global_quality": str(quality * 118)}  # of FFmpeg's lambda
            stream = container.add_stream("mjpeg", rate=1, options=options)
            stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuvj420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        files.append(buffer.getvalue())
    return files
