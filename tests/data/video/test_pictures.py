"""Pictures as people have them: every mode, orientation and profile read right, what is too much refused by name."""

from __future__ import annotations

import gc
import io
import os
import random
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from torch import Tensor

from harvest.data.guard import Guard
from harvest.data.video import (
    PackedVideo,
    VideoError,
    pictures,
    probe,
    read_clip,
    read_frames,
    stream_frames,
    write_pictures,
)

CASES = Path(__file__).parents[4] / "shared/cases/2026-12-01/pictures"
# 60 generated pictures in the suite; HARVEST_PICTURES=1000 for the figures in docs/results.md.
PICTURES = int(os.environ.get("HARVEST_PICTURES", "60"))
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")


def scene(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture of random colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> PackedVideo:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return PackedVideo(f"a {image.mode} {kind}", (buffer.getvalue(),))


def shown(source: PackedVideo | Path, image_size: int = 48) -> Tensor:
    """A picture whose shorter side is `image_size`, not scaled."""
    return read_clip(source, num_frames=1, image_size=image_size, fit=None).frames[0]


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(extra: bytes, image: Image.Image | None = None) -> PackedVideo:
    """A PNG with chunks behind its header."""
    (data,) = saved(image or scene(64, 48), "PNG").files
    return PackedVideo("a PNG", (data[:33] + extra + data[33:],))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "I;16"])
def test_modes_of_png(mode: str) -> None:
    image = scene(64, 48)
    if mode == "I;16":
        levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
        found, expected = shown(saved(Image.fromarray(levels), "PNG")), image.convert("L")
    else:
        image = image.convert(mode)
        found, expected = shown(saved(image, "PNG")), image
    assert found.equal(pixels(expected))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "1", "P", "I;16"])
def test_modes_of_tiff(mode: str) -> None:
    image = scene(64, 48, "L" if mode == "I;16" else mode)
    if mode == "I;16":
        deep = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        assert shown(saved(deep, "TIFF")).equal(pixels(image))
    else:
        assert shown(saved(image, "TIFF")).equal(pixels(image))


def test_cmyk_jpegs_are_as_pillow_has_them() -> None:
    source = saved(scene(64, 48, "CMYK"), "JPEG", quality=95)
    assert shown(source).equal(pixels(Image.open(io.BytesIO(source.files[0]))))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_is_white(kind: str) -> None:
    image = scene(64, 48, "RGBA")
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = shown(saved(image, kind, **options))
    share = torch.from_numpy(np.array(alpha)).float() / 255
    expected = pixels(image) * share + 255 * (1 - share)
    assert (found - expected).abs().max() <= 1.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = saved(scene(64, 48), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(source.files[0])))
    assert shown(source).equal(pixels(upright))
    info = probe(source)
    assert (info.width, info.height) == upright.size == ((48, 64) if orientation >= 5 else (64, 48))


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")
def test_the_orientations_of_the_cases() -> None:
    for path in CASES.iterdir():
        assert shown(path, 64).equal(pixels(ImageOps.exif_transpose(Image.open(path)))), path


def test_damaged_exif_is_as_none() -> None:
    image = scene(64, 48)
    source = png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + bytes(9)), image)
    assert shown(source).equal(pixels(image))


def test_a_profile_is_read_any_number_of_times() -> None:
    """PyAV frees the name of a PNG's profile twice."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = saved(scene(64, 48), "PNG", icc_profile=profile)
    gc.freeze()  # what is there is not looked at again and again
    for _ in range(20):
        assert shown(source).equal(pixels(scene(64, 48)))
        gc.collect()
    gc.unfreeze()


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene(64, 48), "PNG").files[0])
    clip = read_frames(path, torch.tensor([0.0, 3.0]), image_size=32)
    assert clip.frames.shape == (2, 3, 32, 32) and clip.frames[0].equal(clip.frames[1])
    assert clip.shown_as == (48, 64)
    ((time_s, picture),) = stream_frames(path, every_s=0.1, image_size=32)
    assert time_s == 0 and np.array_equal(picture, clip.pixels[0])
    info = probe(path)
    assert info.is_picture and (info.num_frames, info.width, info.height, info.codec) == (1, 64, 48, "png")


# ---------------------------------------------------------------------------------------------------------------
# Bounds


def declared(width: int, height: int) -> PackedVideo:
    """A PNG that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return PackedVideo("large", (b"\x89PNG\r\n\x1a\n" + header + body,))


@pytest.mark.parametrize("size", [(9_000, 9_000), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_declared_size_is_checked_first(size: tuple[int, int]) -> None:
    with pytest.raises(VideoError, match=r"too large|cannot be decoded"):
        shown(declared(*size))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_metadata_is_not_inflated(kind: bytes) -> None:
    made = zlib.compressobj(9)
    bomb = b"".join(made.compress(bytes(2**20)) for _ in range(64)) + made.flush()
    before = resident("VmRSS")
    with suppress(VideoError):
        shown(png_with(chunk(kind, b"x\0\0" + bomb)))
    assert resident("VmRSS") - before < 30_000_000


def test_large_jpegs_are_read_at_a_part_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene(640, 480)
    source = saved(image, "JPEG", quality=95)
    whole = read_clip(source, num_frames=1, image_size=64)
    monkeypatch.setattr(pictures, "MAX_PICTURE_PIXELS", 200 * 200)
    small = read_clip(source, num_frames=1, image_size=64)
    assert small.shown_as == whole.shown_as == (480, 640)
    assert (small.frames.int() - whole.frames.int()).abs().float().mean() < 2
    with pytest.raises(VideoError, match="640 x 480 is too large"):
        shown(saved(image, "PNG"))
    with pytest.raises(VideoError, match="640 x 480 is too large"):
        shown(saved(image, "JPEG", progressive=True))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_files_of_several_pictures_are_named(kind: str) -> None:
    several = [scene(64, 48, seed=seed) for seed in range(3)]
    with pytest.raises(VideoError, match=f"a {kind} of 3 pictures"):
        shown(saved(several[0], kind, save_all=True, append_images=several[1:]))


def test_pixels_of_unknown_range_are_named() -> None:
    with pytest.raises(VideoError, match="32 bits"):
        shown(saved(scene(64, 48, "F"), "TIFF"))


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(VideoError, match=r"empty|cannot be decoded"):
        shown(PackedVideo("nothing", (data,)))


def test_jpegs_show_what_was_written() -> None:
    frames = torch.stack([pixels(scene(47, 33, seed=seed)) for seed in range(2)])
    files = write_pictures(frames, quality=95)
    for source, file in zip(frames, files, strict=True):
        assert (shown(PackedVideo("a", (file,)), 33).int() - source.int()).abs().float().mean() < 6
    assert max(len(file) for file in write_pictures(frames, quality=50)) < min(len(file) for file in files)


# ---------------------------------------------------------------------------------------------------------------
# Damage


def resident(what: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))


def generated(draw: random.Random) -> bytes:
    """A picture of any format and mode, with all the metadata that its format takes."""
    kind = draw.choice(FORMATS)
    modes = {
        "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
        "JPEG": ("RGB", "L", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
        "TIFF": ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "LAB", "F"),
        "BMP": ("RGB", "L", "P", "1"),
        "GIF": ("RGB", "P", "L"),
    }
    mode = draw.choice(modes[kind])
    size = draw.choice([(1, 1), (3, 200), (64, 48), (200, 150)] * 5 + [(1920, 1080)])
    image = scene(*size, "L" if mode == "I;16" else mode if mode != "LAB" else "RGB", draw.randrange(99))
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    options: dict[str, object] = {}
    if kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        exif = Image.Exif()
        exif[0x0112] = draw.randrange(1, 9)
        exif[0x010E] = "x" * draw.randrange(300)
        options |= {"icc_profile": draw.choice([profile, b"", bytes(300)]), "exif": exif}
        options |= {"dpi": (draw.randrange(1, 600), 72)} if kind != "WEBP" else {}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", "y" * draw.randrange(2000), zip=draw.random() < 0.5)
        text.add_itxt("XML:com.adobe.xmp", "<x/>" * draw.randrange(50), zip=draw.random() < 0.5)
        for name, data in (
            (b"gAMA", b"\0\0\xb1\x8f"),
            (b"sRGB", b"\0"),
            (b"cHRM", bytes(32)),
            (b"tIME", bytes(7)),
        ):
            if draw.random() < 0.5:
                text.add(name, data)
        options["pnginfo"] = text
    if kind == "JPEG":
        options |= {"progressive": draw.random() < 0.3, "subsampling": draw.randrange(3), "comment": b"c"}
    if kind == "TIFF" and mode not in ("1", "P", "LA"):
        options["compression"] = draw.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
    if kind in ("PNG", "WEBP", "GIF", "TIFF") and draw.random() < 0.1:
        options |= {"save_all": True, "append_images": [image]}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutated(data: bytes, draw: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(draw.choice([0, 1, 1, 3, 30])):
        place, other = draw.randrange(len(made)), draw.randrange(len(made))
        kind = draw.randrange(5)
        if kind == 0:
            del made[max(1, place) :]
        elif kind == 1:
            made[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            made[place : place + 4] = struct.pack(">I", draw.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1]))
        elif kind == 3:
            made[place : place + 40] = made[other : other + 40]
        else:
            made[draw.randrange(min(60, len(made)))] = draw.randrange(256)
    return bytes(made)


def read_ten_times(data: bytes) -> tuple[str, int]:
    """What became of a picture, and the most memory this process had so far."""
    said = "read"
    gc.freeze()  # what is there is not looked at again and again
    for _ in range(10):
        try:
            clip = read_clip(PackedVideo("generated", (data,)), num_frames=1, image_size=32)
            assert clip.frames.shape == (1, 3, 32, 32)
        except VideoError as error:
            said = error.reason
        gc.collect()
    return said, resident("VmHWM")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_generated_and_mutated_pictures_end_no_process() -> None:
    draw = random.Random(0)
    guard = Guard(read_ten_times, limit_s=60, max_calls=10**9)
    _, start = guard(saved(scene(9, 9), "PNG").files[0])
    peak, refused = start, 0
    for _ in range(PICTURES):
        said, peak = guard(mutated(generated(draw), draw))
        refused += said != "read"
    guard.close()
    print(f"{PICTURES} pictures, {refused} refused, peak {(peak - start) / 1e6:.0f} MB above the start")
    assert peak - start < 300_000_000
    assert 0.1 < refused / PICTURES < 0.9, "the damage is too small or too large to tell anything"
