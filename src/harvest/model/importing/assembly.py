"""What every family needs: what the user says of a source, what a source turned out to be, and the model made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from harvest.interfaces import Fit, HarvestError
from harvest.model.folder import load_strictly
from harvest.model.importing.tables import ImportReport, Table, count_used, rename
from harvest.model.layers import Activation, resize_positions
from harvest.model.text_cleaning import Clean
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.ranges import Range, check_ranges

NEW = {"video.time_positions.table", "text.mask_embedding", "log_scale"}
"""What a source may lack: positions in time, a vector for hidden words, the scale of scores of a video tower alone."""
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True)
class ImportOptions:
    """What a user says of a source: sizes that may change, and what its files do not say."""

    image_size: Annotated[int | None, Range(least=1, most=8192)] = None
    """Another picture size than the model's: positions are resized, bicubic."""
    num_frames: Annotated[int | None, Range(least=1, most=4096)] = None
    """Frames a clip, for UMT's files, which have no number."""
    context_length: Annotated[int | None, Range(least=3)] = None
    """Ids of a text, at most those of the tower; longer texts are cut. None: as the model has it, 32 for UMT's."""
    vocabulary: Path | None = None
    """A `bpe_simple_vocab_16e6.txt.gz`, a `tokenizer.json` or BERT's `vocab.txt`, where none lies beside the weights."""
    clean: Clean | None = None
    """How texts are cleaned before they become ids, where it is not as the family does (`umt`: UMT's `pre_text`)."""
    preset: Literal["openai", "open_clip"] | None = None
    """What a single file in OpenAI's names is: trained by OpenAI (QuickGELU) or with OpenCLIP's defaults (exact GELU)."""
    activation: Activation | None = None
    """Of a single file, with the four below in place of a preset or beside it."""
    head_width: Annotated[int | None, Range(least=1)] = None
    """Width of an attention head; of UMT's files 64 by default."""
    text_head_width: Annotated[int | None, Range(least=1)] = None
    """The same of the text tower, where it differs."""
    video_pooling: Literal["prefix", "mean"] | None = None
    """Whether a single file's images are read at the class token or as the mean of their patches."""
    text_pooling: Literal["end", "last", "first"] | None = None
    """Where a single file's texts are read."""
    causal: bool | None = None
    """Whether words of a single file's text tower see only earlier ones."""
    fit: Fit | None = None
    """How a picture becomes a square, where it is not as the source says."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def for_files(self) -> list[str]:
        """What was said that only a single file does not say itself."""
        names = (
            "preset",
            "activation",
            "head_width",
            "text_head_width",
            "video_pooling",
            "text_pooling",
            "causal",
        )
        return [name for name in (*names, "num_frames") if getattr(self, name) is not None]


@dataclass(frozen=True)
class Layout:
    """What a source turned out to be."""

    video: VideoEncoderConfig
    text: TextEncoderConfig | None
    """None: a video tower alone."""
    table: Callable[[], Table]
    """Made once the sizes have been checked: a config may claim a billion layers."""
    tokenizer: Tokenizer | None
    score_bias: bool = False
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    """Tensors that were left out before, to be listed among the ignored."""


Loaded = tuple[VideoTextModel, Tokenizer | None, ImportReport]


def assemble(layout: Layout, tensors: Mapping[str, Tensor], options: ImportOptions, *, source: str) -> Loaded:
    """The model with the weights of a source, in fp32 and eval mode; load or fail."""
    if layout.text is not None and layout.text.embed_dim != layout.video.embed_dim:
        raise HarvestError(
            f"{source}: texts are {layout.text.embed_dim} wide, images {layout.video.embed_dim}"
        )
    table = layout.table()
    ours, ignored = rename(tensors, table, source=source)
    config = ModelConfig(video=layout.video, text=layout.text, score_bias=layout.score_bias)
    report = ImportReport(source, count_used(table), (*ignored, *layout.unused), notes=layout.notes)
    return complete(config, ours, layout.tokenizer, report, options)


def complete(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    report: ImportReport,
    options: ImportOptions,
) -> Loaded:
    """Build the model, fill in what is new, resize what was asked for, check the tokenizer against the text tower."""
    if tokenizer is not None:
        check_tokenizer(tokenizer, config.text_tower, report.source)
    config, notes = resized(config, tensors, options.image_size)
    model = VideoTextModel(config)
    own = model.state_dict()
    new = tuple(sorted((NEW & own.keys()) - tensors.keys()))
    for name in new:
        # A hidden word starts as the mean word; a time table of one frame as nothing.
        if name == "text.mask_embedding":
            tensors[name] = tensors["text.words.weight"].mean(dim=0)
        else:
            tensors[name] = own[name].clone() if name == "log_scale" else torch.zeros_like(own[name])
    load_strictly(model, tensors, source=report.source)
    check_finite(tensors, report.source)
    return model.eval(), tokenizer, dataclasses.replace(report, new=new, notes=(*report.notes, *notes))


def adjust(
    model: VideoTextModel, tokenizer: Tokenizer | None, options: ImportOptions, source: str
) -> tuple[Tokenizer | None, list[str]]:
    """What a user may set of any model, whatever it came from: how pictures and texts are read. With notes."""
    notes = []
    if options.fit is not None and options.fit != model.config.video.fit:
        notes.append(f"pictures become squares by {options.fit}, not {model.config.video.fit}")
        video = dataclasses.replace(model.config.video, fit=options.fit)
        model.config = dataclasses.replace(model.config, video=video)
        model.video.config = video
    length, clean = options.context_length, options.clean
    if tokenizer is None or (length is None and clean is None):
        return tokenizer, notes
    text, old = model.config.text_tower, tokenizer.config
    if length is not None and (
        length > text.context_length or (text.pooling == "last" and length < text.context_length)
    ):
        raise HarvestError(
            f"{source}: context_length {length}: its texts have at most {text.context_length} ids"
            + (" and are read at the last of them, so no fewer" if text.pooling == "last" else "")
        )
    config = dataclasses.replace(old, context_length=length or old.context_length, clean=clean or old.clean)
    notes.append(f"texts of at most {config.context_length} ids, cleaned as {config.clean}")
    return Tokenizer(tokenizer.core, config), notes


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """HarvestError where a weight is not a number."""
    for name, tensor in tensors.items():
        if not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise HarvestError(
                f"{source}: {name} holds values that are no finite numbers: the weights are broken"
            )


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
