"""OpenCLIP's folders against `open_clip` itself at toy size, where it is installed; without it, what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from experiments.towers import stand_in
from harvest.interfaces import HarvestError, Packed
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.inflation import as_teacher
from harvest.model.teacher import look, outputs

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import clip_folder, openai_state_dict, randomize, siglip_folder, write_vocabulary, write_words

needs_open_clip = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("open_clip", "timm"))),
    reason="open_clip and timm are not installed",
)
VISION = {"image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2}


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> Any:
    if importlib.util.find_spec("torchvision") is None:
        stand_in(partial(monkeypatch.setitem, sys.modules))
    import open_clip

    return open_clip


def write_folder(folder: Path, model: torch.nn.Module, config: dict[str, Any]) -> None:
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


def check(model: Any, theirs: Any, *, size: int, length: int, vocab: int, end: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, size, size, generator=generator)
    ids = torch.randint(3, vocab - 2, (4, length), generator=generator)
    if end is not None:
        for row, last in enumerate((3, 9, length - 1, 2)):
            ids[row, last:] = end
    with torch.no_grad():
        wanted = theirs.encode_image(images, normalize=True), theirs.encode_text(ids, normalize=True)
        found = model.encode_video(images[:, None]).pooled, model.encode_text(ids).pooled
        still = model.encode_video(images[:, None].expand(-1, 3, -1, -1, -1)).pooled
    for ours, peer in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, peer, atol=2e-6, rtol=0)
    torch.testing.assert_close(still, wanted[0], atol=1e-5, rtol=0)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "quick_gelu": ({}, {}, {"quick_gelu": True}),
    "custom_text": ({}, {}, {"custom_text": True}),
    "logit_bias": ({}, {}, {"custom_text": True, "init_logit_bias": -10.0}),
    "patch_dropout": ({"patch_dropout": 0.5}, {}, {}),
    "layer_scale": ({"ls_init_value": 0.1}, {"ls_init_value": 0.1}, {}),
    "mean": ({"pool_type": "avg"}, {}, {}),
    "clipa": (
        {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"pool_type": "last", "no_causal_mask": True},
        {},
    ),
    "odd_size": ({"image_size": 36}, {}, {}),
    "first": ({}, {"pool_type": "first", "no_causal_mask": True}, {}),
    "no_projection": ({}, {"proj_type": "none"}, {"custom_text": True, "embed_dim": 32}),
    "tanh": (
        {},
        {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}},
        {"custom_text": True},
    ),
}


@needs_open_clip
@pytest.mark.parametrize("name", VARIANTS)
def test_towers_against_open_clip(open_clip: Any, tmp_path: Path, name: str) -> None:
    vision, text, more = VARIANTS[name]
    config = {"embed_dim": 24, "vision_cfg": VISION | vision, "text_cfg": TEXT | text, **more}
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    build = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.model.CLIP
    theirs = build(**settings).eval()
    randomize(theirs)
    write_folder(tmp_path, theirs, config)
    write_vocabulary(tmp_path)
    model, _, report = load_pretrained(tmp_path)
    assert report.used == len(theirs.state_dict())
    end = 599 if text.get("pool_type") is None else None
    check(model, theirs, size=config["vision_cfg"]["image_size"], length=16, vocab=600, end=end)


@needs_open_clip
def test_texts_read_at_another_tokenizer_s_end(open_clip: Any, tmp_path: Path) -> None:
    """MetaCLIP 2: the end is not the highest id, and the vocabulary is a tokenizer.json."""
    siglip_folder(tmp_path)
    core = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.add_special_tokens(["<s>", "<pad>"])
    start, end = core.token_to_id("<s>"), core.token_to_id("</s>")
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    core.save(str(tmp_path / "tokenizer.json"))
    text = TEXT | {"vocab_size": 60, "hf_tokenizer_name": "a/b", "pool_type": "eos", "eos_id": end}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": text}
    theirs = open_clip.model.CLIP(**config).eval()
    randomize(theirs)
    write_folder(tmp_path, theirs, config)
    (tmp_path / "config.json").unlink()
    model, tokenizer, _ = load_pretrained(tmp_path)
    assert model.config.text_tower.end_id == end and model.config.text_tower.start_id == start
    ids = tokenizer(["red circle", "moves to the left"])
    with torch.no_grad():
        wanted = theirs.encode_text(ids, normalize=True)
        torch.testing.assert_close(model.encode_text(ids).pooled, wanted, atol=2e-6, rtol=0)


class Peer(torch.nn.Module):
    """A tower of timm and a text tower of OpenCLIP under the names of its `CustomTextCLIP`."""

    def __init__(self, trunk: torch.nn.Module, text: torch.nn.Module, *, bias: bool = False) -> None:
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.trunk = trunk
        self.text = text
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.7))
        if bias:
            self.logit_bias = torch.nn.Parameter(torch.tensor(-12.0))

    def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.normalize(self.visual.trunk(images), dim=-1)

    def encode_text(self, ids: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.nn.functional.normalize(self.text(ids), dim=-1)


@needs_open_clip
@pytest.mark.parametrize("version", [1, 2])
def test_siglip_as_timm_has_it(open_clip: Any, tmp_path: Path, version: int) -> None:
    import timm

    act = torch.nn.GELU(approximate="tanh" if version == 2 else "none")
    sizes = {"context_length": 12, "vocab_size": 60, "width": 48, "heads": 3, "layers": 2}
    words = open_clip.transformer.TextTransformer(
        **sizes,
        output_dim=48,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        act_layer=lambda: act,
    )
    trunk = timm.create_model(
        "vit_base_patch16_siglip_224", num_classes=0, img_size=38, embed_dim=48, depth=2
    )
    siglip_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    theirs = Peer(trunk, words, bias=True).eval()
    randomize(theirs)
    text = sizes | {
        "no_causal_mask": True,
        "hf_tokenizer_name": "timm/x",
        "pool_type": "last",
        "proj_bias": True,
        "norm_kwargs": {"eps": 1e-6},
    }
    if version == 2:
        text["act_kwargs"] = {"approximate": "tanh"}
    vision = {
        "timm_model_name": "vit_base_patch16_siglip_38",
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": 38,
    }
    write_folder(
        tmp_path, theirs, {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    )
    model, _, report = load_pretrained(tmp_path)
    assert report.used == len(theirs.state_dict())
    assert (
        model.config.video.fit == "squash" and model.config.video.num_patches == 4 and model.config.score_bias
    )
    check(model, theirs, size=38, length=12, vocab=60, end=None)


TRUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "eva02_base_patch16_clip_224": ("token", {"embed_dim": 96}),
    "eva02_large_patch14_clip_336": ("token", {"embed_dim": 128, "img_size": 56}),
    "eva02_enormous_patch14_clip_224": ("token", {"embed_dim": 128, "img_size": 56}),
    "eva_giant_patch14_224": ("token", {"embed_dim": 128, "img_size": 56}),
    "vit_pe_core_base_patch16_224": ("map", {"embed_dim": 96}),
    "vit_pe_core_tiny_patch16_384": ("map", {"embed_dim": 48}),
    "vit_pe_core_gigantic_patch14_448": ("map", {"embed_dim": 128, "img_size": 56}),
    "vit_large_patch14_clip_224": ("token", {"embed_dim": 128, "img_size": 60}),
    "vit_base_patch16_clip_quickgelu_224": ("token", {"embed_dim": 96}),
    "vit_medium_patch16_gap_256": ("avg", {"embed_dim": 64}),
}


@needs_open_clip
@pytest.mark.parametrize("name", TRUNKS)
def test_towers_of_timm(open_clip: Any, tmp_path: Path, name: str) -> None:
    import timm

    pool, how = TRUNKS[name]
    size = how.setdefault("img_size", 64)
    trunk = timm.create_model(name, num_classes=24, global_pool=pool, depth=2, **how)
    words = open_clip.transformer.TextTransformer(**TEXT, output_dim=24)
    theirs = Peer(trunk, words).eval()
    randomize(theirs)
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": None, "image_size": size}
    write_folder(
        tmp_path, theirs, {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
    )
    write_vocabulary(tmp_path)
    model, _, report = load_pretrained(tmp_path)
    assert report.used == len(theirs.state_dict())
    check(model, theirs, size=size, length=16, vocab=600, end=599)
    chosen_tubelets(model, size)


def chosen_tubelets(model: Any, size: int) -> None:
    """All tubelets named, or packed behind each other, are as all without names; teacher and tower look alike."""
    video = torch.randn(2, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    every = torch.arange(model.num_tubelets(video)).expand(2, -1)
    some = every[:, 1::2]
    with torch.no_grad():
        whole, part = model.encode_video(video).pooled, model.encode_video(video, some)
        torch.testing.assert_close(model.encode_video(video, every).pooled, whole, atol=1e-5, rtol=0)
        groups = ((1, every.shape[1]), (1, some.shape[1]))
        packed = Packed(torch.cat([every[0], some[1]]), torch.ones(0), torch.tensor([0, 1]), groups)
        packed = packed._replace(runs=torch.ones_like(packed.keep))
        both = model.encode_video(video, packed).pooled
    torch.testing.assert_close(both, torch.stack([whole[0], part.pooled[1]]), atol=1e-5, rtol=0)
    depth = model.config.video.depth - 1
    if model.config.video.pooled_width != model.config.video.width:
        with pytest.raises(HarvestError, match="as wide as"):
            as_teacher(model)
        return
    if model.config.video.pooling == "mean":
        return  # nothing whose attention could be asked for
    teacher = as_teacher(model)
    looks, weights = look(teacher, video, layers=(depth,), attention=True)
    seen = model.encode_video(video, layers=(depth,), attention=True)
    torch.testing.assert_close(weights, seen.attention, atol=1e-6, rtol=0)
    found = outputs(teacher, looks, layers=(depth,), places=some)[0]
    with torch.no_grad():
        torch.testing.assert_close(found, model.video.project(seen.layers[0])[:, 1::2], atol=1e-5, rtol=0)


@needs_open_clip
@pytest.mark.parametrize("same_width", [False, True])
def test_coca_s_contrastive_towers(open_clip: Any, tmp_path: Path, same_width: bool) -> None:
    embed_dim = 48 if same_width else 24
    vision = VISION | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    vision["attn_pooler_queries"] = 5
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    config["multimodal_cfg"] = {**TEXT, "attn_pooler_heads": 2}
    theirs = open_clip.coca_model.CoCa(
        **{key: value for key, value in config.items() if key != "custom_text"}
    ).eval()
    randomize(theirs)
    write_folder(tmp_path, theirs, config)
    write_vocabulary(tmp_path)
    model, tokenizer, report = load_pretrained(tmp_path)
    written = sum(name.startswith("text_decoder.") for name in theirs.state_dict())
    assert written and len(report.ignored) == written
    ids = tokenizer(["ab", "abc def ghi", "a b c d e f g h i j k l m n o p q r s t", "abcdefg"])
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for rows in (ids, ids[:2], ids[2:3]):
        with torch.no_grad():
            wanted = theirs.encode_text(rows)
            torch.testing.assert_close(model.encode_text(rows).pooled, wanted, atol=2e-6, rtol=0)
    with torch.no_grad():
        found = model.encode_video(images[:, None]).pooled
        torch.testing.assert_close(found, theirs.encode_image(images), atol=2e-6, rtol=0)
    chosen_tubelets(model, 32)


@needs_open_clip
@pytest.mark.parametrize("projection", ["mlp", "linear"])
def test_texts_of_xlm_roberta(open_clip: Any, tmp_path: Path, projection: str) -> None:
    from transformers import XLMRobertaConfig

    sizes = XLMRobertaConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=72,
        max_position_embeddings=20,
        layer_norm_eps=1e-5,  # as released
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    texts = open_clip.hf_model.HFTextEncoder(
        "xlm-roberta-base", 24, config=sizes, pooler_type="mean_pooler", proj_type=projection
    )
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    theirs = open_clip.model.CustomTextCLIP(**config).eval()
    theirs.text = texts.eval()
    del theirs.text.transformer.pooler
    theirs.text.transformer.pooler = None
    randomize(theirs)
    config["text_cfg"] = {"hf_model_name": "xlm-roberta-base", "hf_pooler_type": "mean_pooler"}
    write_folder(tmp_path, theirs, config)
    write_words(tmp_path, ["<s>", "<pad>", "</s>", "<unk>"], "abcdefghijklmnop", "<s> $A </s>")
    model, tokenizer, _ = load_pretrained(tmp_path)
    ids = tokenizer(["a b c", "d", "a b c d e f g h i j k l m n o p a b c d e f"])
    assert ids.shape == (3, 18)
    with torch.no_grad():
        wanted = theirs.encode_text(ids, normalize=True)
        torch.testing.assert_close(model.encode_text(ids).pooled, wanted, atol=2e-6, rtol=0)


def written(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "hf").mkdir()
    folder = tmp_path / "oc"
    folder.mkdir()
    reference = clip_folder(tmp_path / "hf", activation="gelu")
    (tmp_path / "hf" / "bpe_simple_vocab_16e6.txt.gz").rename(folder / "bpe_simple_vocab_16e6.txt.gz")
    save_file(openai_state_dict(reference), folder / "open_clip_model.safetensors")
    sizes = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT} | config
    cfg = {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "resize_mode": "longest",
        "interpolation": "bilinear",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": cfg}))
    return folder


def test_how_pictures_become_squares_is_read(tmp_path: Path) -> None:
    video = load_pretrained(written(tmp_path))[0].config.video
    assert (video.fit, video.interpolation, video.pixel_mean) == ("pad", "bilinear", (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_cfg": TEXT | {"embed_cls": True}}, "embed_cls is True.* no cls_emb"),
        ({"vision_cfg": VISION | {"attentional_pool": True}}, "attentional_pool is True.* no visual"),
        ({"vision_cfg": VISION | {"attentional_pool": "parallel"}}, "'parallel' is not supported"),
        ({"text_cfg": TEXT | {"hf_model_name": "google/mt5-base"}}, "mt5-base with mean_pooler"),
        ({"vision_cfg": VISION | {"layers": [3, 4, 6, 3]}}, "ResNet"),
        ({"vision_cfg": {"timm_model_name": "convnext_base", "image_size": 224}}, "no plain patches"),
        ({"vision_cfg": {"timm_model_name": "vit_base_mci_224"}}, "begins with convolutions"),
        ({"vision_cfg": {"timm_model_name": "vit_relpos_medium_patch16_cls_224"}}, "relative to each other"),
        ({"vision_cfg": VISION | {"pool_type": "none"}}, "pool_type 'none'"),
        ({"vision_cfg": None}, "no vision_cfg"),
        ({"text_cfg": TEXT | {"heads": 0}}, "0 heads"),
        ({"vision_cfg": VISION | {"image_size": 64}}, "16 positions are not those of 64"),
    ],
)
def test_what_is_refused_says_why(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(HarvestError, match=message):
        load_pretrained(written(tmp_path, **config))
