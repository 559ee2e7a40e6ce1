"""OpenCLIP's folders: open_clip_config.json says what the tensors do not. Its own ViTs, and SigLIP's as timm has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harvest.interfaces import HarvestError
from harvest.model.importing import preprocessing, siglip
from harvest.model.importing.assembly import ImportOptions, Loaded
from harvest.model.importing.clip import Stated, from_state_dict
from harvest.model.importing.files import read_folder
from harvest.model.importing.preprocessing import read_open_clip
from harvest.model.importing.vocabularies import clip_tokenizer, hub_tokenizer
from harvest.model.layers import Activation
from harvest.model.tokenizer import Tokenizer
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
VISION = WITHOUT_EFFECT | {"head_width", "no_ln_pre", "pool_type", "final_ln_after_pool"}
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
    "norm_kwargs",
    "act_kwargs",
    "hf_model_pretrained",
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
WHY_NOT = {
    "embed_cls": "CoCa's text tower reads a class token behind the words under a mask of its own",
    "attentional_pool": "CoCa's images are read by several queries",
    "hf_model_name": "its text tower is another library's",
}


def from_folder(folder: Path, source: str, options: ImportOptions) -> Loaded:
    """The model of a folder with open_clip_config.json and its weights."""
    path = folder / "open_clip_config.json"
    config = read_json(path)
    sizes = config.get("model_cfg", config)
    vision, text = (_part(sizes, name, path) for name in ("vision_cfg", "text_cfg"))
    _check_known(text, TEXT, path)
    name = str(vision.get("timm_model_name", ""))
    if name:
        _check_known(vision, TIMM, path)
        if "siglip" not in name or vision.get("timm_pool") != "map":
            raise HarvestError(
                f"{path}: the image tower {name} of timm is not supported: of timm's only SigLIP's are"
            )
        pixels, notes = read_open_clip(config, preprocessing.SIGLIP, path)
        tensors = read_folder(folder, FILES)
        return siglip.from_timm(tensors, source, folder, vision, text, pixels, notes, options)
    _check_known(vision, VISION, path)
    if isinstance(vision.get("layers"), list):
        raise HarvestError(f"{path}: a ResNet has no patches that could be left out: it is not supported")
    activation: Activation = "quick_gelu" if sizes.get("quick_gelu") else "gelu"
    pixels, notes = read_open_clip(config, preprocessing.CLIP, path)
    width, heads = text.get("width", 512), text.get("heads", 8)
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise HarvestError(f"{path}: text_cfg has {heads!r} heads for a width of {width!r}")
    stated = Stated(
        activation=activation,
        text_activation=text_activation(text, activation),
        head_width=vision.get("head_width", 64),
        text_head_width=width // heads,
        text_eps=text.get("norm_kwargs", {}).get("eps", 1e-5),
        video_pooling=_known(vision, "pool_type", {"tok": "prefix", "avg": "mean"}, "tok", path),
        norm_after_pooling=bool(vision.get("final_ln_after_pool")),
        text_pooling=_known(
            text,
            "pool_type",
            {"argmax": "end", "eos": "end", "last": "last", "first": "first"},
            "argmax",
            path,
        ),
        causal=not text.get("no_causal_mask", False),
        image_size=vision.get("image_size", 224),
        preprocessing=pixels,
        notes=(*notes, f"activation {activation}, from open_clip_config.json"),
    )
    tensors = read_folder(folder, FILES)
    return from_state_dict(
        tensors,
        source,
        options,
        stated,
        tokenizer_of=lambda length: _tokenizer(folder, text, options, length),
    )


def _tokenizer(folder: Path, text: Mapping[str, Any], options: ImportOptions, length: int) -> Tokenizer:
    if "hf_tokenizer_name" in text:
        return hub_tokenizer(folder, options.vocabulary, length)
    return clip_tokenizer(folder, options.vocabulary, length)


def text_activation(text: Mapping[str, Any], default: Activation) -> Activation:
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
        why = [WHY_NOT[name] for name in unknown if name in WHY_NOT]
        raise HarvestError(
            f"{path} asks for what is not supported: {', '.join(unknown)}"
            + (f" ({'; '.join(why)})" if why else "")
        )


def _known(part: Mapping[str, Any], name: str, known: Mapping[str, Any], default: str, path: Path) -> Any:
    value = part.get(name, default)
    if value not in known:
        raise HarvestError(f"{path}: {name} {value!r} is not supported, only {', '.join(known)}")
    return known[value]
