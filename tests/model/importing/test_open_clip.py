"""OpenCLIP's folders against `open_clip` itself at toy size, where it is installed; without it, what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from harvest.interfaces import HarvestError
from harvest.model.importing.pretrained import load_pretrained

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import clip_folder, openai_state_dict, randomize, siglip_folder, write_vocabulary

needs_open_clip = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("open_clip", "timm"))),
    reason="open_clip and timm are not installed",
)
VISION = {"image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2}


class _Anything(types.ModuleType):
    """Stands in for torchvision, which OpenCLIP imports for training and whose install replaces PyTorch."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        inner = sys.modules.get(f"{self.__name__}.{name}")
        return inner or type(
            name, (), {"BILINEAR": 2, "BICUBIC": 3, "LANCZOS": 1, "HAMMING": 5, "BOX": 4, "NEAREST": 0}
        )


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> Any:
    if importlib.util.find_spec("torchvision") is None:
        names = (
            "",
            ".transforms",
            ".transforms.functional",
            ".ops",
            ".ops.misc",
            ".transforms.v2",
            ".models",
        )
        for name in (*names, ".models.feature_extraction", ".datasets", ".io"):
            module = _Anything(f"torchvision{name}")
            module.__path__ = []
            monkeypatch.setitem(sys.modules, f"torchvision{name}", module)
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


@needs_open_clip
@pytest.mark.parametrize("version", [1, 2])
def test_siglip_as_timm_has_it(open_clip: Any, tmp_path: Path, version: int) -> None:
    from timm.models.vision_transformer import VisionTransformer

    class Theirs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = torch.nn.Module()
            self.visual.trunk = VisionTransformer(
                img_size=38,
                patch_size=16,
                embed_dim=48,
                depth=2,
                num_heads=12,
                class_token=False,
                global_pool="map",
                num_classes=0,
            )
            act = torch.nn.GELU(approximate="tanh" if version == 2 else "none")
            self.text = open_clip.transformer.TextTransformer(
                context_length=12,
                vocab_size=60,
                width=48,
                heads=3,
                layers=2,
                output_dim=48,
                no_causal_mask=True,
                pool_type="last",
                proj_bias=True,
                norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
                act_layer=lambda: act,
            )
            self.logit_scale = torch.nn.Parameter(torch.tensor(4.7))
            self.logit_bias = torch.nn.Parameter(torch.tensor(-12.0))

        def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
            return torch.nn.functional.normalize(self.visual.trunk(images), dim=-1)

        def encode_text(self, ids: torch.Tensor, normalize: bool) -> torch.Tensor:
            return torch.nn.functional.normalize(self.text(ids), dim=-1)

    siglip_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    theirs = Theirs().eval()
    randomize(theirs)
    text = {
        "context_length": 12,
        "vocab_size": 60,
        "width": 48,
        "heads": 3,
        "layers": 2,
        "no_causal_mask": True,
    }
    text |= {
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
        ({"text_cfg": TEXT | {"embed_cls": True}}, "embed_cls.*CoCa"),
        ({"text_cfg": TEXT | {"hf_model_name": "roberta-base"}}, "another library"),
        ({"vision_cfg": VISION | {"layers": [3, 4, 6, 3]}}, "ResNet"),
        ({"vision_cfg": {"timm_model_name": "convnext_base", "image_size": 224}}, "convnext_base"),
        ({"vision_cfg": VISION | {"pool_type": "none"}}, "pool_type 'none'"),
        ({"vision_cfg": None}, "no vision_cfg"),
        ({"text_cfg": TEXT | {"heads": 0}}, "0 heads"),
        ({"vision_cfg": VISION | {"image_size": 64}}, "16 positions are not those of 64"),
    ],
)
def test_what_is_refused_says_why(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(HarvestError, match=message):
        load_pretrained(written(tmp_path, **config))
