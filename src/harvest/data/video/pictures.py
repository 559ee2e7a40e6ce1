"""Pictures: files of one, folders of many, those of a packed sample; and JPEGs.

They are decoded by Pillow and not by FFmpeg, whose PNG decoder inflates any metadata and whose side data PyAV frees
twice where a PNG has a colour profile. What is declared is checked before it is decoded.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from harvest.data.geometry import cut_square, scaled_size
from harvest.data.video.frames import Fitting, check_shape
from harvest.data.video.opening import ROUNDING_S, open_file
from harvest.data.video.source import PackedVideo, Source, Unreadable, VideoError, VideoInfo, named
from harvest.plain_types import Clip, Pixels

FOLDER_FPS = 12.0  # of a folder of pictures; Something-Something's own rate
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_PICTURE_PIXELS = 2**25  # 134 MB where it is decoded
MAX_JPEG_PIXELS = 2**28  # which are decoded at a half, a quarter or an eighth of their sides
MAX_METADATA_BYTES = 2**26  # of a file that is no pixels, e.g. maker notes and profiles
Pick = Callable[[float], npt.NDArray[np.float64]]
"""The times to look at in a video of so many seconds."""
STILL_S = 0.04  # for which a picture is shown
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"BM")
# What Pillow raises on bad files; everything else is a mistake of ours and must be seen.
_PILLOW_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(ArithmeticError, MemoryError, NotImplementedError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
# It also warns, of EXIF that it passes over and of sizes that are refused here.
warnings.filterwarnings("ignore", module=r"PIL\.")
_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = {_TURNS[number] for number in (5, 6, 7, 8)}
_RAW_TAGS = {330, 50706}  # SubIFDs, DNGVersion: what is read first is a thumbnail
_SCALINGS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def is_picture(path: Source) -> bool:
    """By its first bytes. Moving GIFs are videos."""
    with _content(path) as (file, _):
        head = file.read(16)
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def read_folder(path: Path, pick: Pick, fitting: Fitting, *, fps: float) -> Clip:
    """A folder of pictures as a video of `fps`."""
    pictures = pictures_in(path)
    places = np.floor(pick(len(pictures) / fps) * fps + 1e-6).astype(int).clip(0, len(pictures) - 1).tolist()
    read = {place: read_picture(pictures[place], fitting) for place in dict.fromkeys(places)}
    times_s = np.array([place / fps for place in places])
    return Clip(stacked(path, [read[place][0] for place in places]), times_s, read[places[-1]][1])


def read_packed_pictures(packed: PackedVideo, pick: Pick, fitting: Fitting) -> Clip:
    """Pictures taken at given times: at each time wanted the last one taken by then."""
    times = packed.times_s or ()
    if len(times) != len(packed.files) or list(times) != sorted(times) or not times:
        raise VideoError(
            packed, f"{len(packed.files)} pictures with {len(times)} times that must not decrease"
        )
    taken = np.array(times, np.float64)
    wanted = pick(max(packed.duration_s, times[-1]))
    places = (np.searchsorted(taken, wanted + ROUNDING_S, side="right") - 1).clip(min=0).tolist()
    ones = {place: PackedVideo(f"{packed.name} picture {place}", (packed.files[place],)) for place in places}
    read = {place: read_picture(one, fitting) for place, one in ones.items()}
    return Clip(stacked(packed, [read[place][0] for place in places]), taken[places], read[places[-1]][1])


def read_picture(path: Source, fitting: Fitting) -> tuple[Pixels, tuple[int, int]]:
    """A file that is one picture as RGB uint8 `[3, H, W]`, and its height and width as shown.

    Upright by its EXIF orientation; transparent parts are white, as img2dataset has them; of 16 bits the upper eight.
    JPEGs larger than `MAX_PICTURE_PIXELS` are decoded at a part of their size.
    """
    image, info = _decoded(path)
    with named(path):
        return fit_picture(image, fitting), (info.height, info.width)


def fit_picture(image: Image.Image, fitting: Fitting) -> Pixels:
    """A decoded picture as RGB uint8 `[3, H, W]`, scaled by Pillow. Raises Unreadable for one too narrow to crop."""
    check_shape(image.width, image.height)
    image = _rgb(image)
    height, width = scaled_size(image.height, image.width, fitting.image_size, fitting.fit)
    if (width, height) != image.size:
        image = image.resize((width, height), _SCALINGS[fitting.interpolation])
    return cut_square(np.asarray(image).transpose(2, 0, 1), fitting.image_size, fitting.fit)


def probe_picture(path: Source) -> VideoInfo:
    """What a picture says of itself; it is decoded."""
    return _decoded(path)[1]


def _decoded(path: Source) -> tuple[Image.Image, VideoInfo]:
    """An upright RGB picture. Whatever Pillow raises is a VideoError."""
    with _content(path) as (file, size):
        if size == 0:
            raise Unreadable("the file is empty (0 bytes)")
        try:
            with Image.open(file, formats=_FORMATS) as image:
                _check(image, size)
                full = image.size
                reduced = _reduce(image)
                image.load()
                width, height = full if reduced else image.size  # TIFFs are turned as they are loaded
                turn = _turn_of(image)
                shown = _rgb(image)
                name = (image.format or "").lower()
        except _PILLOW_ERRORS as error:
            raise Unreadable(f"the picture cannot be decoded: {error}") from error
    if turn is not None:
        shown = shown.transpose(turn)
        width, height = (height, width) if turn in _QUARTER_TURNS else (width, height)
    return shown, VideoInfo(STILL_S, 1, None, width, height, name, is_picture=True)


@contextmanager
def _content(path: Source) -> Iterator[tuple[BinaryIO, int]]:
    """The bytes of a file, and how many there are."""
    with named(path):
        if isinstance(path, PackedVideo):
            yield io.BytesIO(path.files[0]), len(path.files[0])
        else:
            descriptor, size = open_file(path)
            with open(descriptor, "rb") as file:
                yield file, size


def _check(image: Image.Image, file_size: int) -> None:
    size, pixels = f"{image.width} x {image.height}", image.width * image.height
    is_jpeg = image.format in ("JPEG", "MPO")
    most = MAX_JPEG_PIXELS if is_jpeg and not image.info.get("progressive") else MAX_PICTURE_PIXELS
    if pixels > most:
        raise Unreadable(f"a picture of {size} is too large: at most {most:,} pixels are read")
    if file_size > 8 * pixels + MAX_METADATA_BYTES:
        raise Unreadable(f"{file_size:,} bytes are too many for a picture of {size}")
    number = 1 if is_jpeg else getattr(image, "n_frames", 1)  # a photo may carry its own depth or preview
    if number > 1:
        raise Unreadable(f"a {image.format} of {number} pictures: make it a video, or a file of each picture")
    if isinstance(image, TiffImageFile) and image.tag_v2.keys() & _RAW_TAGS:
        raise Unreadable("a camera's raw file: save it as JPEG or TIFF")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise Unreadable("pixels of 32 bits, of which nothing says what is white: save it with 8 or 16")


def _reduce(image: Image.Image) -> bool:
    """Have a large JPEG decoded at a half, a quarter or an eighth of its sides."""
    pixels = image.width * image.height
    if pixels <= MAX_PICTURE_PIXELS:
        return False
    part = next(part for part in (2, 4, 8) if pixels // part**2 <= MAX_PICTURE_PIXELS)
    image.draft(None, (image.width // part, image.height // part))
    return True


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """What sets a picture upright, by its EXIF; damaged EXIF is as none."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except _PILLOW_ERRORS:
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image) >> 8
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        shown = Image.new("RGB", image.size, "white")
        shown.paste(image, mask=image.getchannel("A"))
        return shown
    return image.convert("RGB")


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
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def stacked(path: Source, pictures: list[Pixels]) -> Pixels:
    """Pictures `[3, H, W]` as one clip."""
    if len({picture.shape for picture in pictures}) > 1:
        raise VideoError(path, "the size of the pictures changes within the stretch")
    return np.stack(pictures)


def write_pictures(frames: npt.ArrayLike, *, quality: int = 90) -> list[bytes]:
    """Each frame of uint8 `[T, 3, H, W]` as the bytes of a JPEG, of a colour for four pixels; `quality` is libjpeg's, 1 to 95."""
    files = []
    for picture in np.asarray(frames):
        buffer = io.BytesIO()
        pixels = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
        pixels.save(buffer, "JPEG", quality=quality, subsampling=2)
        files.append(buffer.getvalue())
    return files
