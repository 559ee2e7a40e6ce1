from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from harvest.data.video import VideoError, read_clip, write_video
from harvest.evaluation.embed import encode_clips
from harvest.interfaces import HarvestError, Squares
from harvest.model.folder import load_model
from harvest.search.asking.curve import blocks, clock, svg
from harvest.search.asking.moments import Dense, DenseVideo, stretches
from harvest.search.encoders.torch_encoder import TorchEncoder
from harvest.search.library.embedding import WindowEncoder
from harvest.search.library.segmentation import Segmentation, Window, windows
from harvest.search.results import Curve, Interval

from ..conftest import write_long

SQUARES: Squares = {"image_size": 64, "fit": "crop", "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    write_long(path, range(6))  # 12 s
    return path


@pytest.mark.parametrize("fast", [False, True])
def test_an_image_models_windows_are_their_own_vectors(long: Path, image_model: Path, fast: bool) -> None:
    """Each hop is encoded once, and nothing is lost by it."""
    model, tokenizer = load_model(image_model)
    read = DenseVideo.read(model, tokenizer, long, Dense(window_s=4.0, hop_s=1.0, fast=fast))
    assert read.vectors.shape[0] == 12
    for hop in (4, 7):  # windows of four hops: two before the hop, itself, one after
        clip = read_clip(long, num_frames=8, image_size=64, start_s=hop - 2, end_s=hop + 2)
        own = encode_clips(model, clip.frames[None], mode="image").pooled[0]
        torch.testing.assert_close(read.vectors[hop], own, atol=1e-5, rtol=1e-5)


def test_a_video_models_windows_are_their_own_vectors_unless_it_has_to_be_fast(
    long: Path, video_model: Path
) -> None:
    model, tokenizer = load_model(video_model)
    exact = DenseVideo.read(model, tokenizer, long, Dense(window_s=4.0))
    fast = DenseVideo.read(model, tokenizer, long, Dense(window_s=4.0, fast=True))
    assert exact.vectors.shape == fast.vectors.shape == (12, exact.vectors.shape[1])
    for hop in (2, 7, 10):
        clip = read_clip(long, num_frames=8, image_size=64, start_s=hop - 2, end_s=hop + 2)
        own = encode_clips(model, clip.frames[None]).pooled[0]
        torch.testing.assert_close(exact.vectors[hop], own, atol=1e-5, rtol=1e-5)
    clip = read_clip(long, num_frames=4, image_size=64, start_s=10, end_s=12)  # the last window is shorter
    own = encode_clips(
        model, read_clip(long, num_frames=6, image_size=64, start_s=9, end_s=12).frames[None]
    ).pooled[0]
    torch.testing.assert_close(exact.vectors[11], own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.vectors.norm(dim=-1), torch.ones(12))


def test_the_curve_finds_where_it_happens(long: Path, image_model: Path) -> None:
    from harvest.data.miniworld import make_clip

    from ..conftest import WORLD

    model, tokenizer = load_model(image_model)
    read = DenseVideo.read(model, tokenizer, long, Dense(window_s=2.0))
    rows = [make_clip(WORLD, "retrieval", index)[1] for index in range(6)]
    looks = [(row["colour"], row["shape"]) for row in rows]
    found = 0
    for row in rows:
        best = read.curve(f"a {row['colour']} {row['shape']}").intervals[0]
        found += looks[min(5, int((best.start_s + best.end_s) / 4))] == (row["colour"], row["shape"])
    assert found >= 5
    with pytest.raises(HarvestError, match="empty"):
        read.curve(" ")


def test_stretches() -> None:
    scores = np.array([0, 0, 0.1, 0.8, 1.0, 0.7, 0.1, 0, 0, 0.6, 0.5, 0], np.float32)
    assert stretches(scores, k=3)[:2] == [(3, 5), (9, 10)]
    assert stretches(np.zeros(5, np.float32), k=3) == [(0, 0)]
    assert stretches(np.array([1.0], np.float32), k=3) == [(0, 0)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = stretches(rng.standard_normal(40).astype(np.float32), k=6)
        places = [place for first, last in found for place in range(first, last + 1)]
        assert len(places) == len(set(places)) and len(found) <= 6


def test_very_short_videos(image_model: Path, video_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    write_video(path, torch.full((1, 3, 64, 64), 99, dtype=torch.uint8), fps=8)
    for folder in (image_model, video_model):
        model, tokenizer = load_model(folder)
        curve = DenseVideo.read(model, tokenizer, path).curve("a red circle")
        assert len(curve.scores) == 1 and len(curve.intervals) == 1
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError):
        DenseVideo.read(model, tokenizer, tmp_path / "text.mp4")
    with pytest.raises(HarvestError):
        Dense(window_s=1.0, hop_s=2.0)


def test_pictures_of_windows_that_overlap_are_encoded_once(tmp_path: Path, image_model: Path) -> None:
    path = tmp_path / "still.mp4"
    ground = torch.randint(255, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(
        path, ground.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat(96, 1, 1, 1), fps=8
    )  # 12 s, one shot
    model, _ = load_model(image_model)
    for by_second in (None, 1.0):
        segmentation = Segmentation(frames_per_s=by_second)
        encoder = WindowEncoder(TorchEncoder(str(image_model)), segmentation)
        found = [
            w for w in windows(path, segmentation, num_frames=8, squares=SQUARES) if isinstance(w, Window)
        ]
        assert [w.start_s for w in found] == [0.0, 2.0, 4.0, 6.0]
        vectors = np.concatenate([encoder(found[:2]), encoder(found[2:])])
        assert encoder.num_encoded == (12 if by_second else len({id(p) for w in found for p in w.pictures}))
        for window, vector in zip(found, vectors, strict=True):
            video = torch.from_numpy(np.stack(window.pictures))[None]
            whole = encode_clips(model, video, mode="image").pooled[0]
            torch.testing.assert_close(torch.from_numpy(vector), whole, atol=1e-5, rtol=1e-5)


def test_the_picture_of_a_curve() -> None:
    curve = Curve("<a & b>", (0.5, 1.5, 2.5), (0.1, 0.5, 0.2), (Interval(1.0, 2.0, 0.5),))
    root = ElementTree.fromstring(svg(curve))
    space = {"s": "http://www.w3.org/2000/svg"}
    assert root.find("s:title", space).text == "<a & b>"  # type: ignore[union-attr]
    points = root.find("s:polyline", space).attrib["points"].split()  # type: ignore[union-attr]
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == 3 and heights[1] == min(heights)  # the highest score is at the top
    assert len(root.findall("s:rect[@class='span']", space)) == 1
    flat = svg(Curve("x", (0.5,), (0.3,), ()))
    assert "nan" not in flat
    assert blocks((0.0, 0.5, 1.0), width=10) == "▁▅█"
    assert blocks(tuple(range(100)), width=5)[-1] == "█" and len(blocks(tuple(range(100)), width=5)) == 5
    assert [clock(s) for s in (7.5, 67, 3723)] == ["7.5 s", "1:07", "1:02:03"]
