"""SigLIP, and SigLIP 2 of fixed resolution, as `transformers` writes them: an image model with a pooling query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing.assembly import ImportOptions, Layout, Loaded, assemble, tower_sizes
from harvest.model.importing.clip import TRANSFORMERS_BLOCK, read_pixels, read_sizes
from harvest.model.importing.files import read_folder
from harvest.model.importing.tables import Row, Table, flat_patches, layer_rows, scalar, stack_rows
from harvest.model.importing.vocabularies import siglip_tokenizer
from harvest.model.preprocessing import SIGLIP_PIXELS
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.video_encoder import VideoEncoderConfig

_TOWER: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "text": _TOWER | {"vocab_size": 32000, "max_position_embeddings": 64},
    "vision": _TOWER | {"image_size": 224, "patch_size": 16},
}
"""What `transformers` assumes where a config.json is silent; the released ones say almost nothing."""


def siglip_table(video_depth: int, text_depth: int) -> Table:
    """`transformers.SiglipModel`, which SigLIP 2 of fixed resolution uses too."""
    v, t = "vision_model", "text_model"

    def query(packed: Tensor) -> Tensor:
        return packed.chunk(3)[0]

    def key_value(packed: Tensor) -> Tensor:
        return packed[packed.shape[0] // 3 :]

    table = {
        **layer_rows("video.patches", f"{v}.embeddings.patch_embedding.{{}}"),
        "video.patches.weight": Row((f"{v}.embeddings.patch_embedding.weight",), flat_patches),
        "video.place_positions": Row((f"{v}.embeddings.position_embedding.weight",)),
        **stack_rows("video.blocks", f"{v}.encoder.layers", video_depth, TRANSFORMERS_BLOCK),
        **layer_rows("video.norm_post", f"{v}.post_layernorm.{{}}"),
        "video.pool.probe": Row((f"{v}.head.probe",), lambda probe: probe.flatten()),
        **layer_rows("video.pool.attention.out", f"{v}.head.attention.out_proj.{{}}"),
        **layer_rows("video.pool.norm", f"{v}.head.layernorm.{{}}"),
        **layer_rows("video.pool.mlp.up", f"{v}.head.mlp.fc1.{{}}"),
        **layer_rows("video.pool.mlp.down", f"{v}.head.mlp.fc2.{{}}"),
        "text.words.weight": Row((f"{t}.embeddings.token_embedding.weight",)),
        "text.positions": Row((f"{t}.embeddings.position_embedding.weight",)),
        **stack_rows("text.blocks", f"{t}.encoder.layers", text_depth, TRANSFORMERS_BLOCK),
        **layer_rows("text.norm_post", f"{t}.final_layer_norm.{{}}"),
        **layer_rows("text.projection", f"{t}.head.{{}}"),
        "log_scale": Row(("logit_scale",), scalar),
        "score_bias": Row(("logit_bias",), scalar),
    }
    for kind in ("weight", "bias"):
        packed = (f"{v}.head.attention.in_proj_{kind}",)
        table[f"video.pool.attention.query.{kind}"] = Row(packed, query)
        table[f"video.pool.attention.key_value.{kind}"] = Row(packed, key_value)
    return table


def from_transformers(folder: Path, source: str, config: dict[str, Any], options: ImportOptions) -> Loaded:
    """A folder of `transformers.SiglipModel`."""
    text, vision = read_sizes(config, DEFAULTS)
    pixels, notes = read_pixels(folder, SIGLIP_PIXELS)
    embed_dim = text.get("projection_size", text["hidden_size"])
    if embed_dim != vision["hidden_size"]:
        raise HarvestError(f"{source}: texts are {embed_dim} wide, images {vision['hidden_size']}")
    tokenizer, end_id, note = siglip_tokenizer(folder, options.vocabulary, text["max_position_embeddings"])
    layout = Layout(
        video=VideoEncoderConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            num_frames=1,
            prefix="none",
            pooling="attention",
            pre_norm=False,
            patch_bias=True,
            projection=False,
            pixel_mean=pixels[0],
            pixel_std=pixels[1],
            **tower_sizes(vision, embed_dim, source),
        ),
        text=TextEncoderConfig(
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            causal=False,
            pooling="last",
            projection_bias=True,
            start_id=None,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
            **tower_sizes(text, embed_dim, source),
        ),
        table=siglip_table(vision["num_hidden_layers"], text["num_hidden_layers"]),
        tokenizer=tokenizer,
        score_bias=True,
        notes=(*notes, note),
    )
    return assemble(layout, read_folder(folder), options, source=source)
