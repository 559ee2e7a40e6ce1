"""From an image model to a video model that treats a still clip exactly as the image model treats the image."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from harvest.interfaces import HarvestError
from harvest.model.fusion import FusionConfig
from harvest.model.int8 import in_8_bits
from harvest.model.video_encoder import VideoEncoder
from harvest.model.video_text import VideoTextModel


def inflate_patches(weight: Tensor, tubelet_size: int) -> Tensor:
    """`[D, 3 * p * p]` to `[D, tubelet_size * 3 * p * p]`: each frame of a tubelet has an equal share of the weight."""
    return weight.repeat(1, tubelet_size) / tubelet_size


def _as_video_weights(image_model: VideoTextModel, tubelet_size: int) -> dict[str, Tensor]:
    """The image model's weights where a video model has them; none for positions in time, which start at zero.

    An image model trained from scratch has learned a position for its only time. It is added to what it was
    always added to: the places and the prefix.
    """
    tensors = {k: t for k, t in image_model.state_dict().items() if not k.startswith("video.time_positions")}
    tensors["video.patches.weight"] = inflate_patches(tensors["video.patches.weight"], tubelet_size)
    time_D = image_model.video.time_positions(1)[0]
    tensors["video.place_positions"] = tensors["video.place_positions"] + time_D
    if image_model.config.video.prefix == "frame":
        tensors["video.prefix"] = tensors["video.prefix"] + time_D
    return tensors


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
    tensors = _as_video_weights(image_model, tubelet_size)
    missing, extra = model.load_state_dict(tensors, strict=False)
    new = [name for name in missing if name.startswith(("video.time_positions", "fusion."))]
    if extra or len(new) != len(missing):
        raise ValueError(
            f"image and video model do not match: extra {extra}, missing {sorted(set(missing) - set(new))}"
        )
    if model.fusion is not None:  # hidden words are read with the text tower's own word vectors to start with
        model.fusion.head_words.weight.copy_(model.text.words.weight)
    return model, new


def as_teacher(
    image_model: VideoTextModel, *, dtype: torch.dtype = torch.float32, int8: bool = False
) -> VideoEncoder:
    """The image tower as one that looks at every frame of a clip apart, in eval mode. It shares the weights.

    `dtype` is that of its matrices: of weights that never learn, autocast would make a copy at every use. With `int8`
    those of all blocks but the last are in 8 bits; the last is computed where it is asked for, and is not worth it.
    """
    old = image_model.config.video
    if old.num_frames != 1 or old.tubelet_size != 1:
        raise ValueError("as_teacher takes an image model: num_frames 1, tubelet_size 1")
    if old.pooled_width != old.width:
        raise HarvestError(
            f"a teacher's patches are carried into its shared space: this tower's are {old.width} wide, and its images "
            f"are read {old.pooled_width} wide (CoCa). Take a teacher whose patches are as wide as what it reads"
        )
    teacher = VideoEncoder(dataclasses.replace(old, attention="frame"))
    teacher.load_state_dict(image_model.video.state_dict(), assign=True)
    if int8:
        in_8_bits(teacher.blocks[:-1])
    for part in teacher.modules():
        if isinstance(part, nn.Linear):
            part.to(dtype)
    return teacher.eval()


def check_blendable(image_model: VideoTextModel, video_model: VideoTextModel) -> None:
    """Raise HarvestError unless the video model has every weight of the image model, in its shape."""
    if image_model.config.video.num_frames != 1 or image_model.config.video.tubelet_size != 1:
        raise HarvestError(
            f"weights are blended with those of an image model: this one sees {image_model.config.video.num_frames} frames"
        )
    own = dict(video_model.named_parameters())
    for name, tensor in _as_video_weights(image_model, video_model.config.video.tubelet_size).items():
        if name not in own and name in dict(image_model.named_buffers()):
            continue
        if name not in own or own[name].shape != tensor.shape:
            here = list(own[name].shape) if name in own else "nothing"
            raise HarvestError(
                f"the video model was not made of this image model: {name} is {list(tensor.shape)} there and {here} here"
            )


@torch.no_grad()
def blend(image_model: VideoTextModel, video_model: VideoTextModel, *, video_ratio: float) -> None:
    """Move `video_model`'s weights towards the image model's: `share * video + (1 - share) * image` (WiSE-FT).

    New parameters (positions in time, fusion) stay as they are, as in ViCLIP's evaluation.
    """
    tensors = _as_video_weights(image_model, video_model.config.video.tubelet_size)
    for name, parameter in video_model.named_parameters():
        if name in tensors:
            parameter.lerp_(tensors[name].to(parameter), 1 - video_ratio)
