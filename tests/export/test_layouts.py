"""Models in the layout of OpenCLIP and ViCLIP: the peer's code, or our importer, gives the same embeddings."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harvest.export.layouts import export_layout
from harvest.interfaces import HarvestError
from harvest.model.folder import save_model
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.vocabularies import clip_tokenizer
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from toys import randomize, write_vocabulary

from experiments.towers import stand_in

SIZE = {"width": 64, "depth": 2, "num_heads": 1, "mlp_width": 96, "embed_dim": 24, "activation": "quick_gelu"}


def saved(
    folder: Path, vocabulary: Path, vocab_size: int = 600, is_image: bool = False, **video: object
) -> VideoTextModel:
    """A model folder, and the model."""
    ends = {"start_id": vocab_size - 2, "end_id": vocab_size - 1}
    text = TextEncoderConfig(vocab_size=vocab_size, context_length=16, pad_id=vocab_size - 1, **ends, **SIZE)
    frames = {"image_size": 32, "patch_size": 8, "num_frames": 1, **SIZE, **video}
    model = VideoTextModel(ModelConfig(video=VideoEncoderConfig(**frames), text=text)).eval()
    randomize(model)
    with torch.no_grad():
        model.log_scale.fill_(3.0)
        if is_image:
            model.video.time_positions.table.zero_()
    save_model(folder, model, clip_tokenizer(vocabulary.parent, vocabulary, 16))
    return model


VICLIP = {
    "num_frames": 4,
    "prefix": "clip",
    "fit": "squash",
    "pixel_mean": (0.485, 0.456, 0.406),
    "pixel_std": (0.229, 0.224, 0.225),
}


def test_viclip_comes_back(tmp_path: Path) -> None:
    model = saved(tmp_path / "ours", write_vocabulary(tmp_path), **VICLIP)
    export_layout(tmp_path / "ours", tmp_path / "theirs", "viclip")
    again = load_pretrained(tmp_path / "theirs" / "viclip.safetensors")[0]
    video = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    ids = torch.randint(3, 590, (2, 16))
    ids[:, 9] = 599
    with torch.no_grad():
        torch.testing.assert_close(again.encode_video(video).pooled, model.encode_video(video).pooled)
        torch.testing.assert_close(again.encode_text(ids).pooled, model.encode_text(ids).pooled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix": "frame"}, "video.prefix is 'frame', there 'clip'"),
        ({"activation": "gelu"}, "video.activation is 'gelu'"),
        ({"time_positions": "gated"}, "it has no video.time_positions.table"),
    ],
)
def test_what_viclip_cannot_say_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    saved(tmp_path / "ours", write_vocabulary(tmp_path), **{**VICLIP, **change})
    with pytest.raises(HarvestError, match=message):
        export_layout(tmp_path / "ours", tmp_path / "theirs", "viclip")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("open_clip", "timm"))),
    reason="open_clip and timm are not installed",
)
def test_open_clip_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("torchvision") is None:
        stand_in(partial(monkeypatch.setitem, sys.modules))
    import open_clip

    vocabulary = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    model = saved(tmp_path / "ours", vocabulary, 49408, is_image=True)
    export_layout(tmp_path / "ours", tmp_path / "theirs", "open_clip")
    config = json.loads((tmp_path / "theirs" / "open_clip_config.json").read_text())["model_cfg"]
    theirs = open_clip.model.CLIP(**config).eval()
    theirs.load_state_dict(load_file(tmp_path / "theirs" / "open_clip_model.safetensors"))
    images = torch.randn(3, 3, 32, 32)
    ids = load_pretrained(tmp_path / "ours")[1](["a photo of a cat", "two dogs"])
    with torch.no_grad():
        for found, wanted in (
            (theirs.encode_image(images, normalize=True), model.encode_video(images[:, None]).pooled),
            (theirs.encode_text(ids, normalize=True), model.encode_text(ids).pooled),
        ):
            torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def test_a_trained_time_is_no_image_model_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = write_vocabulary(tmp_path)
    ids = clip_tokenizer(tmp_path, vocabulary, 16).core.encode("ab").ids
    monkeypatch.setattr("harvest.export.layouts._OF_CLIP", ("ab", ids))
    saved(tmp_path / "ours", vocabulary)
    with pytest.raises(HarvestError, match=r"video.time_positions.table would change"):
        export_layout(tmp_path / "ours", tmp_path / "theirs", "open_clip")


def test_another_vocabulary_is_not_open_clips(tmp_path: Path) -> None:
    saved(tmp_path / "ours", write_vocabulary(tmp_path))
    with pytest.raises(HarvestError, match="CLIP's vocabulary"):
        export_layout(tmp_path / "ours", tmp_path / "theirs", "open_clip")
