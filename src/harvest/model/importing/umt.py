"""Checkpoints of UMT (arXiv 2303.16058) and the image towers that taught it become ours; load or fail.

Stage 1: `encoder.*` and `clip_decoder.*`, to a tower and its heads. Stage 2, and models fine-tuned from it for
retrieval, multiple choice and questions: `vision_encoder.*`, `text_encoder.*`, and a choice of heads and decoders.
Fine-tuned classifiers: stage 1's blocks without `encoder.`, with `fc_norm` and `head`. Teachers: OpenAI's visual names,
with or without a prefix. These files say no sizes beyond their shapes and come bare or in a wrapper beside other things.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.interfaces import HarvestError
from harvest.model.alignment import AlignmentHeads, student_tower
from harvest.model.classifier import VideoClassifier
from harvest.model.folder import load_strictly
from harvest.model.fusion import UMT_SCALE_RANGE, FusionConfig
from harvest.model.heads import Head, HeadConfig, build_head
from harvest.model.importing import preprocessing
from harvest.model.importing.assembly import ImportOptions, check_heads, check_tokenizer
from harvest.model.importing.bert import bert_table, word_head_table
from harvest.model.importing.files import read_tensors
from harvest.model.importing.openai import openai_video_rows
from harvest.model.importing.tables import (
    ImportReport,
    Row,
    Table,
    check_names,
    flat_patches,
    layer_rows,
    rename,
    stack_depth,
)
from harvest.model.importing.vocabularies import bert_ids, bert_tokenizer, find_vocabulary
from harvest.model.layers import resize_positions, sinusoid
from harvest.model.text_encoder import bert_text
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

GRID = (8, 14)
"""Times and places a side that UMT's tables of positions are made for."""
UMT_BLOCK = {
    "norm_attention": "norm1",
    "attention.out": "attn.proj",
    "norm_mlp": "norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def umt_table(depth: int, *, prefix: str = "encoder.", stored_positions: bool = False) -> Table:
    """The tower of a stage-1 checkpoint; with an empty prefix, that of a fine-tuned one. Norms behind it are apart."""
    table: Table = {
        **layer_rows("video.patches", f"{prefix}patch_embed.proj.{{}}"),
        "video.patches.weight": Row((f"{prefix}patch_embed.proj.weight",), flat_patches),
    }
    if stored_positions:
        table["video.joint_positions"] = Row((f"{prefix}pos_embed",), lambda positions: positions[0])
    for i in range(depth):
        ours, theirs = f"video.blocks.{i}", f"{prefix}blocks.{i}"
        for name, source in UMT_BLOCK.items():
            table |= layer_rows(f"{ours}.{name}", f"{theirs}.{source}.{{}}")
        table[f"{ours}.attention.qkv.weight"] = Row((f"{theirs}.attn.qkv.weight",))
        biases = (f"{theirs}.attn.q_bias", f"{theirs}.attn.v_bias")
        table[f"{ours}.attention.query_value_bias"] = Row(biases)
    return table


def stage1_table(depth: int, num_heads: int, *, stored_positions: bool = False) -> Table:
    """A whole stage-1 checkpoint: the tower, its final norm and the alignment heads."""
    table = umt_table(depth, stored_positions=stored_positions) | layer_rows(
        "video.norm_post", "encoder.norm.{}"
    )
    return table | _head_rows(num_heads, ours="heads.heads", theirs="clip_decoder")


def _head_rows(num_heads: int, *, ours: str, theirs: str) -> Table:
    table: Table = {}
    for k in range(num_heads):
        table |= layer_rows(f"{ours}.{k}.linear", f"{theirs}.{k}.head.{{}}")
        table |= layer_rows(f"{ours}.{k}.norm", f"{theirs}.{k}.norm.{{}}")
    return table


def read_heads(path: Path) -> dict[str, Tensor]:
    """The alignment heads of a file of stage 1 or 2, under the names of `AlignmentHeads`; nothing where it has none."""
    tensors, _ = read_tensors(path)
    for theirs in ("clip_decoder", "vision_encoder.clip_decoder"):
        num_heads = stack_depth(tensors, theirs)
        if num_heads:
            own = {name: t for name, t in tensors.items() if name.startswith(f"{theirs}.")}
            return rename(own, _head_rows(num_heads, ours="heads", theirs=theirs), source=str(path))[0]
    return {}


def classifier_table(depth: int, *, stored_positions: bool = False) -> Table:
    return {
        **umt_table(depth, prefix="", stored_positions=stored_positions),
        **layer_rows("video.norm_pooled", "fc_norm.{}"),
        **layer_rows("head", "head.{}"),
    }


def teacher_table(depth: int, *, prefix: str = "") -> Table:
    """OpenAI's visual tower alone."""
    return openai_video_rows(depth, prefix, ())


def resize_joint_positions(positions_ND: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions of (times, places a side) for another grid: linear in time, then bicubic in space (UMT)."""
    if old == new:
        return positions_ND
    D = positions_ND.shape[1]
    table = positions_ND.view(old[0], old[1] ** 2, D)
    if old[0] != new[0]:
        table = F.interpolate(table.flatten(1).T[None], size=new[0], mode="linear", align_corners=False)
        table = table[0].T.reshape(new[0], old[1] ** 2, D)
    return resize_positions(table.reshape(-1, D), new[1] ** 2, num_times=new[0])


def load_stage1(
    source: str | Path | Mapping[str, Tensor],
    *,
    num_frames: int = 8,
    image_size: int = 224,
    head_width: int = 64,
) -> tuple[VideoEncoder, AlignmentHeads, ImportReport]:
    """A stage-1 tower and its heads from a released file, a training checkpoint or a state dict, in eval mode.

    The fixed positions go on for any `num_frames` and `image_size`. Learned ones are of these sizes or an error.
    """
    tensors, name, notes = _tensors(source)
    depth = stack_depth(tensors, "encoder.blocks")
    if not depth or "encoder.patch_embed.proj.weight" not in tensors:
        raise _unknown(name, "a stage-1 checkpoint of UMT", "encoder.patch_embed.proj.weight", tensors)
    stored = "encoder.pos_embed" in tensors
    num_layers = stack_depth(tensors, "clip_decoder")
    if not num_layers:
        raise HarvestError(f"{name}: a stage-1 checkpoint without clip_decoder: its heads are missing")
    ours, ignored = rename(tensors, stage1_table(depth, num_layers, stored_positions=stored), source=name)
    config = _tower(
        tensors,
        "encoder.",
        depth,
        head_width=head_width,
        num_frames=num_frames,
        image_size=image_size,
        positions="joint" if stored else "sinusoid",
        source=name,
    )
    width = ours["heads.heads.0.linear.weight"].shape[0]
    encoder = VideoEncoder(config)
    heads = AlignmentHeads(
        num_layers, config.width, width, num_positions=config.num_times * config.num_patches
    )
    load_strictly(encoder, _part(ours, "video."), source=name)
    load_strictly(heads, _part(ours, "heads."), source=name)
    notes = [
        *notes,
        f"read for {num_frames} frames of {image_size} pixels, heads {head_width} wide; pixel mean and std are ImageNet's",
    ]
    report = ImportReport(name, len(tensors) - len(ignored), ignored, notes=tuple(notes))
    return encoder.eval(), heads.eval(), report


def load_classifier(
    source: str | Path | Mapping[str, Tensor],
    *,
    num_frames: int | None = None,
    image_size: int | None = None,
    stored: tuple[int, int] | None = None,
    head_width: int = 64,
) -> tuple[VideoClassifier, ImportReport]:
    """A fine-tuned classifier, in eval mode. Other frames or sizes than the file's are resized to, and reported.

    `stored` (frames, pixels) says what the file's positions are for where that is not 14 x 14 places or 8 times.
    The reference holds positions that were resized fixed; here they are parameters and learn.
    """
    tensors, name, notes = _tensors(source)
    tensors = {key.removeprefix("backbone."): tensor for key, tensor in tensors.items()}
    depth = stack_depth(tensors, "blocks")
    if not depth or "patch_embed.proj.weight" not in tensors:
        raise _unknown(name, "a fine-tuned classifier of UMT", "patch_embed.proj.weight", tensors)
    has_positions = "pos_embed" in tensors
    ours, ignored = rename(tensors, classifier_table(depth, stored_positions=has_positions), source=name)
    conv = tensors["patch_embed.proj.weight"]
    patch_size, tubelet_size, width = conv.shape[-1], conv.shape[2], conv.shape[0]
    count = ours["video.joint_positions"].shape[0] if has_positions else GRID[0] * GRID[1] ** 2
    if stored is not None:
        old = (stored[0] // tubelet_size, stored[1] // patch_size)
    else:
        old = (count // GRID[1] ** 2, GRID[1]) if count % GRID[1] ** 2 == 0 else (8, math.isqrt(count // 8))
    if has_positions and old[0] * old[1] ** 2 != count:
        raise HarvestError(
            f"{name}: {count} positions are not {old[0]} times of {old[1]} x {old[1]} places: give stored=(frames, pixels)"
        )
    new = (
        num_frames // tubelet_size if num_frames is not None else old[0],
        image_size // patch_size if image_size is not None else old[1],
    )
    is_resized = new != (old if has_positions else GRID)
    if is_resized:
        made_for = old if has_positions else GRID
        table = ours.get("video.joint_positions")
        table = table if table is not None else sinusoid(GRID[0] * GRID[1] ** 2, width)
        ours["video.joint_positions"] = resize_joint_positions(table, made_for, new)
        notes = [
            *notes,
            f"positions resized from {made_for[0]} times of {made_for[1]} x {made_for[1]} places to {new[0]} of {new[1]} x "
            f"{new[1]}, linear in time, bicubic in space",
        ]
    config = _tower(
        tensors,
        "",
        depth,
        head_width=head_width,
        num_frames=new[0] * tubelet_size,
        image_size=new[1] * patch_size,
        positions="joint" if has_positions or is_resized else "sinusoid",
        source=name,
    )
    model = VideoClassifier(
        dataclasses.replace(config, post_norm=False, pooled_norm=True), ours["head.weight"].shape[0]
    )
    load_strictly(model, ours, source=name)
    notes = [*notes, f"heads {head_width} wide; pixel mean and std are ImageNet's"]
    report = ImportReport(name, len(tensors) - len(ignored), ignored, notes=tuple(notes))
    return model.eval(), report


def convert_classifier(
    source: str | Path,
    *,
    names: Sequence[str],
    num_frames: int | None = None,
    image_size: int | None = None,
    head_width: int = 64,
) -> tuple[VideoTextModel, Head, ImportReport]:
    """A fine-tuned classifier as a model without a text tower and the head that stands beside it in a folder."""
    classifier, report = load_classifier(
        source, num_frames=num_frames, image_size=image_size, head_width=head_width
    )
    if len(names) != classifier.head.out_features:
        raise HarvestError(
            f"{source} tells {classifier.head.out_features} classes apart, the list of names has {len(names)}"
        )
    head = build_head(HeadConfig("linear", tuple(names), classifier.video.config.width))
    load_strictly(
        head, {f"linear.{k}": t for k, t in classifier.head.state_dict().items()}, source=str(source)
    )
    return _tower_alone(classifier.video), head.eval(), report


def _tower_alone(encoder: VideoEncoder) -> VideoTextModel:
    with torch.device("meta"):
        model = VideoTextModel(ModelConfig(video=encoder.config, text=None))
    model.video = encoder
    model.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    return model.eval()


def load_teacher(
    source: str | Path | Mapping[str, Tensor], *, image_size: int | None = None, head_width: int = 64
) -> tuple[VideoEncoder, ImportReport]:
    """CLIP's image tower alone, as UMT ships its teachers, looking at each frame apart, in eval mode.

    `image_size` resizes its positions, bicubic. Pixels are normalised with CLIP's mean and std, which it was trained
    with; the reference gives it ImageNet's.
    """
    tensors, name, notes = _tensors(source)
    if any(key.startswith("clip_teacher.") for key in tensors):  # the teacher in a checkpoint of stage 2
        tensors = _part(tensors, "clip_teacher.")
    prefix = "visual." if "visual.conv1.weight" in tensors else ""
    depth = stack_depth(tensors, f"{prefix}transformer.resblocks")
    conv = tensors.get(f"{prefix}conv1.weight")
    if not depth or conv is None or conv.ndim not in (4, 5):
        raise _unknown(name, "an image tower in OpenAI's names", "conv1.weight", tensors)
    ours, ignored = rename(tensors, teacher_table(depth, prefix=prefix), source=name)
    num_patches, width = ours["video.place_positions"].shape
    grid, patch_size = math.isqrt(num_patches), conv.shape[-1]
    if grid * grid != num_patches or (conv.ndim == 5 and conv.shape[2] != 1):
        raise HarvestError(
            f"{name}: {num_patches} places and patches {list(conv.shape)} are not a square frame's"
        )
    check_heads(width, head_width, name)
    if image_size is not None and image_size != grid * patch_size:
        if image_size % patch_size:
            raise HarvestError(f"image_size {image_size} is not a multiple of the patches' {patch_size}")
        places = (image_size // patch_size) ** 2
        ours["video.place_positions"] = resize_positions(ours["video.place_positions"], places)
        notes = [*notes, f"positions resized from {grid * patch_size} to {image_size} pixels, bicubic"]
    encoder = VideoEncoder(
        VideoEncoderConfig(
            image_size=image_size or grid * patch_size,
            patch_size=patch_size,
            num_frames=1,
            width=width,
            depth=depth,
            num_heads=width // head_width,
            mlp_width=ours["video.blocks.0.mlp.up.bias"].shape[0],
            embed_dim=ours["video.projection.weight"].shape[0],
            attention="frame",
            **preprocessing.CLIP.fields,
        )
    )
    new = "video.time_positions.table"
    ours[new] = torch.zeros(1, width)
    load_strictly(encoder, _part(ours, "video."), source=name)
    report = ImportReport(name, len(tensors) - len(ignored), ignored, (new,), tuple(notes))
    return encoder.eval(), report


def is_umt(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is UMT's: stage 1, stage 2 or fine-tuned from it."""
    return any(name.endswith("encoder.patch_embed.proj.weight") for name in tensors)


def load_umt(
    tensors: Mapping[str, Tensor],
    options: ImportOptions,
    *,
    source: str,
    folder: Path,
    notes: Sequence[str] = (),
) -> tuple[VideoTextModel, Tokenizer | None, ImportReport]:
    """A model of stage 1 (no text tower, 8 frames) or of stage 2 and its fine-tunings (4 frames), in eval mode.

    Of stage 1 the heads that align with the teacher are left to `load_stage1`, of stage 2 those and the teacher are
    ignored and listed: neither is part of the model. `folder` is where BERT's vocab.txt is looked for.
    """
    sizes = {"image_size": options.image_size or 224, "head_width": options.head_width or 64}
    tokenizer: Tokenizer | None = None
    if "vision_encoder.encoder.patch_embed.proj.weight" in tensors:
        model, tokenizer, report = load_stage2(
            tensors,
            vocabulary=find_vocabulary(folder, options.vocabulary),
            num_frames=options.num_frames or 4,
            context_length=options.context_length or 32,
            **sizes,
        )
    else:
        encoder, _, report = load_stage1(tensors, num_frames=options.num_frames or 8, **sizes)
        model = _tower_alone(encoder)
        of_heads = tuple(key for key in tensors if key.startswith("clip_decoder."))
        report = dataclasses.replace(
            report, used=report.used - len(of_heads), ignored=(*report.ignored, *of_heads)
        )
    return model, tokenizer, dataclasses.replace(report, source=source, notes=(*notes, *report.notes))


def stage2_table(
    tensors: Mapping[str, Tensor], *, video_depth: int, text_depth: int, fusion_depth: int, answer_depth: int
) -> Table:
    """Stage 2, retrieval, multiple choice and questions: the heads and decoders are those that the file has."""
    bert = (
        "text_encoder.bert." if any(k.startswith("text_encoder.bert.") for k in tensors) else "text_encoder."
    )
    table = {
        **umt_table(video_depth, prefix="vision_encoder.encoder."),
        **layer_rows("video.norm_post", "vision_encoder.encoder.norm.{}"),
        **bert_table(
            bert,
            embeddings="text",
            text_blocks=[f"text.blocks.{i}" for i in range(text_depth)],
            fusion_blocks=[f"fusion.blocks.{i}" for i in range(fusion_depth)],
        ),
    }
    if "text_encoder.cls.predictions.bias" in tensors:
        table |= word_head_table(tensors, "text_encoder.cls.", head="fusion", words="text", bert=bert)
    for ours, theirs in (
        ("video.norm_pooled", "vision_encoder.pool_norm"),
        ("video.projection", "vision_proj"),
        ("text.projection", "text_proj"),
        ("fusion.head_match", "itm_head"),
    ):
        if f"{theirs}.weight" in tensors:
            table |= layer_rows(ours, f"{theirs}.{{}}")
    if "temp" in tensors:
        table["log_scale"] = Row(("temp",), lambda temp: -temp.clamp(0.001, 0.5).log().reshape(()))
    if answer_depth:
        decoder = "text_decoder.bert."
        table |= bert_table(
            decoder,
            embeddings="answers.words",
            text_blocks=[],
            fusion_blocks=[f"answers.decoder.blocks.{i}" for i in range(answer_depth)],
        )
        table |= word_head_table(
            tensors, "text_decoder.cls.", head="answers.decoder", words="answers.words", bert=decoder
        )
    return table


def load_stage2(
    source: str | Path | Mapping[str, Tensor],
    *,
    vocabulary: Path | Tokenizer,
    num_frames: int = 4,
    image_size: int = 224,
    head_width: int = 64,
    text_head_width: int | None = None,
    context_length: int = 32,
) -> tuple[VideoTextModel, Tokenizer, ImportReport]:
    """A model of stage 2, or fine-tuned from it, in eval mode.

    Its fixed positions go on for any `num_frames` and `image_size`: those of fewer frames are the first of those of
    more. `text_head_width` None is `head_width`. A missing projection (models for questions) leaves mean tokens as embeddings, which say nothing about texts.
    """
    tensors, name, notes = _tensors(source)
    video = "vision_encoder.encoder."
    depth = stack_depth(tensors, f"{video}blocks")
    if not depth or f"{video}patch_embed.proj.weight" not in tensors:
        raise _unknown(name, "a stage-2 checkpoint of UMT", f"{video}patch_embed.proj.weight", tensors)
    apart = ("clip_teacher.", "vision_encoder.clip_decoder.")
    ignored = tuple(key for key in tensors if key.startswith(apart))
    rest = {key: tensor for key, tensor in tensors.items() if key not in ignored}
    bert = "text_encoder.bert." if any(k.startswith("text_encoder.bert.") for k in rest) else "text_encoder."
    layers = stack_depth(rest, f"{bert}encoder.layer")
    crossing = [
        i for i in range(layers) if f"{bert}encoder.layer.{i}.crossattention.self.query.weight" in rest
    ]
    if not crossing:
        raise HarvestError(f"{name}: no layer of its BERT attends to the video: crossattention is missing")
    answer_depth = stack_depth(rest, "text_decoder.bert.encoder.layer")
    table = stage2_table(
        rest,
        video_depth=depth,
        text_depth=crossing[0],
        fusion_depth=layers - crossing[0],
        answer_depth=answer_depth,
    )
    ours, more = rename(rest, table, source=name)
    # What is left out must be what it seems to be, too.
    if num_heads := stack_depth(tensors, "vision_encoder.clip_decoder"):
        check_names(
            {key: t for key, t in tensors.items() if key.startswith("vision_encoder.clip_decoder.")},
            _head_rows(num_heads, ours="heads", theirs="vision_encoder.clip_decoder"),
            source=name,
        )
    if teacher := {key: t for key, t in tensors.items() if key.startswith("clip_teacher.")}:
        blocks = stack_depth(teacher, "clip_teacher.transformer.resblocks")
        check_names(teacher, teacher_table(blocks, prefix="clip_teacher."), source=name)
    tower = _tower(
        rest,
        video,
        depth,
        head_width=head_width,
        num_frames=num_frames,
        image_size=image_size,
        positions="sinusoid",
        source=name,
    )
    has_projection = "video.projection.weight" in ours
    vocab_size, text_width = ours["text.words.weight"].shape
    embed_dim = ours["video.projection.weight"].shape[0] if has_projection else text_width
    text_head_width = text_head_width or head_width
    check_heads(text_width, text_head_width, name)
    tokenizer = (
        vocabulary
        if isinstance(vocabulary, Tokenizer)
        else bert_tokenizer(vocabulary, context_length, clean="umt")
    )
    heads = text_width // text_head_width

    def fusion(stack: str, depth: int) -> FusionConfig:
        return FusionConfig(
            depth=depth,
            num_heads=heads,
            layout="bert",
            fills_words=f"{stack}.head_dense.weight" in ours,
            tied_words=f"{stack}.head_bias" in ours,
            matches=f"{stack}.head_match.weight" in ours,
        )

    config = ModelConfig(
        video=dataclasses.replace(
            tower,
            projection=has_projection,
            projection_bias=has_projection,
            embed_dim=embed_dim if has_projection else tower.width,
            pooled_norm="video.norm_pooled.weight" in ours,
            pool_times=True,
        ),
        text=bert_text(
            vocab_size=vocab_size,
            context_length=ours["text.positions"].shape[0],
            width=text_width,
            depth=crossing[0],
            num_heads=heads,
            mlp_width=ours["fusion.blocks.0.mlp.up.bias"].shape[0],
            embed_dim=embed_dim,
            projection=has_projection,
            projection_bias=has_projection,
            **bert_ids(tokenizer),
        ),
        fusion=fusion("fusion", layers - crossing[0]),
        answers=fusion("answers.decoder", answer_depth) if answer_depth else None,
        scale_range=UMT_SCALE_RANGE,
    )
    new: tuple[str, ...] = ()
    if "log_scale" not in ours:
        new = ("log_scale",)
        ours["log_scale"] = torch.tensor(math.log(1 / 0.07))
    check_tokenizer(tokenizer, config.text_tower, name)
    model = VideoTextModel(config)
    load_strictly(model, ours, source=name)
    notes = [
        *notes,
        f"read for {num_frames} frames of {image_size} pixels, heads {head_width} wide; pixel mean and std are ImageNet's",
    ]
    if not has_projection:
        notes.append(
            "no projection into a shared space: its embeddings of clips and texts cannot be compared"
        )
    report = ImportReport(name, len(rest) - len(more), (*more, *ignored), new, tuple(notes))
    return model.eval(), tokenizer, report


def _tower(
    tensors: Mapping[str, Tensor],
    prefix: str,
    depth: int,
    *,
    head_width: int,
    num_frames: int,
    image_size: int,
    positions: Literal["joint", "sinusoid"],
    source: str,
) -> VideoEncoderConfig:
    conv = tensors[f"{prefix}patch_embed.proj.weight"]
    if conv.ndim != 5:
        raise HarvestError(f"{source}: wrong shape: patches {list(conv.shape)}, expected five dimensions")
    check_heads(conv.shape[0], head_width, source)
    if image_size % conv.shape[-1] or num_frames % conv.shape[2]:
        raise HarvestError(
            f"{source}: frames of {image_size} pixels are no multiple of patches of {conv.shape[-1]}, or "
            f"{num_frames} frames none of tubelets of {conv.shape[2]}"
        )
    return student_tower(
        image_size=image_size,
        patch_size=conv.shape[-1],
        tubelet_size=conv.shape[2],
        num_frames=num_frames,
        width=conv.shape[0],
        depth=depth,
        num_heads=conv.shape[0] // head_width,
        mlp_width=tensors[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0],
        positions=positions,
    )


def _tensors(source: str | Path | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    if isinstance(source, Mapping):
        return dict(source), "the state dict", []
    tensors, notes = read_tensors(Path(source))
    return tensors, str(source), notes


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _unknown(source: str, what: str, lacks: str, tensors: Mapping[str, Tensor]) -> HarvestError:
    return HarvestError(
        f"{source} is not {what}: it lacks {lacks}. Its first tensors: {', '.join(list(tensors)[:6])}"
    )
