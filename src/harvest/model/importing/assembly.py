"""What every family needs: what the user says of a source, what a source turned out to be, and the model made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.folder import load_strictly
from harvest.model.importing.tables import ImportReport, Table, count_used, rename
from harvest.model.layers import Activation, resize_positions
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.ranges import Range, check_ranges

NEW = {"video.time_positions.table", "text.mask_embedding"}
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True)
class ImportOptions:
    """What a user says of a source: sizes that may change, and what its files do not say."""

    image_size: Annotated[int | None, Range(least=1)] = None
    """Another picture size than the model's: positions are resized, bicubic."""
    num_frames: Annotated[int | None, Range(least=1)] = None
    """Frames a clip, for UMT's files, which have no number."""
    vocabulary: Path | None = None
    """A `bpe_simple_vocab_16e6.txt.gz`, a `tokenizer.json` or BERT's `vocab.txt`, where none lies beside the weights."""
    activation: Activation | None = None
    """Of a single file, which does not say it."""
    head_width: Annotated[int, Range(least=1)] = 64
    """Width of an attention head, for single files."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Layout:
    """What a source turned out to be."""

    video: VideoEncoderConfig
    text: TextEncoderConfig
    table: Table
    tokenizer: Tokenizer
    score_bias: bool = False
    notes: tuple[str, ...] = ()


Loaded = tuple[VideoTextModel, Tokenizer, ImportReport]


def assemble(layout: Layout, tensors: Mapping[str, Tensor], options: ImportOptions, *, source: str) -> Loaded:
    """The model with the weights of a source, in fp32 and eval mode; load or fail."""
    ours, ignored = rename(tensors, layout.table, source=source)
    config = ModelConfig(video=layout.video, text=layout.text, score_bias=layout.score_bias)
    report = ImportReport(source, count_used(layout.table), ignored, notes=layout.notes)
    return complete(config, ours, layout.tokenizer, report, options)


def complete(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer,
    report: ImportReport,
    options: ImportOptions,
) -> Loaded:
    """Build the model, fill in what is new, resize what was asked for, check the tokenizer against the text tower."""
    check_tokenizer(tokenizer, config.text_tower, report.source)
    config, notes = resized(config, tensors, options.image_size)
    model = VideoTextModel(config)
    own = model.state_dict()
    new = tuple(sorted(NEW - tensors.keys()))
    for name in new:
        # A hidden word starts as the mean word; a time table of one frame as nothing.
        words = tensors["text.words.weight"]
        tensors[name] = words.mean(dim=0) if name == "text.mask_embedding" else torch.zeros_like(own[name])
    load_strictly(model, tensors, source=report.source)
    return model.eval(), tokenizer, dataclasses.replace(report, new=new, notes=(*report.notes, *notes))


def check_tokenizer(tokenizer: Tokenizer, text: TextEncoderConfig, source: str) -> None:
    """HarvestError where a tokenizer is not the text tower's."""
    highest = max(tokenizer.core.get_vocab().values())
    if highest >= text.vocab_size:
        raise HarvestError(
            f"{source}: the tokenizer has ids up to {highest}, the text tower {text.vocab_size} words"
        )
    if text.pooling == "end" and tokenizer.core.encode("a").ids[-1] != text.end_id:
        raise HarvestError(
            f"{source}: the tokenizer does not end texts with id {text.end_id}, where the tower reads them"
        )


def resized(
    config: ModelConfig, tensors: dict[str, Tensor], image_size: int | None
) -> tuple[ModelConfig, list[str]]:
    """The model for pictures of another size, its positions in `tensors` resized, and a note that says so."""
    old = config.video.image_size
    if image_size is None or image_size == old:
        return config, []
    if image_size % config.video.patch_size:
        raise HarvestError(
            f"image_size {image_size} is not a multiple of the patches' {config.video.patch_size}"
        )
    video = dataclasses.replace(config.video, image_size=image_size)
    name = "video.place_positions"
    tensors[name] = resize_positions(tensors[name], video.num_patches)
    note = f"positions resized from {old} to {image_size} pixels, bicubic"
    return dataclasses.replace(config, video=video), [note]


def tower_sizes(sizes: Mapping[str, Any], embed_dim: int, source: str) -> dict[str, Any]:
    """What the towers of `transformers` call their sizes, as ours."""
    if sizes["hidden_act"] not in ACTIVATIONS:
        raise HarvestError(
            f"{source}: activation {sizes['hidden_act']!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    return {
        "width": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"],
        "num_heads": sizes["num_attention_heads"],
        "mlp_width": sizes["intermediate_size"],
        "embed_dim": embed_dim,
        "activation": ACTIVATIONS[sizes["hidden_act"]],
        "norm_eps": sizes["layer_norm_eps"],
    }


def check_heads(width: int, head_width: int, source: str) -> None:
    if width % head_width:
        raise HarvestError(f"{source}: a tower {width} wide has no heads {head_width} wide: give head_width")
