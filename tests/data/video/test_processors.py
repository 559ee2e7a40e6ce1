"""Pictures from disk become squares as the towers' own preprocessing has them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from harvest.data.transforms import fit_square
from harvest.data.video import read_clip
from harvest.interfaces import Fit, Interpolation

SHAPES = [
    (64, 64),
    (224, 224),
    (640, 480),
    (480, 640),
    (1920, 1080),
    (300, 299),
    (299, 300),
    (301, 224),
    (225, 224),
]
SHAPES += [
    (227, 500),
    (50, 40),
    (33, 100),
    (1000, 90),
    (90, 1000),
    (223, 447),
    (512, 341),
    (17, 19),
    (800, 533),
]
SHAPES += [(1279, 719), (250, 1001)]


def scene(width: int, height: int, seed: int) -> Image.Image:
    """Coarse colours with noise and edges."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    picture[height // 3 : height // 2, width // 4 : width // 2] = draw.integers(0, 256, 3)
    return Image.fromarray((picture + draw.integers(-30, 31, picture.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    kinds = random.Random(0)
    paths = []
    for number, shape in enumerate(SHAPES):
        paths.append(folder / f"{number}.{kinds.choice(['png', 'jpg', 'webp', 'bmp'])}")
        scene(*shape, number).save(paths[-1])
    return paths


def processor(name: str) -> Any:
    """By Pillow where a transformers has both; of its other way the last level may differ."""
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return made(size={"shortest_edge": 224} if name.startswith("CLIP") else {"height": 224, "width": 224})


@pytest.mark.parametrize(
    ("name", "fit"), [("CLIPImageProcessor", "crop"), ("SiglipImageProcessor", "squash")]
)
def test_as_transformers(pictures: list[Path], name: str, fit: Fit) -> None:
    peer = processor(name)
    interpolation: Interpolation = "bilinear" if int(peer.resample) == 2 else "bicubic"
    mean, std = (torch.tensor(values)[:, None, None] for values in (peer.image_mean, peer.image_std))
    for path in pictures:
        expected = peer(Image.open(path), return_tensors="pt")["pixel_values"][0]
        found = read_clip(path, num_frames=1, image_size=224, fit=fit, interpolation=interpolation).frames[0]
        off = (found - (expected * std + mean) * 255).abs()
        assert found.shape == expected.shape and off.max() <= 1.01 and off.mean() < 0.05, path


ODD = [(w, h) for h in (97, 300) for w in range(h + 1, 2 * h) if (224 * w // h - 224) % 4 == 3][:60:10]
"""Width and height of pictures of whose longer side an odd number is cut off, half of which rounds up to the even."""


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("is_upright", [False, True])
def test_an_odd_rest_is_cut_as_torchvision_cuts_it_and_transformers_one_pixel_before(
    tmp_path: Path, size: tuple[int, int], is_upright: bool
) -> None:
    """Torchvision's `center_crop`, and so OpenAI's and OpenCLIP's, begins at round(rest / 2), transformers' at rest // 2."""
    picture = scene(*(size[::-1] if is_upright else size), 0)
    picture.save(tmp_path / "a.png")
    longer = 224 * size[0] // size[1]
    whole = picture.resize((224, longer) if is_upright else (longer, 224), Image.Resampling.BICUBIC)
    found = read_clip(tmp_path / "a.png", num_frames=1, image_size=224).frames[0]

    def cut(at: int) -> Tensor:
        box = (0, at, 224, at + 224) if is_upright else (at, 0, at + 224, 224)
        return torch.from_numpy(np.array(whole.crop(box))).permute(2, 0, 1)

    first = round((longer - 224) / 2)
    assert first == (longer - 224) // 2 + 1
    assert (found.int() - cut(first).int()).abs().max() <= 1
    assert (found.int() - cut(first - 1).int()).abs().max() > 1
    peer = processor("CLIPImageProcessor")
    pixels = peer(picture, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (peer.image_mean, peer.image_std))
    assert ((pixels * std + mean) * 255 - cut(first - 1)).abs().max() <= 1.01


def as_video(picture: Tensor, fit: Fit) -> Tensor:
    return fit_square(picture[None], 224, fit=fit)[0]


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_one_geometry_for_every_reader(pictures: list[Path], fit: Fit) -> None:
    """Pillow's scaling of a file and PyTorch's of a tensor: the same places, a few levels apart."""
    for path in pictures:
        whole = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        found = read_clip(path, num_frames=1, image_size=224, fit=fit).frames[0]
        off = (found.int() - as_video(whole, fit).int()).abs().float()
        assert off.max() <= 6 and off.mean() < 0.3, path
