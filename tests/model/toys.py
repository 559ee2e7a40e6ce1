"""Models of toy size, every parameter random, written as other libraries write them."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from harvest.model.fusion import FusionConfig
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, train_tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

SHARED = Path(__file__).resolve().parents[3] / "shared"
START, END = 598, 599
HEAD_WIDTH = 16


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Every parameter, also biases and norms, so that a wrong one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.2 * noise)


def write_vocabulary(path: Path, *, size: int = 600) -> Path:
    """Merges in OpenAI's file format, that give `size` words: the last two start and end a text."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [f"{a} {b}" for a in letters for b in letters][: size - 514]
    with gzip.open(path / "bpe_simple_vocab_16e6.txt.gz", "wt") as lines:
        lines.write("\n".join(["#version: 0.2", *pairs]))
    return path / "bpe_simple_vocab_16e6.txt.gz"


def clip_folder(folder: Path, *, activation: str = "quick_gelu", scale: float = 3.0) -> CLIPModel:
    shape = {"num_hidden_layers": 2, "hidden_act": activation}
    model = CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": 600,
                "hidden_size": 32,
                "intermediate_size": 72,
                "num_attention_heads": 2,
                "max_position_embeddings": 16,
                "bos_token_id": START,
                "eos_token_id": END,
                **shape,
            },
            vision_config={
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_attention_heads": 3,
                "image_size": 32,
                "patch_size": 8,
                **shape,
            },
            projection_dim=24,
        )
    ).eval()
    randomize(model)
    with torch.no_grad():
        model.logit_scale.fill_(scale)
    model.save_pretrained(folder)
    write_vocabulary(folder)
    return model


def openai_state_dict(clip: CLIPModel) -> dict[str, Tensor]:
    """A `transformers` CLIP under OpenAI's names."""
    theirs = clip.state_dict()
    new = {
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T,
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T,
        "logit_scale": theirs["logit_scale"],
    }
    for kind in ("weight", "bias"):
        new[f"visual.ln_pre.{kind}"] = theirs[f"vision_model.pre_layrnorm.{kind}"]
        new[f"visual.ln_post.{kind}"] = theirs[f"vision_model.post_layernorm.{kind}"]
        new[f"ln_final.{kind}"] = theirs[f"text_model.final_layer_norm.{kind}"]
        for ours, tower in (("visual.", "vision_model"), ("", "text_model")):
            for i in range(2):
                layer, block = f"{tower}.encoder.layers.{i}", f"{ours}transformer.resblocks.{i}"
                packed = [theirs[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                new[f"{block}.attn.in_proj_{kind}"] = torch.cat(packed)
                for a, b in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    new[f"{block}.{a}.{kind}"] = theirs[f"{layer}.{b}.{kind}"]
    return {name: tensor.clone().contiguous() for name, tensor in new.items()}


def siglip_folder(folder: Path, *, image_size: int = 32) -> SiglipModel:
    shape = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 72, "num_attention_heads": 3}
    model = SiglipModel(
        SiglipConfig(
            text_config={
                "vocab_size": 60,
                "max_position_embeddings": 12,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "projection_size": 48,
                **shape,
            },
            vision_config={"image_size": image_size, "patch_size": 8, **shape},
        )
    ).eval()
    randomize(model)
    with torch.no_grad():
        model.logit_scale.fill_(4.765)  # the released models' is above CLIP's limit of 100
        model.logit_bias.fill_(-12.9)
    model.save_pretrained(folder)
    words = [*"abcdefghijklmnopqrstuvwxyz", "red", "circle", "moves", "to", "the", "left"]
    write_words(folder, ["<unk>", "</s>"], words, "$A </s>")
    return model


def write_words(folder: Path, specials: Sequence[str], words: Iterable[str], template: str) -> None:
    """A tokenizer of whole words behind its special tokens, which a template such as "<s> $A </s>" puts around a text."""
    ids = {word: number for number, word in enumerate([*specials, *words])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.add_special_tokens(list(specials))
    around = [(special, ids[special]) for special in template.split() if special in specials]
    core.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=around)
    core.save(str(folder / "tokenizer.json"))


def toy_model(*, fusion: bool = False, num_frames: int = 4) -> tuple[VideoTextModel, Tokenizer]:
    tokenizer = train_tokenizer(["a red circle moves to the left"] * 3, vocab_size=300, context_length=12)
    size = {"width": 48, "depth": 2, "num_heads": 3, "mlp_width": 96, "embed_dim": 24}
    video = VideoEncoderConfig(image_size=16, patch_size=4, num_frames=num_frames, **size)
    text = TextEncoderConfig(
        vocab_size=tokenizer.core.get_vocab_size(), context_length=12, start_id=0, end_id=1, pad_id=2, **size
    )
    config = ModelConfig(
        video=video, text=text, fusion=FusionConfig(depth=1, num_heads=3) if fusion else None
    )
    model = VideoTextModel(config)
    randomize(model)
    return model.eval(), tokenizer


def with_time_positions(model: VideoTextModel, **settings: object) -> VideoTextModel:
    """The same sizes with other settings of the video tower, every parameter random."""
    config = dataclasses.replace(model.config, video=dataclasses.replace(model.config.video, **settings))
    other = VideoTextModel(config)
    randomize(other)
    return other.eval()
