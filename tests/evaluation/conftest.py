from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from harvest.data.video import write_video
from harvest.interfaces import Example
from harvest.model.fusion import FusionConfig
from harvest.model.inflation import as_video_model
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, train_tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

SENTENCES = (
    "a red circle moves to the left",
    "a blue square moves to the right",
    "a green star goes up",
    "a white ring stays still",
)
WORDS = [
    "a video of",
    "a photo of",
    "Question: which colour? Answer: red",
    "very dark blue",
    "the shape is",
    *SENTENCES,
]


class World(NamedTuple):
    model: VideoTextModel
    image_model: VideoTextModel
    tokenizer: Tokenizer
    examples: list[Example]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(WORDS, vocab_size=400, context_length=20)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four clips of noise that differs, and that changes from frame to frame."""
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for number in range(4):
        blocks = torch.randint(256, (8, 3, 4, 4), generator=generator, dtype=torch.uint8)
        paths.append(folder / f"{number}.mp4")
        write_video(paths[-1], blocks.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3), fps=8)
    return paths


@pytest.fixture(scope="session")
def world(tokenizer: Tokenizer, videos: list[Path]) -> World:
    image_model, model = make_models(tokenizer)
    examples = [
        Example(id=f"clip{number}", video=str(path), texts=(SENTENCES[number],))
        for number, path in enumerate(videos)
    ]
    return World(model, image_model, tokenizer, examples)


def make_models(tokenizer: Tokenizer, *, matches: bool = False) -> tuple[VideoTextModel, VideoTextModel]:
    """A random image model and the video model made of it, 4 frames, with a fusion decoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64, "embed_dim": 24}
        image_model = VideoTextModel(
            ModelConfig(
                video=VideoEncoderConfig(image_size=32, patch_size=8, num_frames=1, **sizes),
                text=TextEncoderConfig(
                    vocab_size=tokenizer.core.get_vocab_size(),
                    context_length=20,
                    start_id=0,
                    end_id=1,
                    pad_id=2,
                    **sizes,
                ),
            )
        )
        model, _ = as_video_model(
            image_model,
            num_frames=4,
            tubelet_size=2,
            time_positions="gated",
            fusion=FusionConfig(2, 2, matches=matches),
        )
    return image_model, model


def moved_to(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that a command moves models to from now on: without it they compute where they were loaded."""
    moved: list[torch.device] = []
    old = VideoTextModel.to

    def to(self: VideoTextModel, device: torch.device) -> VideoTextModel:
        moved.append(device)
        return old(self, device)

    monkeypatch.setattr(VideoTextModel, "to", to)
    return moved
