"""BERT as a text tower whose last layers meet a video (UMT stage 2): rename tables, folders and its tokenizer.

`transformers` folders of `bert` models, with or without the head that fills in words. Layers below the fusion become
the text tower, the others the fusion, with cross-attention that a plain BERT does not have and that starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.fusion import FusionConfig
from harvest.model.importing.assembly import check_tokenizer
from harvest.model.importing.files import read_folder
from harvest.model.importing.tables import ImportReport, Row, Table, layer_rows, rename, stack_depth
from harvest.model.importing.vocabularies import bert_ids, bert_tokenizer, find_vocabulary
from harvest.model.text_encoder import TextEncoderConfig, bert_text
from harvest.model.tokenizer import Tokenizer
from harvest.settings import read_json

BLOCK = {
    "norm_attention": ("attention.output.LayerNorm.{}",),
    "attention.qkv": ("attention.self.query.{}", "attention.self.key.{}", "attention.self.value.{}"),
    "attention.out": ("attention.output.dense.{}",),
    "norm_mlp": ("output.LayerNorm.{}",),
    "mlp.up": ("intermediate.dense.{}",),
    "mlp.down": ("output.dense.{}",),
}
CROSS = {
    "norm_video": ("crossattention.output.LayerNorm.{}",),
    "video.query": ("crossattention.self.query.{}",),
    "video.key_value": ("crossattention.self.key.{}", "crossattention.self.value.{}"),
    "video.out": ("crossattention.output.dense.{}",),
}
FUSION_BLOCK = {
    name.replace("norm_attention", "norm_words").replace("attention.", "words."): sources
    for name, sources in BLOCK.items()
}


@dataclass(frozen=True)
class TextTower:
    """A text tower ready to be joined to a video tower, with what it brings for their fusion."""

    text: TextEncoderConfig
    fusion: FusionConfig | None
    """How it wants to be fused; None leaves it to the run."""
    tensors: Mapping[str, Tensor]
    """Under the names of `VideoTextModel`."""
    tokenizer: Tokenizer
    report: ImportReport


def bert_table(
    source: str,
    *,
    embeddings: str,
    text_blocks: Sequence[str],
    fusion_blocks: Sequence[str],
    crosses: bool = True,
    first_position: int = 0,
) -> Table:
    """A BERT under `source`: our names of its embeddings, of its first layers and of those that fuse.

    Every word is of token type 0, so that its vector is part of the positions, which RoBERTa counts from `first_position`.
    """
    table: Table = {
        f"{embeddings}.words.weight": Row((f"{source}embeddings.word_embeddings.weight",)),
        f"{embeddings}.positions": Row(
            (
                f"{source}embeddings.position_embeddings.weight",
                f"{source}embeddings.token_type_embeddings.weight",
            ),
            lambda positions, types: positions[first_position:] + types[0],
        ),
        **layer_rows(f"{embeddings}.norm_pre", f"{source}embeddings.LayerNorm.{{}}"),
    }
    blocks = [(name, BLOCK) for name in text_blocks]
    blocks += [(name, FUSION_BLOCK | CROSS if crosses else FUSION_BLOCK) for name in fusion_blocks]
    for layer, (ours, names) in enumerate(blocks):
        for name, theirs in names.items():
            table |= layer_rows(
                f"{ours}.{name}", *(f"{source}encoder.layer.{layer}.{part}" for part in theirs)
            )
    return table


def word_head_table(tensors: Mapping[str, Tensor], source: str, *, head: str, words: str, bert: str) -> Table:
    """The head that fills in words; whether it reads them with the tower's word vectors is seen from the tensors.

    Files hold tied tensors once or twice.
    """
    table = {
        **layer_rows(f"{head}.head_dense", f"{source}predictions.transform.dense.{{}}"),
        **layer_rows(f"{head}.head_norm", f"{source}predictions.transform.LayerNorm.{{}}"),
    }
    bias, matrix = f"{source}predictions.decoder.bias", f"{source}predictions.decoder.weight"
    biases = tuple(name for name in (bias, f"{source}predictions.bias") if name in tensors)
    biases = biases or (f"{source}predictions.bias",)
    embedding = f"{bert}embeddings.word_embeddings.weight"
    if has_tied_words(tensors, source, bert=bert):
        table[f"{head}.head_bias"] = Row(biases, lambda *same: same[0])
        both = (embedding, matrix) if matrix in tensors else (embedding,)
        table[f"{words}.words.weight"] = Row(both, lambda *same: same[0])
    else:
        table[f"{head}.head_words.weight"] = Row((matrix,))
        table[f"{head}.head_words.bias"] = Row(biases, lambda *same: same[0])
    return table


def has_tied_words(tensors: Mapping[str, Tensor], source: str, *, bert: str) -> bool:
    matrix = tensors.get(f"{source}predictions.decoder.weight")
    embedding = tensors.get(f"{bert}embeddings.word_embeddings.weight")
    if matrix is None or embedding is None or matrix.is_meta:
        return True
    return torch.equal(matrix, embedding)


def load_bert(
    folder: Path,
    *,
    fusion_depth: int,
    embed_dim: int,
    context_length: int = 32,
    vocabulary: Path | None = None,
) -> TextTower:
    """A `transformers` folder of BERT; its last `fusion_depth` layers become the fusion.

    `context_length` bounds texts, not positions; `embed_dim` is the width of the shared space, whose projection is new.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "bert":
        raise HarvestError(
            f"{folder} is no BERT in the layout of transformers: model_type is {config.get('model_type')!r}"
        )
    old_names = {".gamma": ".weight", ".beta": ".bias"}  # of norms, in files from 2018
    tensors = read_folder(folder)
    for old, new in old_names.items():
        tensors = {
            (name[: -len(old)] + new if name.endswith(old) else name): t for name, t in tensors.items()
        }
    bert = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    depth = stack_depth(tensors, f"{bert}encoder.layer")
    if not 0 < fusion_depth < depth:
        raise HarvestError(f"{folder} has {depth} layers: {fusion_depth} of them cannot fuse")
    table = bert_table(
        bert,
        embeddings="text",
        text_blocks=[f"text.blocks.{i}" for i in range(depth - fusion_depth)],
        fusion_blocks=[f"fusion.blocks.{i}" for i in range(fusion_depth)],
        crosses=False,
    )
    has_head = "cls.predictions.transform.dense.weight" in tensors
    if has_head:
        table |= word_head_table(tensors, "cls.", head="fusion", words="text", bert=bert)
    unused = tuple(name for name in tensors if name.startswith((f"{bert}pooler.", "cls.seq_relationship.")))
    rest = {name: tensor for name, tensor in tensors.items() if name not in unused}
    ours, ignored = rename(rest, table, source=str(folder))
    tokenizer = bert_tokenizer(find_vocabulary(folder, vocabulary), context_length, clean="umt")
    vocab_size, width = ours["text.words.weight"].shape
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise HarvestError(f"{folder}: activation {activation!r} is not supported in a BERT, only 'gelu'")
    num_heads = config.get("num_attention_heads", 12)
    text = bert_text(
        vocab_size=vocab_size,
        context_length=ours["text.positions"].shape[0],
        width=width,
        depth=depth - fusion_depth,
        num_heads=num_heads,
        mlp_width=config.get("intermediate_size", 4 * width),
        embed_dim=embed_dim,
        norm_eps=config.get("layer_norm_eps", 1e-12),
        dropout=config.get("hidden_dropout_prob", 0.1),
        **bert_ids(tokenizer),
    )
    check_tokenizer(tokenizer, text, str(folder))
    is_tied = not has_head or "fusion.head_bias" in ours
    fusion = FusionConfig(
        depth=fusion_depth, num_heads=num_heads, layout="bert", tied_words=is_tied, matches=True
    )
    report = ImportReport(str(folder), len(rest) - len(ignored), (*ignored, *unused))
    return TextTower(text, fusion, ours, tokenizer, report)
