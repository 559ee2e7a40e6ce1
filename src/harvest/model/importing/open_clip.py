"""OpenCLIP's folders: open_clip_config.json says what the tensors do not.

Image towers are its own ViTs or timm's, text towers its own or `transformers`' RoBERTa.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing import preprocessing
from harvest.model.importing.assembly import ImportOptions, Layout, Loaded, assemble
from harvest.model.importing.bert_text import open_clip_kind, open_clip_words
from harvest.model.importing.files import read_folder
from harvest.model.importing.openai import (
    CAPTIONER,
    Stated,
    openai_text,
    openai_text_rows,
    openai_video,
    openai_video_rows,
    score_rows,
)
from harvest.model.importing.preprocessing import read_open_clip
from harvest.model.importing.tables import Row, Table, check_names, stack_depth, without
from harvest.model.importing.timm_vit import Named, sizes_of_name, timm_rows, timm_video
from harvest.model.importing.vocabularies import clip_tokenizer, hub_tokenizer, siglip_tokenizer
from harvest.model.layers import Activation
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.settings import read_json

FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WITHOUT_EFFECT = {
    "patch_dropout",
    "ls_init_value",
    "mlp_ratio",
    "layers",
    "width",
    "patch_size",
    "image_size",
}
"""Of a tower: in training alone, or seen from the tensors."""
VISION = WITHOUT_EFFECT | {
    "head_width",
    "no_ln_pre",
    "pool_type",
    "final_ln_after_pool",
    "attentional_pool",
    "attn_pooler_heads",
    "attn_pooler_queries",
    "output_tokens",
}
TEXT = WITHOUT_EFFECT | {
    "context_length",
    "vocab_size",
    "heads",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
    "no_causal_mask",
    "pool_type",
    "eos_id",
    "proj_bias",
    "proj_type",
    "norm_kwargs",
    "act_kwargs",
    "embed_cls",
    "output_tokens",
    "hf_model_name",
    "hf_model_pretrained",
    "hf_pooler_type",
    "hf_proj_type",
}
TIMM = {
    "timm_model_name",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_drop",
    "timm_drop_path",
    "image_size",
}

_QUERIES = "visual.attn_pool.query"


def from_folder(folder: Path, source: str, options: ImportOptions) -> Loaded:
    """The model of a folder with open_clip_config.json and its weights."""
    path = folder / "open_clip_config.json"
    config = read_json(path)
    sizes = config.get("model_cfg", config)
    vision, text = (_part(sizes, name, path) for name in ("vision_cfg", "text_cfg"))
    named = _check(vision, text, path)
    family = preprocessing.CLIP
    if named is not None and "siglip" in vision["timm_model_name"]:
        family = preprocessing.SIGLIP
    pixels, notes = read_open_clip(config, family, path)
    stated = _stated(sizes, vision, text, path)
    stated = dataclasses.replace(stated, preprocessing=pixels, notes=(*notes, *stated.notes))
    tensors, unused = without(read_folder(folder, FILES), CAPTIONER)
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    for part, key, name in ((text, "embed_cls", f"{prefix}cls_emb"), (vision, "attentional_pool", _QUERIES)):
        if bool(part.get(key)) != (name in tensors):
            raise HarvestError(
                f"{path}: {key} is {part.get(key, False)}, and the weights have {'a' if name in tensors else 'no'} {name}"
            )
    video_rows = _video_rows(tensors, named, stated, source)
    is_own = "hf_model_name" not in text
    text_rows: Table = {}
    if is_own:
        depth = stack_depth(tensors, f"{prefix}transformer.resblocks")
        text_rows = openai_text_rows(depth, prefix, tensors, projection=stated.text_projection)
        check_names(tensors, video_rows | text_rows | score_rows(tensors), source=source)
    video = _video(tensors, named, vision, stated, source)
    if is_own:
        words, tokenizer, note = _own_text(tensors, prefix, named, text, stated, folder, source, options)
    else:
        found = open_clip_words(tensors, text, folder, source, options, embed_dim=video.embed_dim)
        (words, text_rows, tokenizer), note = (
            found,
            f"texts of at most {found.tokenizer.config.context_length} ids",
        )
    layout = Layout(
        video=video,
        text=words,
        table=lambda: video_rows | text_rows | score_rows(tensors),
        tokenizer=tokenizer,
        score_bias="logit_bias" in tensors,
        notes=(*stated.notes, *([note] if note else [])),
        unused=unused,
    )
    return assemble(layout, tensors, options, source=source)


def _check(vision: Mapping[str, Any], text: Mapping[str, Any], path: Path) -> Named | None:
    """What the name of a tower of timm says; HarvestError for what is not supported."""
    _check_known(text, TEXT, path)
    if "hf_model_name" in text:
        open_clip_kind(text, str(path))
    if isinstance(vision.get("layers"), list):
        raise HarvestError(f"{path}: a ResNet has no patches that could be left out: it is not supported")
    if isinstance(vision.get("attentional_pool"), str):
        raise HarvestError(f"{path}: attentional_pool {vision['attentional_pool']!r} is not supported")
    if "timm_model_name" not in vision:
        _check_known(vision, VISION, path)
        return None
    _check_known(vision, TIMM, path)
    return sizes_of_name(str(vision["timm_model_name"]), str(path))


def _stated(
    sizes: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any], path: Path
) -> Stated:
    activation: Activation = "quick_gelu" if sizes.get("quick_gelu") else "gelu"
    width, heads = text.get("width", 512), text.get("heads", 8)
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise HarvestError(f"{path}: text_cfg has {heads!r} heads for a width of {width!r}")
    poolings = {"argmax": "end", "eos": "end", "last": "last", "first": "first"}
    return Stated(
        activation=activation,
        text_activation=_text_activation(text, activation),
        head_width=vision.get("head_width", 64),
        text_head_width=width // heads,
        text_eps=text.get("norm_kwargs", {}).get("eps", 1e-5),
        video_pooling=_known(vision, "pool_type", {"tok": "prefix", "avg": "mean"}, "tok", path),
        norm_after_pooling=bool(vision.get("final_ln_after_pool")),
        pool_heads=vision.get("attn_pooler_heads", 8),
        text_pooling=_known(text, "pool_type", poolings, "argmax", path),
        text_projection=_known(text, "proj_type", {"linear": True, "none": False}, "linear", path),
        causal=not text.get("no_causal_mask", False),
        image_size=vision.get("image_size", 224),
        notes=(f"activation {activation}, from open_clip_config.json",),
    )


def _video_rows(tensors: Mapping[str, Tensor], named: Named | None, stated: Stated, source: str) -> Table:
    if named is None:
        depth = stack_depth(tensors, "visual.transformer.resblocks")
        return openai_video_rows(depth, "visual.", tensors, norm_after_pooling=stated.norm_after_pooling)
    rows = timm_rows("visual.trunk.", named, tensors)
    for layer in ("visual.trunk.head", "visual.head.proj"):
        for kind in ("weight", "bias"):
            if f"{layer}.{kind}" in tensors:
                rows[f"video.projection.{kind}"] = Row((f"{layer}.{kind}",))
    return rows


def _video(
    tensors: Mapping[str, Tensor], named: Named | None, vision: Mapping[str, Any], stated: Stated, source: str
) -> VideoEncoderConfig:
    assert stated.preprocessing is not None
    if named is None:
        return openai_video(tensors, "visual.", stated, source)
    heads = ("visual.trunk.head", "visual.head.proj")
    head = next((layer for layer in heads if f"{layer}.weight" in tensors), None)
    return timm_video(
        tensors,
        "visual.trunk.",
        named,
        stated.preprocessing,
        source,
        image_size=stated.image_size,
        pool=vision.get("timm_pool"),
        embed_dim=len(tensors[f"{head}.weight"]) if head else None,
        projection_bias=f"{head}.bias" in tensors,
    )


def _own_text(
    tensors: Mapping[str, Tensor],
    prefix: str,
    named: Named | None,
    text: Mapping[str, Any],
    stated: Stated,
    folder: Path,
    source: str,
    options: ImportOptions,
) -> tuple[TextEncoderConfig, Tokenizer, str]:
    note = ""

    def tokenizer_of(length: int) -> Tokenizer:
        nonlocal note
        if text.get("pool_type") == "last" and named is not None:
            tokenizer, _, note = siglip_tokenizer(folder, options.vocabulary, length)
            return tokenizer
        of = hub_tokenizer if "hf_tokenizer_name" in text else clip_tokenizer
        return of(folder, options.vocabulary, length)

    config, tokenizer = openai_text(tensors, prefix, stated, source, tokenizer_of)
    return config, tokenizer, note


def _text_activation(text: Mapping[str, Any], default: Activation) -> Activation:
    """`act_kwargs` of OpenCLIP's text tower is for its GELU."""
    is_tanh = text.get("act_kwargs", {}).get("approximate") == "tanh"
    return "gelu_tanh" if is_tanh else default


def _part(sizes: Any, name: str, path: Path) -> dict[str, Any]:
    part = sizes.get(name) if isinstance(sizes, dict) else None
    if not isinstance(part, dict):
        raise HarvestError(f"{path}: it has no {name}, the sizes of a tower")
    return part


def _check_known(part: Mapping[str, Any], known: set[str], path: Path) -> None:
    """HarvestError where a config asks for a tower that we do not have; its names may still fit."""
    unknown = sorted(name for name in part.keys() - known if part[name] not in (None, False, 0, 0.0))
    if unknown:
        raise HarvestError(f"{path} asks for what is not supported: {', '.join(unknown)}")


def _known(part: Mapping[str, Any], name: str, known: Mapping[str, Any], default: str, path: Path) -> Any:
    value = part.get(name, default)
    if value not in known:
        raise HarvestError(f"{path}: {name} {value!r} is not supported, only {', '.join(known)}")
    return known[value]
