"""One folder opens in Harvest, in transformers and in sentence-transformers, with the same vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import harvest
from harvest.export.hub import export_hub

from .conftest import SENTENCES, moving

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries


@pytest.fixture(scope="module", params=["video_model", "frame_model"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / request.param
    export_hub(request.getfixturevalue(request.param), out)
    return out


def close(found: object, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found).detach(), expected, atol=1e-5, rtol=0)


def test_it_is_still_a_model_folder(video_model: Path, exported: Path) -> None:
    texts = harvest.load(exported).embed_texts(SENTENCES)
    assert texts.shape == (3, 24)
    config = json.loads((exported / "config.json").read_text())
    assert config["recipe"] == "harvest-b16" if exported.name == "video_model" else "recipe" not in config
    export_hub(video_model, exported.with_name("again"))
    export_hub(video_model, exported.with_name("again"))  # takes the place of an export
    (exported.with_name("again") / "mine.txt").write_text("kept")
    with pytest.raises(harvest.HarvestError, match="give another folder"):
        export_hub(video_model, exported.with_name("again"))


def test_transformers(exported: Path, clips: list[Path], picture: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    own = harvest.load(exported, device="cpu")
    folder = exported
    for _ in range(2):  # as exported; saved and loaded again
        model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        inputs = processor(text=SENTENCES, videos=[str(path) for path in clips])
        with torch.no_grad():
            found = model(**inputs)
            pictures = model.get_image_features(**processor(images=[str(picture)]))
        videos, texts = own.embed_videos(clips), own.embed_texts(SENTENCES)
        close(found.video_embeds, videos)
        close(found.text_embeds, texts)
        close(found.logits_per_text, own.model.scores(videos, texts))
        close(pictures, own.embed_images([picture]))
        folder = tmp_path / "saved"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    close(harvest.load(folder).embed_videos(clips), own.embed_videos(clips))
    model.train()
    model(**inputs).logits_per_text.diagonal().sum().backward()
    assert all(
        p.grad is not None for p in (model.log_scale, model.video.patches.weight, model.text.words.weight)
    )


def test_sentence_transformers(exported: Path, clips: list[Path], picture: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    own = harvest.load(exported, device="cpu")
    frames = [moving(seed) for seed in range(2)]
    listed = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames[0]]
    folder = exported
    for _ in range(2):
        model = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        close(model.encode(SENTENCES), own.embed_texts(SENTENCES))
        close(model.encode([str(path) for path in clips], batch_size=2), own.embed_videos(clips))
        close(model.encode([{"video": str(path)} for path in clips]), own.embed_videos(clips))
        seen = own.embed_frames(frames)
        close(model.encode([{"video": clip} for clip in frames]), seen)
        close(model.encode([clip.permute(0, 2, 3, 1).numpy() for clip in frames]), seen)
        close(model.encode([{"video": listed}]), seen[:1])
        image = own.embed_images([picture])
        close(model.encode([Image.open(picture)]), image)
        mixed = model.encode([SENTENCES[0], str(clips[0]), str(picture), SENTENCES[1]])
        texts = own.embed_texts(SENTENCES[:2])
        close(mixed, torch.cat([texts[:1], own.embed_videos(clips[:1]), image, texts[1:]]))
        assert model.get_embedding_dimension() == 24 and model.similarity_fn_name == "cosine"
        scores = model.similarity(model.encode(SENTENCES), model.encode([str(clips[0])]))
        close(scores, own.similarity(own.embed_texts(SENTENCES), own.embed_videos(clips[:1])))
        folder = tmp_path / "saved"
        model.save(str(folder))
    close(harvest.load(folder).embed_videos(clips), own.embed_videos(clips))
    with pytest.raises(harvest.HarvestError, match="uint8"):
        model.encode([np.zeros((4, 3, 8, 8), dtype=np.float32)])
    with pytest.raises(harvest.HarvestError, match="message"):
        model.encode([{"role": "user", "content": "hello"}])
