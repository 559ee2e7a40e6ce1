"""A video tower that has met no words and a text tower become one model, with a fusion to meet in (UMT stage 2)."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from harvest.interfaces import HarvestError
from harvest.model.encoders import VideoEncoder
from harvest.model.fusion import FusionConfig
from harvest.model.pretrained_bert import Words
from harvest.model.video_text import ModelConfig, VideoTextModel

UMT_SCALE_RANGE = (2.0, 1000.0)
"""Temperatures from 0.5 to 0.001."""

NEW = (
    "video.projection.",
    "video.norm_pooled.",
    "text.projection.",
    "text.mask_embedding",
    "fusion.",
    "log_scale",
)
"""What neither of two towers brings."""


@torch.no_grad()
def join(
    tower: VideoEncoder, words: Words, *, fusion: FusionConfig, num_frames: int
) -> tuple[VideoTextModel, tuple[str, ...]]:
    """A model of UMT's second stage, and the names of what is new in it.

    Every tensor of both is used. The video's mean token gets a norm and a projection into the text's shared space.
    """
    text = words.text
    old = tower.config
    if old.pooling != "mean":
        raise HarvestError(
            f"UMT's second stage embeds a clip by its mean token; this tower pools by {old.pooling!r}. Start from a "
            "tower of stage 1."
        )
    if old.positions == "joint" and num_frames != old.num_frames:
        raise HarvestError(
            f"this tower has learned positions for {old.num_frames} frames: give data.num_frames {old.num_frames}"
        )
    video = dataclasses.replace(
        old,
        num_frames=num_frames,
        projection=True,
        projection_bias=True,
        embed_dim=text.embed_dim,
        pooled_norm=True,
        pool_times=True,
    )
    config = ModelConfig(video=video, text=text, fusion=words.fusion or fusion, scale_range=UMT_SCALE_RANGE)
    model = VideoTextModel(config)
    if model.fusion is not None and model.fusion.config.layout == "bert":
        init_bert(model.fusion)
    if text.norms == "after":
        init_bert(model.text.blocks)
    tensors = {f"video.{name}": tensor for name, tensor in tower.state_dict().items()} | dict(words.tensors)
    missing, extra = model.load_state_dict(tensors, strict=False)
    may_be_new = NEW if words.tensors else (*NEW, "text.")  # words from scratch bring nothing
    new = tuple(name for name in missing if name.startswith(may_be_new))
    if extra or len(new) != len(missing):
        raise HarvestError(
            f"the towers do not make the model that was asked for: left over {extra}, missing "
            f"{sorted(set(missing) - set(new))}"
        )
    return model, new


def with_frames(model: VideoTextModel, num_frames: int) -> VideoTextModel:
    """The model for clips of so many frames, in place: positions that are computed go on, learned ones do not."""
    old = model.config.video
    if num_frames == old.num_frames:
        return model
    if old.positions != "sinusoid":
        raise HarvestError(
            f"this model has learned positions for {old.num_frames} frames: give data.num_frames {old.num_frames}"
        )
    video = dataclasses.replace(old, num_frames=num_frames)
    model.config = dataclasses.replace(model.config, video=video)
    model.video.config = video
    return model


def init_bert(module: nn.Module) -> None:
    """Normal matrices of std 0.02 and zero biases in every linear layer: how BERT starts."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
