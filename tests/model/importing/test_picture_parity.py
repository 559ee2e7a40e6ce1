"""A still clip is an image, from a file on disk: every reader against the peer's own preprocessing and tower."""

from __future__ import annotations

import importlib.util
import itertools
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import harvest
from harvest.data.dataset import ClipDataset, DataConfig
from harvest.evaluation import embed_videos
from harvest.interfaces import Example
from harvest.model.inflation import as_video_model

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from test_transformers_families import FAMILIES as OTHERS
from test_transformers_families import image, write_letters
from toys import clip_folder, randomize, siglip_folder

SHAPES = itertools.product((40, 64, 97, 150, 240, 333), (40, 61, 100, 180, 430, 511))
SIZES = [(h, w) for h, w in SHAPES if int(32 * max(h, w) / min(h, w)) % 2 == 0][:20]
"""Where what is cut off is even: of an odd rest transformers cuts half rounded down, torchvision, and so OpenAI's,
OpenCLIP's and our own reading, half rounded to the even number."""


SIGLIP_2 = {
    "image_processor_type": "SiglipImageProcessor",
    "resample": 2,
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "clip": (clip_folder, CLIP),
    "siglip": (siglip_folder, SIGLIP_2 | {"resample": 3}),
    "siglip2": (siglip_folder, SIGLIP_2),
}


def pictures(folder: Path) -> list[Path]:
    """Smooth and grainy ones, of all shapes."""
    generator = torch.Generator().manual_seed(0)
    paths = []
    for number, (height, width) in enumerate(SIZES):
        few = torch.rand(1, 3, 3 + number % 7, 4 + number % 5, generator=generator)
        frame = torch.nn.functional.interpolate(few, size=(height, width), mode="bilinear")[0] * 255
        noise = 2 * (torch.rand(3, height, width, generator=generator) - 0.5) * (number % 3)
        path = folder / f"{number}.png"
        path.write_bytes(png((frame + noise).clamp(0, 255).byte()))
        paths.append(path)
    return paths


def png(picture: Tensor) -> bytes:
    """A picture uint8 `[3, H, W]` as PNG: JPEG's decoders differ in how they enlarge colours."""
    _, height, width = picture.shape
    rows = b"".join(b"\0" + row.numpy().tobytes() for row in picture.permute(1, 2, 0).contiguous())

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def by_peer(folder: Path, family: str, paths: list[Path]) -> Tensor:
    """The peer's embeddings, by its slow processor, with which its weights were trained."""
    from PIL import Image
    from transformers import CLIPModel, SiglipModel

    module = importlib.import_module(
        f"transformers.models.{'clip' if family == 'clip' else 'siglip'}.image_processing_pil_"
        f"{'clip' if family == 'clip' else 'siglip'}"
    )
    kind = getattr(module, "CLIPImageProcessorPil" if family == "clip" else "SiglipImageProcessorPil")
    processor = kind.from_pretrained(folder)
    model = (CLIPModel if family == "clip" else SiglipModel).from_pretrained(folder).eval()
    pixels = [
        processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"] for path in paths
    ]
    with torch.no_grad():
        found = model.get_image_features(pixel_values=torch.cat(pixels))
    return torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1)


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="transformers' processors need Pillow")
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_from_disk_against_the_peer(tmp_path: Path, family: str) -> None:
    make, processor = FAMILIES[family]
    make(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    paths = pictures(tmp_path)
    wanted = by_peer(tmp_path, family, paths)
    model = harvest.load(tmp_path)
    cosines = (model.embed_images(paths) * wanted).sum(dim=1)
    assert cosines.min() >= 0.9999, cosines
    other = harvest.load(tmp_path, fit="squash" if family == "clip" else "crop")
    off = (other.embed_images(paths) * wanted).sum(dim=1)
    assert off.min() < 0.9999  # the test can fail


BIT = CLIP | {
    "image_processor_type": "BitImageProcessor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "chinese_clip": ("chinese_clip", CLIP | {"image_processor_type": "ChineseCLIPImageProcessor"}),
    "siglip and bert": ("siglip", SIGLIP_2),
    "dinov2 and xlm-roberta": ("bit", BIT),
}
"""By family, the module of its processor and what that says; others have CLIP's."""


@pytest.mark.parametrize("family", OTHERS)
def test_pictures_from_disk_against_other_families(tmp_path: Path, family: str) -> None:
    from PIL import Image

    name, said = PROCESSORS.get(family, ("clip", CLIP))
    theirs = OTHERS[family]().eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    write_letters(tmp_path, ("<s>", "<pad>", "</s>"))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    processor = getattr(module, said["image_processor_type"] + "Pil").from_pretrained(tmp_path)
    paths = pictures(tmp_path)
    pixels = [processor(Image.open(path), return_tensors="pt")["pixel_values"] for path in paths]
    with torch.no_grad():
        wanted = image(theirs, torch.cat(pixels))
    torch.testing.assert_close(harvest.load(tmp_path).embed_images(paths), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_reader_shows_the_same_squares(tmp_path: Path, family: str) -> None:
    make, processor = FAMILIES[family]
    make(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    paths = pictures(tmp_path)[:8]
    image = harvest.load(tmp_path)
    wanted = image.embed_images(paths)
    video, _ = as_video_model(image.model, num_frames=4)
    examples = [Example(id=str(path), video=str(path), texts=("red",)) for path in paths]
    evaluated = embed_videos(video.eval(), examples)
    torch.testing.assert_close(evaluated.pooled, wanted, atol=1e-5, rtol=0)  # four equal frames
    dataset = ClipDataset(
        examples,
        DataConfig(num_frames=1, times="middle"),
        encode_text=None,
        seed=0,
        **video.config.video.squares,
    )
    rows = range(len(paths))
    trained = torch.stack([dataset._read(dataset._draw(0, n, False), dataset._source(n))[0] for n in rows])
    with torch.no_grad():
        torch.testing.assert_close(image.model.encode_video(trained).pooled, wanted, atol=1e-5, rtol=0)
