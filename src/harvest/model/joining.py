"""A video tower and a text tower become one model, with a fusion to meet in (UMT stage 2)."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from harvest.interfaces import HarvestError
from harvest.model.fusion import UMT_SCALE_RANGE, FusionConfig
from harvest.model.importing.bert import TextTower
from harvest.model.video_encoder import VideoEncoder
from harvest.model.video_text import ModelConfig, VideoTextModel

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
    tower: VideoEncoder, text_tower: TextTower, *, fusion: FusionConfig, num_frames: int
) -> tuple[VideoTextModel, tuple[str, ...]]:
    """A model of UMT's second stage, and the names of what is new in it.

    Every tensor of both is used. The video's mean token gets a norm and a projection into the text's shared space.
    """
    text = text_tower.text
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
    config = ModelConfig(
        video=video, text=text, fusion=text_tower.fusion or fusion, scale_range=UMT_SCALE_RANGE
    )
    model = VideoTextModel(config)
    if model.fusion is not None and model.fusion.config.layout == "bert":
        init_bert(model.fusion)
    if text.norms == "after":
        init_bert(model.text.blocks)
    tensors = {f"video.{name}": tensor for name, tensor in tower.state_dict().items()} | dict(
        text_tower.tensors
    )
    missing, extra = model.load_state_dict(tensors, strict=False)
    may_be_new = NEW if text_tower.tensors else (*NEW, "text.")  # words from scratch bring nothing
    new = tuple(name for name in missing if name.startswith(may_be_new))
    if extra or len(new) != len(missing):
        raise HarvestError(
            f"the towers do not make the model that was asked for: left over {extra}, missing "
            f"{sorted(set(missing) - set(new))}"
        )
    return model, new


@torch.no_grad()
def with_answers(model: VideoTextModel) -> tuple[VideoTextModel, tuple[str, ...]]:
    """The model with a decoder of answers, which starts from its text tower's words and from its fusion (UMT), and the
    names of what is new.

    Keys and values of the fusion come from the video's width, those of the decoder from the text's: where these differ
    they start anew (the reference cannot build such a model).
    """
    if model.answers is not None:
        return model, ()
    if model.fusion is None:
        raise HarvestError("questions need a model that fuses words with the video: none is in this one")
    fusion = dataclasses.replace(model.fusion.config, fills_words=True, matches=False)
    made = VideoTextModel(dataclasses.replace(model.config, answers=fusion))
    tensors = model.state_dict()
    assert made.answers is not None
    if fusion.layout == "bert":
        init_bert(made.answers)
    own = made.answers.state_dict()
    start = {f"words.{name}": t for name, t in model.text.state_dict().items()}
    start |= {f"decoder.{name}": t for name, t in model.fusion.state_dict().items()}
    found = {name: t for name, t in start.items() if name in own and own[name].shape == t.shape}
    made.load_state_dict(tensors | {f"answers.{name}": t for name, t in {**own, **found}.items()})
    return made.train(model.training), tuple(f"answers.{name}" for name in own if name not in found)


@torch.no_grad()
def with_matching(model: VideoTextModel) -> tuple[VideoTextModel, tuple[str, ...]]:
    """The model with a head that tells pairs from near misses by the fusion's states, and the names of what is new.

    A model of Harvest fills in words, and has no such head until it is fine-tuned with one (UMT's retrieval).
    """
    if model.fusion is None:
        raise HarvestError("matching needs a model that fuses words with the video: none is in this one")
    if model.fusion.head_match is not None:
        return model, ()
    fusion = dataclasses.replace(model.fusion.config, matches=True)
    made = VideoTextModel(dataclasses.replace(model.config, fusion=fusion))
    new = tuple(made.load_state_dict(model.state_dict(), strict=False).missing_keys)
    return made.train(model.training), new


def with_frames(model: VideoTextModel, num_frames: int) -> VideoTextModel:
    """The model for clips of `num_frames` frames, in place. Computed positions are extended; learned ones are not."""
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
