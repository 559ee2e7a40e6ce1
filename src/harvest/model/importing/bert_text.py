"""BERT and RoBERTa (XLM-R) as text towers of image-text models: AltCLIP's, Chinese-CLIP's, OpenCLIP's and others'."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing.assembly import ACTIVATIONS, ImportOptions
from harvest.model.importing.bert import bert_table
from harvest.model.importing.tables import Row, Table, layer_rows, shape_of, stack_depth
from harvest.model.importing.vocabularies import bert_tokenizer, find_vocabulary, hub_tokenizer
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer
from harvest.settings import read_json

KINDS = {"bert": False, "chinese_clip_text_model": False, "roberta": True, "xlm-roberta": True}
"""Whether positions begin behind that of padding, as RoBERTa's do."""


class Words(NamedTuple):
    """A text tower of this kind."""

    config: TextEncoderConfig
    rows: Table  # without its projection, except a pooler's
    tokenizer: Tokenizer


def bert_words(
    tensors: Mapping[str, Tensor],
    prefix: str,
    sizes: Mapping[str, Any],
    folder: Path,
    source: str,
    options: ImportOptions,
    *,
    embed_dim: int,
    pooling: Literal["first", "mean"] = "first",
    context_length: int | None = None,
    **settings: Any,
) -> Words:
    """The tower under `prefix` of sizes as `transformers` calls them; `settings` are those of its projection."""
    depth = stack_depth(tensors, f"{prefix}encoder.layer")
    is_roberta = KINDS[sizes["model_type"]]
    first = sizes.get("pad_token_id", 1) + 1 if is_roberta else 0
    rows = bert_table(
        prefix,
        embeddings="text",
        text_blocks=[f"text.blocks.{i}" for i in range(depth)],
        fusion_blocks=[],
        first_position=first,
    )
    missing = sorted(name for row in rows.values() for name in row.sources if name not in tensors)
    if missing:
        raise HarvestError(f"{source}: the weights do not match their layout: no {', '.join(missing[:6])}")
    vocab_size, width = shape_of(tensors, f"{prefix}embeddings.word_embeddings.weight", 2, source)
    positions = len(tensors[f"{prefix}embeddings.position_embeddings.weight"]) - first
    said = read_json(folder / "tokenizer_config.json").get("model_max_length")
    length = context_length or (said if isinstance(said, int) and 0 < said < positions else positions)
    tokenizer = _tokenizer(folder, options, min(length, positions), is_roberta)
    activation = ACTIVATIONS.get(sizes.get("hidden_act", "gelu"))
    if activation is None:
        raise HarvestError(
            f"{source}: activation {sizes['hidden_act']!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    num_heads = sizes.get("num_attention_heads") or max(1, width // 64)
    config = TextEncoderConfig(
        vocab_size=vocab_size,
        context_length=positions,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_width=len(tensors[f"{prefix}encoder.layer.0.intermediate.dense.bias"]),
        embed_dim=embed_dim,
        activation=activation,
        norm_eps=sizes.get("layer_norm_eps", 1e-5 if is_roberta else 1e-12),
        causal=False,
        norms="after",
        dropout=sizes.get("hidden_dropout_prob", 0.1),
        pooling=pooling,
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.config.pad_id,
        **settings,
    )
    return Words(config, rows, tokenizer)


def pooler_rows(pooler: str, projection: str) -> Table:
    """BERT's pooler (a layer with tanh) and a projection behind it, as one of two layers."""

    def none(matrix: Tensor) -> Tensor:
        return torch.zeros(len(matrix))

    return {
        **layer_rows("text.projection.up", f"{pooler}.dense.{{}}"),
        "text.projection.down.weight": Row((f"{projection}.weight",)),
        "text.projection.down.bias": Row((f"{projection}.weight",), none),
    }


def open_clip_kind(text: Mapping[str, Any], source: str) -> str:
    """The kind of a text tower that OpenCLIP takes from `transformers`; HarvestError where it is not supported."""
    name, pooler = str(text["hf_model_name"]), text.get("hf_pooler_type", "mean_pooler")
    kinds = ("xlm-roberta", "roberta", "bert")
    kind = next((kind for kind in kinds if name.split("/")[-1].startswith(kind)), None)
    if kind is None or pooler != "mean_pooler":
        raise HarvestError(
            f"{source}: a text tower {name} with {pooler} is not supported, only RoBERTa, XLM-R and BERT with mean_pooler"
        )
    return kind


def open_clip_words(
    tensors: Mapping[str, Tensor],
    text: Mapping[str, Any],
    folder: Path,
    source: str,
    options: ImportOptions,
    *,
    embed_dim: int,
) -> Words:
    """OpenCLIP's text towers that are `transformers`' RoBERTa: the mean of the words, through one or two matrices."""
    kind = open_clip_kind(text, source)
    settings: dict[str, Any] = {"projection": "text.proj.weight" in tensors}
    rows: Table = {}
    if settings["projection"]:
        rows["text.projection.weight"] = Row(("text.proj.weight",))
    elif "text.proj.0.weight" in tensors:
        rows["text.projection.up.weight"] = Row(("text.proj.0.weight",))
        rows["text.projection.down.weight"] = Row(("text.proj.2.weight",))
        settings = {"projection_width": len(tensors["text.proj.0.weight"])}
    words = bert_words(
        tensors,
        "text.transformer.",
        {"model_type": kind},
        folder,
        source,
        options,
        embed_dim=embed_dim,
        pooling="mean",
        context_length=text.get("context_length", 77),
        **settings,
    )
    tokenizer = Tokenizer(words.tokenizer.core, dataclasses.replace(words.tokenizer.config, clean="clip"))
    return Words(words.config, words.rows | rows, tokenizer)


def _tokenizer(folder: Path, options: ImportOptions, length: int, is_roberta: bool) -> Tokenizer:
    given = options.vocabulary
    has_words = given.suffix == ".txt" if given is not None else not (folder / "tokenizer.json").is_file()
    if has_words and not is_roberta and (given or folder / "vocab.txt").is_file():
        return bert_tokenizer(find_vocabulary(folder, given), length, has_end=True)
    return hub_tokenizer(folder, given, length, clean="none")
