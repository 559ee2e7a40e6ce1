"""Families of `transformers` beyond CLIP and SigLIP, against `transformers` itself at toy size with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from harvest.interfaces import HarvestError
from harvest.model.folder import load_model, save_model
from harvest.model.importing.pretrained import load_any, load_pretrained
from harvest.model.inflation import as_teacher, as_video_model
from harvest.model.teacher import look, outputs

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import END, START, randomize, write_vocabulary, write_words

SHAPE = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 72, "num_attention_heads": 3}
VISION = SHAPE | {"image_size": 32, "patch_size": 8}
WORDS = SHAPE | {"vocab_size": 64, "max_position_embeddings": 20, "hidden_size": 36}
CLIP_TEXT = SHAPE | {
    "vocab_size": 600,
    "max_position_embeddings": 16,
    "bos_token_id": START,
    "eos_token_id": END,
}
ROBERTA = WORDS | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-5}


def image(theirs: Any, pixels: torch.Tensor) -> torch.Tensor:
    found = theirs.get_image_features(pixel_values=pixels)
    return F.normalize(getattr(found, "pooler_output", found), dim=-1)


def text(theirs: Any, ids: torch.Tensor, pad_id: int) -> torch.Tensor:
    mask = (ids != pad_id).long()
    found = theirs.get_text_features(input_ids=ids, attention_mask=mask)
    return F.normalize(getattr(found, "pooler_output", found), dim=-1)


def check_images(model: Any, wanted: torch.Tensor, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        found = model.encode_video(pixels[:, None]).pooled
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)
        video = as_video_model(model, num_frames=3)[0]
        still = video.encode_video(pixels[:, None].expand(-1, 3, -1, -1, -1)).pooled
        torch.testing.assert_close(still, wanted, atol=1e-5, rtol=0)


def write_letters(folder: Path, specials: tuple[str, str, str]) -> None:
    start, _, end = specials
    write_words(folder, [*specials, "<unk>"], "abcdefghijklmnop", f"{start} $A {end}")


PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXTS = ["a b c", "d", "a b c d e f g h i j k l m n o p a b c d e f", "a"]


def dual(vision: Any, words: Any) -> Any:
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, words, projection_dim=24
    )
    return transformers.VisionTextDualEncoderModel(config)


def siglip_whole() -> Any:
    return transformers.SiglipVisionConfig(**VISION)


DINOV2 = {key: value for key, value in VISION.items() if key != "intermediate_size"}
FAMILIES: dict[str, Any] = {
    "chinese_clip": lambda: transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(text_config=WORDS, vision_config=VISION, projection_dim=24)
    ),
    "altclip": lambda: transformers.AltCLIPModel(
        transformers.AltCLIPConfig(
            text_config=ROBERTA | {"project_dim": 40}, vision_config=VISION, projection_dim=24
        )
    ),
    "clip and bert": lambda: dual(
        transformers.CLIPVisionConfig(**VISION), transformers.BertConfig(**WORDS, pad_token_id=1)
    ),
    "clip and roberta": lambda: dual(
        transformers.CLIPVisionConfig(**VISION), transformers.RobertaConfig(**ROBERTA)
    ),
    "dinov2 and xlm-roberta": lambda: dual(
        transformers.Dinov2Config(**DINOV2), transformers.XLMRobertaConfig(**ROBERTA)
    ),
    "siglip and bert": lambda: dual(siglip_whole(), transformers.BertConfig(**WORDS, pad_token_id=1)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_towers_and_texts(tmp_path: Path, name: str) -> None:
    theirs = FAMILIES[name]().eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    write_letters(tmp_path / "theirs", ("<s>", "<pad>", "</s>"))
    model, tokenizer, report = load_pretrained(tmp_path / "theirs")
    ids = tokenizer(TEXTS)
    assert (report.used and not report.ignored) or name.startswith("dinov2")
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(ids).pooled, text(theirs, ids, 1), atol=2e-6, rtol=0)
        check_images(model, image(theirs, PIXELS), PIXELS)
    save_model(tmp_path / "ours", model, tokenizer)
    load_model(tmp_path / "ours")  # whose fingerprint is checked


def test_chinese_clip_from_its_vocabulary(tmp_path: Path) -> None:
    theirs = FAMILIES["chinese_clip"]().eval()
    theirs.save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "狗", "跑", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = load_pretrained(tmp_path)[1]
    assert tokenizer(["狗跑"])[0, :5].tolist() == [2, 5, 6, 3, 0]


@pytest.mark.parametrize("name", ["clipseg", "xclip"])
def test_clip_s_towers_of_other_models(tmp_path: Path, name: str) -> None:
    sizes = {"text_config": CLIP_TEXT, "projection_dim": 24}
    if name == "clipseg":
        theirs: Any = transformers.CLIPSegForImageSegmentation(
            transformers.CLIPSegConfig(
                **sizes,
                vision_config=VISION,
                extract_layers=[0],
                reduce_dim=16,
                decoder_num_attention_heads=2,
            )
        )
    else:
        mit = {"mit_hidden_size": 24, "mit_intermediate_size": 24, "mit_num_attention_heads": 2}
        theirs = transformers.XCLIPModel(
            transformers.XCLIPConfig(**sizes, vision_config=VISION | mit, prompt_num_attention_heads=2)
        )
    theirs.eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    write_vocabulary(tmp_path)
    model, tokenizer, report = load_pretrained(tmp_path)
    assert report.ignored and any("left out" in note for note in report.notes)
    ids = tokenizer(["ab", "abc def", "a b c d e f g h i j k l m n o p q"])
    own = theirs.clip if name == "clipseg" else theirs
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(ids).pooled, text(own, ids, -1), atol=2e-6, rtol=0)
        if name == "clipseg":
            check_images(model, image(own, PIXELS), PIXELS)
            return
        plain = transformers.CLIPModel(transformers.CLIPConfig(**sizes, vision_config=VISION)).eval()
        renamed = {k.replace("pre_layernorm", "pre_layrnorm"): v for k, v in own.state_dict().items()}
        missing = plain.load_state_dict(renamed, strict=False).missing_keys
        assert not missing, missing
        check_images(model, image(plain, PIXELS), PIXELS)


ALONE: dict[str, Any] = {
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)),
    "clip projected": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**VISION, projection_dim=24)
    ),
    "siglip": lambda: transformers.SiglipVisionModel(siglip_whole()),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2)),
    "dinov2 gated": lambda: transformers.Dinov2Model(
        transformers.Dinov2Config(**DINOV2, use_swiglu_ffn=True)
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_image_towers_alone(tmp_path: Path, name: str) -> None:
    theirs = ALONE[name]().eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    model, tokenizer, _ = load_any(tmp_path)
    assert tokenizer is None and model.config.text is None
    with torch.no_grad():
        found = theirs(pixel_values=PIXELS)
        wanted = found.image_embeds if name == "clip projected" else found.pooler_output
        check_images(model, F.normalize(wanted, dim=-1), PIXELS)
    looks, weights = look(as_teacher(model), PIXELS[:, None], layers=(0, 1), attention=True)
    last = outputs(as_teacher(model), looks, layers=(0, 1), places=None)[1]
    assert weights is not None and weights.shape == (3, 16)
    if name != "clip projected":
        skip = 0 if name == "siglip" else 1
        states = found.last_hidden_state[:, skip:]
        wanted = model.video.norm_post(states) if name == "clip" else states
        torch.testing.assert_close(last, wanted, atol=2e-5, rtol=0)
    with pytest.raises(HarvestError, match="no text tower"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "groupvit"}, "'groupvit' is not supported: its image tower merges patches"),
        (
            {"model_type": "vision-text-dual-encoder", "vision_config": {"model_type": "vit"}},
            "image tower, of model_type 'vit'",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(HarvestError, match=message):
        load_any(tmp_path)
