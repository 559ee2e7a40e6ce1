"""SigLIP and SigLIP 2, as `transformers` writes them: an image model with a pooling query.

SigLIP 2's NaFlex models are read at the square grid that their positions have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.importing.assembly import ImportOptions, Layout, Loaded, assemble, tower_sizes
from harvest.model.importing.clip import TRANSFORMERS_BLOCK, read_sizes
from harvest.model.importing.files import read_folder
from harvest.model.importing.openai import score_rows
from harvest.model.importing.preprocessing import SIGLIP, Preprocessing, read_processor
from harvest.model.importing.tables import (
    Row,
    Table,
    flat_patches,
    layer_rows,
    packed_attention_rows,
    stack_rows,
)
from harvest.model.importing.vocabularies import siglip_tokenizer
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


def siglip_video_rows(v: str, depth: int, *, patch_size: int, naflex: bool = False) -> Table:
    """`transformers.SiglipVisionModel`, which SigLIP 2 of fixed resolution uses too, or NaFlex's, under a prefix."""

    def flat(weight: Tensor) -> Tensor:  # NaFlex multiplies pixels in the order (row, column, colour)
        return weight.view(-1, patch_size, patch_size, 3).permute(0, 3, 1, 2).flatten(1)

    return {
        **layer_rows("video.patches", f"{v}embeddings.patch_embedding.{{}}"),
        "video.patches.weight": Row(
            (f"{v}embeddings.patch_embedding.weight",), flat if naflex else flat_patches
        ),
        "video.place_positions": Row((f"{v}embeddings.position_embedding.weight",)),
        **stack_rows("video.blocks", f"{v}encoder.layers", depth, TRANSFORMERS_BLOCK),
        **layer_rows("video.norm_post", f"{v}post_layernorm.{{}}"),
        "video.pool.probe": Row((f"{v}head.probe",), lambda probe: probe.flatten()),
        **packed_attention_rows("video.pool.attention", f"{v}head.attention"),
        **layer_rows("video.pool.norm", f"{v}head.layernorm.{{}}"),
        **layer_rows("video.pool.mlp.up", f"{v}head.mlp.fc1.{{}}"),
        **layer_rows("video.pool.mlp.down", f"{v}head.mlp.fc2.{{}}"),
    }


def siglip_video(
    sizes: Mapping[str, Any], pixels: Preprocessing, source: str, *, image_size: int, embed_dim: int | None
) -> VideoEncoderConfig:
    """The image tower of sizes as `transformers` calls them; `embed_dim` None: without a projection, as SigLIP's is."""
    return VideoEncoderConfig(
        image_size=image_size,
        patch_size=sizes["patch_size"],
        num_frames=1,
        prefix="none",
        pooling="attention",
        pre_norm=False,
        patch_bias=True,
        projection=embed_dim is not None,
        **pixels.fields,
        **tower_sizes(sizes, embed_dim or sizes["hidden_size"], source),
    )


def _text_rows(t: str, depth: int) -> Table:
    return {
        "text.words.weight": Row((f"{t}.embeddings.token_embedding.weight",)),
        "text.positions": Row((f"{t}.embeddings.position_embedding.weight",)),
        **stack_rows("text.blocks", f"{t}.encoder.layers", depth, TRANSFORMERS_BLOCK),
        **layer_rows("text.norm_post", f"{t}.final_layer_norm.{{}}"),
        **layer_rows("text.projection", f"{t}.head.{{}}"),
    }


def from_transformers(folder: Path, source: str, config: dict[str, Any], options: ImportOptions) -> Loaded:
    """A folder of `transformers.SiglipModel` or `Siglip2Model`."""
    naflex = config["model_type"] == "siglip2"
    text, vision = read_sizes(config, DEFAULTS)
    pixels, notes = read_processor(folder, SIGLIP)
    embed_dim = text.get("projection_size", text["hidden_size"])
    if embed_dim != vision["hidden_size"]:
        raise HarvestError(f"{source}: texts are {embed_dim} wide, images {vision['hidden_size']}")
    tokenizer, end_id, note = siglip_tokenizer(folder, options.vocabulary, text["max_position_embeddings"])
    image_size = vision["image_size"]
    if naflex:
        image_size = vision["patch_size"] * math.isqrt(vision.get("num_patches", 256))
        note += f"; NaFlex at its square grid: {image_size} pixels, squashed"
        pixels = dataclasses.replace(pixels, fit="squash")
    layout = Layout(
        video=siglip_video(vision, pixels, source, image_size=image_size, embed_dim=None),
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
        table=lambda: {
            **siglip_video_rows(
                "vision_model.",
                vision["num_hidden_layers"],
                patch_size=vision["patch_size"],
                naflex=naflex,
            ),
            **_text_rows("text_model", text["num_hidden_layers"]),
            **score_rows(("logit_bias",)),
        },
        tokenizer=tokenizer,
        score_bias=True,
        notes=(*notes, note),
    )
    return assemble(layout, read_folder(folder), options, source=source)
