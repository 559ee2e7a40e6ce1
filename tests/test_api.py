"""harvest.load, as a user of the library meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import harvest
from harvest.data.video import write_video
from harvest.model.fusion import FusionConfig
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import train_tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel


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


def test_frames_pictures_and_files_are_one_thing(image_model: Path, videos: list[Path]) -> None:
    model = harvest.load(image_model, device="cpu")
    assert (model.num_frames, model.image_size) == (8, model.model.config.video.image_size)
    assert model.report is not None and model.report.used > 0
    whole = model.embed_videos(videos)
    frames = [torch.full((16, 3, 64, 64), level, dtype=torch.uint8) for level in (20, 220)]
    assert (model.embed_frames(frames) * whole).sum(dim=1).min() > 0.999  # but for the codec
    one = model.embed_images([frames[0][0], frames[1][0]])
    torch.testing.assert_close(model.embed_frames([f[:1] for f in frames]), one, atol=1e-5, rtol=0)
    wide = torch.zeros(3, 3, 50, 90, dtype=torch.uint8)
    assert model.embed_frames([wide, wide[:1]]).shape == whole.shape
    streamed = dict(model.stream_videos([*videos, "missing.mp4"], batch_size=2))
    assert isinstance(streamed["missing.mp4"], harvest.HarvestError)
    torch.testing.assert_close(torch.stack([streamed[path] for path in videos]), whole)
    for wrong in (torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(0, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(harvest.HarvestError, match="uint8"):
            model.embed_frames([wrong])
    with pytest.raises(harvest.HarvestError, match="dtype"):
        model.to(dtype=torch.float16)
    assert model.to("cpu", torch.float32) is model


def test_what_vectors_say(image_model: Path, videos: list[Path]) -> None:
    model = harvest.load(image_model)
    texts = model.embed_texts(["a red circle", "a blue square", "a red circle"])
    cosines = model.similarity(texts, model.embed_videos(videos))
    assert cosines.shape == (3, 2) and cosines[0].equal(cosines[2])
    probabilities = model.classify(videos, ["a red circle", "a blue square"])
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    expected = model.similarity(model.embed_videos(videos), model.embed_texts(["a video of a red circle"]))
    other = model.similarity(model.embed_videos(videos), model.embed_texts(["a video of a blue square"]))
    assert (probabilities[:, 0] > 0.5).equal(expected[:, 0] > other[:, 0])
    for refused in (lambda: model.rerank("a red circle", videos), lambda: model.answer(videos[0], "what?")):
        with pytest.raises(harvest.HarvestError, match=r"matching head|fill"):
            refused()


def test_the_package_tells_its_story() -> None:
    assert {"load", "VideoText", "Index", "HarvestError"} <= set(dir(harvest))
    assert "harvest.load" in (harvest.__doc__ or "") and harvest.load.__doc__
    public = [name for name in vars(harvest.VideoText) if not name.startswith("_")]
    assert {"embed_frames", "embed_images", "similarity", "classify", "answer", "rerank", "to"} <= set(public)
    assert (Path(harvest.__file__).parent / "py.typed").is_file()


def test_answers_and_second_readings(videos: list[Path]) -> None:
    tokenizer = train_tokenizer(
        ["a red circle moves left", "a blue square"], vocab_size=300, context_length=16
    )
    size = {"width": 32, "depth": 1, "num_heads": 2, "mlp_width": 48, "embed_dim": 16}
    ids = {"start_id": tokenizer.start_id, "end_id": tokenizer.end_id, "pad_id": tokenizer.config.pad_id}
    words = tokenizer.core.get_vocab_size()
    config = ModelConfig(
        video=VideoEncoderConfig(image_size=32, num_frames=2, **size),
        text=TextEncoderConfig(vocab_size=words, context_length=16, **ids, **size),
        fusion=FusionConfig(depth=1, num_heads=2, matches=True),
    )
    torch.manual_seed(0)
    model = harvest.VideoText(VideoTextModel(config).eval(), tokenizer)
    listed = model.answer(videos[0], "a [mask] circle", ["red", "blue", "red"])
    assert {answer for answer, _ in listed} == {"red", "blue"} and listed[0][1] >= listed[1][1]
    filled = model.answer(videos[0], "a [mask] circle", most=3)
    assert len(filled) == 3 and filled[0] == model.fill_mask(videos[0], "a [mask] circle")[0]
    logits = model.rerank("a red circle", videos)
    assert logits.shape == (2,) and logits.isfinite().all()
    torch.testing.assert_close(model.rerank("a red circle", videos[::-1]), logits.flip(0))
