"""Rename tables of the image-text models that the field starts from: our name and the source's names of a tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harvest.model.weights import Row, Table, flat_patches, layer_rows, scalar

TRANSFORMERS_BLOCK = {
    "norm_attention": ("layer_norm1.{}",),
    "attention.qkv": ("self_attn.q_proj.{}", "self_attn.k_proj.{}", "self_attn.v_proj.{}"),
    "attention.out": ("self_attn.out_proj.{}",),
    "norm_mlp": ("layer_norm2.{}",),
    "mlp.up": ("mlp.fc1.{}",),
    "mlp.down": ("mlp.fc2.{}",),
}
OPENAI_BLOCK = {
    "norm_attention": ("ln_1.{}",),
    "attention.qkv": ("attn.in_proj_{}",),
    "attention.out": ("attn.out_proj.{}",),
    "norm_mlp": ("ln_2.{}",),
    "mlp.up": ("mlp.c_fc.{}",),
    "mlp.down": ("mlp.c_proj.{}",),
}


def _stack(target: str, source: str, depth: int, block: Mapping[str, tuple[str, ...]]) -> Table:
    table: Table = {}
    for i in range(depth):
        for ours, theirs in block.items():
            table |= layer_rows(f"{target}.{i}.{ours}", *(f"{source}.{i}.{name}" for name in theirs))
    return table


def _class_token(video: str, positions: str) -> Table:
    """The class token and its position are always added: they are one vector here."""
    return {
        "video.prefix": Row((video, positions), lambda token, table: token + table[0]),
        "video.place_positions": Row((positions,), lambda table: table[1:]),
    }


def clip_table(video_depth: int, text_depth: int) -> Table:
    """`transformers.CLIPModel`."""
    v, t = "vision_model", "text_model"
    return {
        **_class_token(f"{v}.embeddings.class_embedding", f"{v}.embeddings.position_embedding.weight"),
        "video.patches.weight": Row((f"{v}.embeddings.patch_embedding.weight",), flat_patches),
        **layer_rows("video.norm_pre", f"{v}.pre_layrnorm.{{}}"),
        **_stack("video.blocks", f"{v}.encoder.layers", video_depth, TRANSFORMERS_BLOCK),
        **layer_rows("video.norm_post", f"{v}.post_layernorm.{{}}"),
        "video.projection.weight": Row(("visual_projection.weight",)),
        "text.words.weight": Row((f"{t}.embeddings.token_embedding.weight",)),
        "text.positions": Row((f"{t}.embeddings.position_embedding.weight",)),
        **_stack("text.blocks", f"{t}.encoder.layers", text_depth, TRANSFORMERS_BLOCK),
        **layer_rows("text.norm_post", f"{t}.final_layer_norm.{{}}"),
        "text.projection.weight": Row(("text_projection.weight",)),
        "log_scale": Row(("logit_scale",), scalar),
    }


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
        **_stack("video.blocks", f"{v}.encoder.layers", video_depth, TRANSFORMERS_BLOCK),
        **layer_rows("video.norm_post", f"{v}.post_layernorm.{{}}"),
        "video.pool.probe": Row((f"{v}.head.probe",), lambda probe: probe.flatten()),
        **layer_rows("video.pool.attention.out", f"{v}.head.attention.out_proj.{{}}"),
        **layer_rows("video.pool.norm", f"{v}.head.layernorm.{{}}"),
        **layer_rows("video.pool.mlp.up", f"{v}.head.mlp.fc1.{{}}"),
        **layer_rows("video.pool.mlp.down", f"{v}.head.mlp.fc2.{{}}"),
        "text.words.weight": Row((f"{t}.embeddings.token_embedding.weight",)),
        "text.positions": Row((f"{t}.embeddings.position_embedding.weight",)),
        **_stack("text.blocks", f"{t}.encoder.layers", text_depth, TRANSFORMERS_BLOCK),
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


def openai_table(video_depth: int, text_depth: int, *, video: str = "visual.", text: str = "") -> Table:
    """OpenAI's names, which OpenCLIP and, with other prefixes, ViCLIP use too."""
    return {
        **_class_token(f"{video}class_embedding", f"{video}positional_embedding"),
        "video.patches.weight": Row((f"{video}conv1.weight",), flat_patches),
        **layer_rows("video.norm_pre", f"{video}ln_pre.{{}}"),
        **_stack("video.blocks", f"{video}transformer.resblocks", video_depth, OPENAI_BLOCK),
        **layer_rows("video.norm_post", f"{video}ln_post.{{}}"),
        "video.projection.weight": Row((f"{video}proj",), lambda matrix: matrix.transpose(0, 1)),
        "text.words.weight": Row((f"{text}token_embedding.weight",)),
        "text.positions": Row((f"{text}positional_embedding",)),
        **_stack("text.blocks", f"{text}transformer.resblocks", text_depth, OPENAI_BLOCK),
        **layer_rows("text.norm_post", f"{text}ln_final.{{}}"),
        "text.projection.weight": Row((f"{text}text_projection",), lambda matrix: matrix.transpose(0, 1)),
        "log_scale": Row(("logit_scale",), scalar),
    }


def viclip_table(video_depth: int, text_depth: int) -> Table:
    """ViCLIP's released checkpoints; its temperature is held above 0.01 before every use."""
    table = openai_table(video_depth, text_depth, video="vision_encoder.", text="text_encoder.")
    table["video.time_positions.table"] = Row(
        ("vision_encoder.temporal_positional_embedding",), lambda x: x[0]
    )
    table["log_scale"] = Row(("temp",), lambda temp: -temp.clamp(min=0.01).log().reshape(()))
    return table
