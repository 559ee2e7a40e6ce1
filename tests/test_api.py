"""harvest.load, as a user of the library meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import harvest
from harvest.data.video import write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / "dark.mp4", folder / "light.mp4"]
    for path, level in zip(paths, (20, 220), strict=True):
        write_video(path, torch.full((16, 3, 64, 64), level, dtype=torch.uint8), fps=8)
    return paths


def test_embed_videos_and_texts(image_model: Path, videos: list[Path]) -> None:
    model = harvest.load(image_model)
    assert model.mode == "image"  # an image model sees a video as the mean of its frames
    found, texts = model.embed_videos(videos), model.embed_texts(["a red circle", "a blue square"])
    assert found.shape == texts.shape == (2, model.model.config.video.embed_dim)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model.embed_videos(videos[::-1]), found.flip(0))
    assert not torch.allclose(found[0], found[1])


def test_mistakes(image_model: Path, videos: list[Path], tmp_path: Path) -> None:
    model = harvest.load(image_model)
    with pytest.raises(harvest.HarvestError, match="1 of 2 videos cannot be read"):
        model.embed_videos([videos[0], tmp_path / "none.mp4"])
    with pytest.raises(harvest.HarvestError, match="fill"):
        model.fill_mask(videos[0], "a [mask] circle")  # an image model has no decoder
    with pytest.raises(harvest.HarvestError):
        harvest.load(tmp_path)
    with pytest.raises(harvest.HarvestError, match=r"a list of paths: \['a.mp4'\]"):
        model.embed_videos("a.mp4")
    with pytest.raises(harvest.HarvestError, match=r"a list of sentences: \['a red ball'\]"):
        model.embed_texts("a red ball")
    with pytest.raises(AttributeError, match="nothing"):
        harvest.nothing  # noqa: B018
