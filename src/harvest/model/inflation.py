"""From an image model to a video model that treats a still clip exactly as the image model treats the image."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from harvest.model.fusion import FusionConfig
from harvest.model.video_text import VideoTextModel


def inflate_patches(weight: Tensor, tubelet_size: int) -> Tensor:
    """`[D, 3 * p * p]` to `[D, tubelet_size * 3 * p * p]`: each frame of a tubelet has an equal share of the weight."""
    return weight.repeat(1, tubelet_size) / tubelet_size


@torch.no_grad()
def as_video_model(
    image_model: VideoTextModel,
    *,
    num_frames: int,
    tubelet_size: int = 1,
    time_positions: Literal["table", "gated"] = "table",
    fusion: FusionConfig | None = None,
) -> tuple[VideoTextModel, list[str]]:
    """A video model with every weight of the image model, and the names of its new parameters.

    Before training, one frame, or `num_frames` equal ones, give the image model's embedding: positions in time
    are zero, every frame has its own prefix token, and inflated patches add up to the image's.
    """
    old = image_model.config
    if old.video.num_frames != 1 or old.video.tubelet_size != 1:
        raise ValueError("as_video_model takes an image model: num_frames 1, tubelet_size 1")
    config = dataclasses.replace(
        old,
        video=dataclasses.replace(
            old.video, num_frames=num_frames, tubelet_size=tubelet_size, time_positions=time_positions
        ),
        fusion=fusion,
    )
    model = VideoTextModel(config)
    tensors = dict(image_model.state_dict())
    # A table of an image model has one time; the gate and the table of a video model start at zero alike.
    tensors = {
        name: tensor for name, tensor in tensors.items() if not name.startswith("video.time_positions")
    }
    tensors["video.patches.weight"] = inflate_patches(tensors["video.patches.weight"], tubelet_size)
    missing, extra = model.load_state_dict(tensors, strict=False)
    new = [name for name in missing if name.startswith(("video.time_positions", "fusion."))]
    if extra or len(new) != len(missing):
        raise ValueError(
            f"image and video model do not match: extra {extra}, missing {sorted(set(missing) - set(new))}"
        )
    if model.fusion is not None:  # hidden words are read with the text tower's own word vectors to start with
        model.fusion.head_words.weight.copy_(model.text.words.weight)
    return model, new


@torch.no_grad()
def blend(image_model: VideoTextModel, video_model: VideoTextModel, *, video_share: float) -> None:
    """Move `video_model`'s weights towards the image model's: `share * video + (1 - share) * image` (WiSE-FT).

    New parameters (positions in time, fusion) stay as they are, as in ViCLIP's evaluation.
    """
    tensors = dict(image_model.state_dict())
    tubelet_size = video_model.config.video.tubelet_size
    tensors["video.patches.weight"] = inflate_patches(tensors["video.patches.weight"], tubelet_size)
    for name, parameter in video_model.named_parameters():
        if name in tensors and not name.startswith("video.time_positions"):
            parameter.lerp_(tensors[name].to(parameter), 1 - video_share)
