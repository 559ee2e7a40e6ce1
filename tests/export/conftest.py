"""A small video model, an image model and clips, as files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harvest.data.video import write_pictures, write_video
from harvest.model.folder import save_model
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, train_tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

BUDGET = 24
SENTENCES = ["a red circle moves to the left", "a blue square", "something else"]


def small_model(
    seed: int = 0, texts: Mapping[str, Any] | None = None, **video: Any
) -> tuple[VideoTextModel, Tokenizer]:
    """Two blocks, every parameter random, also times, biases and norms."""
    tokenizer = train_tokenizer(SENTENCES, vocab_size=300, context_length=12)
    size = {"width": 48, "depth": 2, "num_heads": 3, "mlp_width": 96, "embed_dim": 24}
    settings = {"image_size": 32, "patch_size": 8, "num_frames": 4, **size, **video}
    words = {"vocab_size": tokenizer.core.get_vocab_size(), "context_length": 12}
    ids = {"start_id": 0, "end_id": 1, "pad_id": 2}
    text = TextEncoderConfig(**{**words, **ids, **size, **(texts or {})})
    model = VideoTextModel(ModelConfig(video=VideoEncoderConfig(**settings), text=text))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.2 * noise)
        model.log_scale.fill_(2.0)
    return model.eval(), tokenizer


@pytest.fixture(scope="session")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "video"
    save_model(
        folder, *small_model(time_positions="gated"), notes={"recipe": "harvest-b16", "started_from": "x"}
    )
    return folder


@pytest.fixture(scope="session")
def frame_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "image"
    save_model(folder, *small_model(num_frames=1))
    return folder


@pytest.fixture(scope="session")
def exported(video_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video model as ONNX, with a choice of tubelets in its graph."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    logging.getLogger("torch.__trace").disabled = True  # pytest would format every step of the tracer
    from harvest.export.onnx import OnnxOptions, export_onnx

    out = tmp_path_factory.mktemp("onnx") / "out"
    export_onnx(video_model, out, OnnxOptions(budget=BUDGET))
    return out


def moving(seed: int, num_frames: int = 12, size: tuple[int, int] = (40, 56)) -> torch.Tensor:
    """A textured square that moves over noise, uint8 `[T, 3, H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (1, 3, *size), generator=generator, dtype=torch.uint8)
    frames = frames.repeat(num_frames, 1, 1, 1)
    patch = torch.randint(0, 256, (3, 12, 12), generator=generator, dtype=torch.uint8)
    for t in range(num_frames):
        frames[t, :, 8:20, 2 * t : 2 * t + 12] = patch
    return frames


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{seed}.mp4" for seed in range(3)]
    for seed, path in enumerate(paths):
        write_video(path, moving(seed), fps=8)
    return paths


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.jpg"
    path.write_bytes(write_pictures(moving(7, 1))[0])
    return path
