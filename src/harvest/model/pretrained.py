"""Image-text and video-text models made elsewhere become ours: one rename table a layout, and a strict report.

Every tensor of the source is used or listed as ignored, every one of ours is filled or listed as new; anything
else is an error that names both. Weights are read from safetensors or by `torch.load(weights_only=True)`: nothing
in a file is ever run.

Layouts: `transformers` folders (CLIP, SigLIP, SigLIP 2 of fixed resolution), OpenAI's and OpenCLIP's state dicts,
ViCLIP's checkpoints, UMT's (`pretrained_umt`). CLIP and SigLIP give an image model (`num_frames = 1`);
`as_video_model` inflates it.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import re
from pathlib import Path
from typing import Any, cast

import tokenizers
import torch
from torch import Tensor

from harvest.interfaces import HarvestError
from harvest.model.folder import load_model, load_strictly
from harvest.model.layers import Activation, resize_positions
from harvest.model.layouts import clip_table, openai_table, siglip_table, viclip_table
from harvest.model.pretrained_umt import load_umt
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, TokenizerConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import NO_TEXT_TOWER, ModelConfig, VideoTextModel
from harvest.model.weights import (
    CLIP_PIXELS,
    IMAGENET_PIXELS,
    SIGLIP_PIXELS,
    ImportReport,
    Pixels,
    read_folder,
    read_json,
    read_tensors,
    rename,
    stack_depth,
)

START, END = "<|startoftext|>", "<|endoftext|>"
NEW = {"video.time_positions.table", "text.mask_embedding"}


def load_pretrained(
    source: str | Path,
    *,
    image_size: int | None = None,
    activation: Activation | None = None,
    vocabulary: Path | None = None,
    head_width: int = 64,
    num_frames: int | None = None,
    offline: bool = False,
) -> tuple[VideoTextModel, Tokenizer, ImportReport]:
    """Open any supported model with a text tower, in fp32 and eval mode; load or fail with HarvestError.

    `source`: a Harvest model folder; a folder or hub name in the layout of `transformers` (`openai/clip-vit-base-patch16`,
    `google/siglip-base-patch16-224`) or of OpenCLIP; a file with a state dict in OpenAI's, OpenCLIP's, ViCLIP's or
    UMT's names. `image_size` resizes the positions in the frame. For files, which say neither: `activation` (default:
    QuickGELU, as OpenAI and ViCLIP), `head_width`, and `vocabulary`, a `bpe_simple_vocab_16e6.txt.gz`, a
    `tokenizer.json` or (UMT) BERT's `vocab.txt`, looked for beside the file by default. `num_frames` is for UMT's
    files, which say no number. `offline` asks the hub's local cache only.
    """
    model, tokenizer, report = load_any(
        source,
        image_size=image_size,
        activation=activation,
        vocabulary=vocabulary,
        head_width=head_width,
        num_frames=num_frames,
        offline=offline,
    )
    if tokenizer is None:
        raise HarvestError(f"{source}: {NO_TEXT_TOWER}")
    return model, tokenizer, report


def load_any(
    source: str | Path,
    *,
    image_size: int | None = None,
    activation: Activation | None = None,
    vocabulary: Path | None = None,
    head_width: int = 64,
    num_frames: int | None = None,
    offline: bool = False,
) -> tuple[VideoTextModel, Tokenizer | None, ImportReport]:
    """As `load_pretrained`, and models without a text tower, which have no tokenizer."""
    path = find_folder(source, offline=offline)
    if path.is_file():
        if activation is None and path.name.startswith("open_clip_"):
            raise HarvestError(
                f"{path}: a file of OpenCLIP does not say its activation. Give the folder with open_clip_config.json "
                "instead, or activation='gelu' (OpenCLIP's own default) or 'quick_gelu' (OpenAI's weights)."
            )
        tensors, notes = read_tensors(path)
        heads = (head_width, head_width)
        if any(name.endswith("encoder.patch_embed.proj.weight") for name in tensors):
            return load_umt(
                tensors,
                source=str(source),
                folder=path.parent,
                vocabulary=vocabulary,
                num_frames=num_frames,
                image_size=image_size,
                head_width=head_width,
                notes=notes,
            )
        if num_frames is not None:
            raise HarvestError(f"{path}: num_frames is for UMT's files; this one says its own")
        return _from_state_dict(
            tensors, str(source), path.parent, image_size, activation, vocabulary, heads, notes
        )
    if activation is not None or num_frames is not None:
        raise HarvestError(f"{path}: activation and num_frames are for single files; a folder says its own")
    config = read_json(path / "config.json")
    if "format" in config and isinstance(config.get("model"), dict):
        return _from_harvest(path, str(source), image_size)
    if "model_type" in config:
        return _from_transformers(path, str(source), config, image_size, vocabulary)
    if (path / "open_clip_config.json").is_file():
        return _from_open_clip(path, str(source), image_size, vocabulary)
    raise HarvestError(
        f"{path} is not a model folder that Harvest can read: expected config.json of Harvest or transformers, or "
        "open_clip_config.json. For a single weights file, give the path of the file."
    )


# --- one function a kind of source -------------------------------------------------------------------------------


def _assemble(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer,
    report: ImportReport,
    image_size: int | None,
) -> tuple[VideoTextModel, Tokenizer, ImportReport]:
    """Build the model, fill what is new, resize what was asked for, check the tokenizer against the text tower."""
    notes, text = list(report.notes), config.text_tower
    highest = max(tokenizer.core.get_vocab().values())
    if highest >= text.vocab_size:
        raise HarvestError(
            f"{report.source}: the tokenizer has ids up to {highest}, the text tower {text.vocab_size} words"
        )
    if text.pooling == "end" and tokenizer.core.encode("a").ids[-1] != text.end_id:
        raise HarvestError(
            f"{report.source}: the tokenizer does not end texts with {END}, where CLIP reads them"
        )
    if image_size is not None and image_size != config.video.image_size:
        if image_size % config.video.patch_size:
            raise HarvestError(
                f"image_size {image_size} is not a multiple of the patches' {config.video.patch_size}"
            )
        notes.append(f"positions resized from {config.video.image_size} to {image_size} pixels, bicubic")
        config = dataclasses.replace(config, video=dataclasses.replace(config.video, image_size=image_size))
        positions = tensors["video.place_positions"]
        tensors["video.place_positions"] = resize_positions(positions, config.video.num_patches)
    model = VideoTextModel(config)
    own = model.state_dict()
    new = tuple(sorted(NEW - tensors.keys()))
    for name in new:
        # A hidden word starts as the mean word; a time table of one frame as nothing.
        words = tensors["text.words.weight"]
        tensors[name] = words.mean(dim=0) if name == "text.mask_embedding" else torch.zeros_like(own[name])
    load_strictly(model, tensors, source=report.source)
    return model.eval(), tokenizer, dataclasses.replace(report, new=new, notes=tuple(notes))


def _from_harvest(
    folder: Path, source: str, image_size: int | None
) -> tuple[VideoTextModel, Tokenizer | None, ImportReport]:
    model, tokenizer = load_model(folder)
    tensors = model.state_dict()
    report = ImportReport(source, used=len(tensors))
    if image_size is None or image_size == model.config.video.image_size:
        return model, tokenizer, report
    if tokenizer is None or "video.place_positions" not in tensors:
        raise HarvestError(
            f"{source}: its positions cannot be resized from {model.config.video.image_size} pixels"
        )
    return _assemble(model.config, tensors, tokenizer, report, image_size)


CLIP_DEFAULTS = {
    "text": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}
SIGLIP_DEFAULTS = {
    "text": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}
"""What `transformers` assumes where a config.json is silent; the released SigLIP's say almost nothing."""

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def _from_transformers(
    folder: Path, source: str, config: dict[str, Any], image_size: int | None, vocabulary: Path | None
) -> tuple[VideoTextModel, Tokenizer, ImportReport]:
    family = config["model_type"]
    if family not in ("clip", "siglip"):
        raise HarvestError(
            f"{source}: model_type {family!r} is not supported, only 'clip' and 'siglip' (SigLIP 2 in its fixed "
            "resolutions is 'siglip' too)"
        )
    is_clip = family == "clip"
    defaults = CLIP_DEFAULTS if is_clip else SIGLIP_DEFAULTS
    sizes = {
        tower: defaults[tower]
        | (config.get(f"{tower}_config") or {})
        | (config.get(f"{tower}_config_dict") or {})
        for tower in ("text", "vision")
    }
    text, vision = sizes["text"], sizes["vision"]
    pixels, notes = _read_pixels(folder, CLIP_PIXELS if is_clip else SIGLIP_PIXELS)
    table = (clip_table if is_clip else siglip_table)(vision["num_hidden_layers"], text["num_hidden_layers"])
    tensors, ignored = rename(read_folder(folder), table, source=source)
    if is_clip:
        embed_dim = config.get("projection_dim", 512)
        tokenizer = _clip_tokenizer(folder, vocabulary, text["max_position_embeddings"])
        start_id, end_id = (_id_of(token, tokenizer.core, source) for token in (START, END))
        said = text.get("eos_token_id", 2)
        if said not in (
            2,
            end_id,
        ):  # 2 was written by mistake for years; transformers reads the highest id then
            raise HarvestError(
                f"{source}: config.json ends texts with id {said}, the tokenizer with {end_id}"
            )
    else:
        embed_dim = text.get("projection_size", text["hidden_size"])
        tokenizer, end_id, more = _siglip_tokenizer(folder, vocabulary, text["max_position_embeddings"])
        notes += more
    model_config = ModelConfig(
        video=VideoEncoderConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            num_frames=1,
            prefix="frame" if is_clip else "none",
            pooling="prefix" if is_clip else "attention",
            pre_norm=is_clip,
            patch_bias=not is_clip,
            projection=is_clip,
            pixel_mean=pixels[0],
            pixel_std=pixels[1],
            **_tower_sizes(vision, embed_dim, source),
        ),
        text=TextEncoderConfig(
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            causal=is_clip,
            pooling="end" if is_clip else "last",
            projection_bias=not is_clip,
            start_id=start_id if is_clip else None,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
            **_tower_sizes(text, embed_dim, source),
        ),
        score_bias=not is_clip,
    )
    if not is_clip and embed_dim != vision["hidden_size"]:
        raise HarvestError(f"{source}: texts are {embed_dim} wide, images {vision['hidden_size']}")
    used = len({name for row in table.values() for name in row.sources})
    report = ImportReport(source, used, ignored, notes=tuple(notes))
    return _assemble(model_config, tensors, tokenizer, report, image_size)


def _tower_sizes(sizes: dict[str, Any], embed_dim: int, source: str) -> dict[str, Any]:
    if sizes["hidden_act"] not in ACTIVATIONS:
        raise HarvestError(
            f"{source}: activation {sizes['hidden_act']!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    return {
        "width": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"],
        "num_heads": sizes["num_attention_heads"],
        "mlp_width": sizes["intermediate_size"],
        "embed_dim": embed_dim,
        "activation": ACTIVATIONS[sizes["hidden_act"]],
        "norm_eps": sizes["layer_norm_eps"],
    }


def _from_open_clip(
    folder: Path, source: str, image_size: int | None, vocabulary: Path | None
) -> tuple[VideoTextModel, Tokenizer, ImportReport]:
    config = read_json(folder / "open_clip_config.json")
    sizes = config.get("model_cfg", config)
    vision, text = sizes["vision_cfg"], sizes["text_cfg"]
    # What these say besides is a tower that we do not have; its names may still fit.
    known = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
    unknown = sorted(vision.keys() - known) + sorted(
        text.keys() - {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
    )
    if unknown:
        raise HarvestError(
            f"{source}: open_clip_config.json asks for what is not supported: {', '.join(unknown)}"
        )
    head_widths = (vision.get("head_width", 64), text["width"] // text["heads"])
    activation: Activation = "quick_gelu" if sizes.get("quick_gelu") else "gelu"
    files = [folder / f"open_clip_{name}" for name in ("model.safetensors", "pytorch_model.bin")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise HarvestError(f"{folder} has neither {files[0].name} nor {files[1].name}")
    tensors, notes = read_tensors(path)
    notes.append(f"activation {activation}, from open_clip_config.json")
    pixels = config.get("preprocess_cfg", {})
    mean_std = (tuple(pixels["mean"]), tuple(pixels["std"])) if "mean" in pixels else None
    return _from_state_dict(
        tensors,
        source,
        folder,
        image_size,
        activation,
        vocabulary,
        head_widths,
        notes,
        cast("Pixels | None", mean_std),
    )


def _from_state_dict(
    tensors: dict[str, Tensor],
    source: str,
    folder: Path,
    image_size: int | None,
    activation: Activation | None,
    vocabulary: Path | None,
    head_widths: tuple[int, int],
    notes: list[str],
    pixels: Pixels | None = None,
) -> tuple[VideoTextModel, Tokenizer, ImportReport]:
    """OpenAI's names, or ViCLIP's: the sizes are those of the tensors."""
    is_viclip = any(name.startswith("vision_encoder.") for name in tensors)
    if not is_viclip and not any(name.startswith("visual.transformer.") for name in tensors):
        raise HarvestError(
            f"{source} is in no known layout (OpenAI, OpenCLIP, ViCLIP, UMT). Its first tensors: {', '.join(list(tensors)[:6])}"
        )
    video_blocks, text_blocks = (
        ("vision_encoder.transformer.resblocks", "text_encoder.transformer.resblocks")
        if is_viclip
        else ("visual.transformer.resblocks", "transformer.resblocks")
    )
    table_of = viclip_table if is_viclip else openai_table
    video_depth, text_depth = stack_depth(tensors, video_blocks), stack_depth(tensors, text_blocks)
    table = table_of(video_depth, text_depth)
    ours, ignored = rename(tensors, table, source=source)
    tables = ["video.place_positions", "video.projection.weight", "text.positions", "text.words.weight"]
    for name in [*tables, "text.projection.weight", *(["video.time_positions.table"] if is_viclip else [])]:
        if ours[name].ndim != 2:
            raise HarvestError(f"{source}: wrong shape: {' + '.join(table[name].sources)} is no table")
    conv = tensors["vision_encoder.conv1.weight" if is_viclip else "visual.conv1.weight"]
    patch_size = conv.shape[-1]
    num_patches, width = ours["video.place_positions"].shape
    num_frames = ours["video.time_positions.table"].shape[0] if is_viclip else 1
    if math.isqrt(num_patches) ** 2 != num_patches or conv.ndim != (5 if is_viclip else 4):
        raise HarvestError(
            f"{source}: {num_patches} places and patches {list(conv.shape)} are not a square frame's"
        )
    context_length, text_width = ours["text.positions"].shape
    for tower_width, head_width in zip((width, text_width), head_widths, strict=True):
        if tower_width % head_width:
            raise HarvestError(
                f"{source}: a tower {tower_width} wide has no heads {head_width} wide: give head_width"
            )
    tokenizer = _clip_tokenizer(folder, vocabulary, context_length)
    start_id, end_id = (_id_of(token, tokenizer.core, source) for token in (START, END))
    if pixels is None:
        pixels = IMAGENET_PIXELS if is_viclip else CLIP_PIXELS
        notes = [
            *notes,
            f"pixel mean and std are {'ImageNet' if is_viclip else 'CLIP'}'s, as the layout has none",
        ]
    if activation is None:
        activation = "quick_gelu"
        notes = [*notes, "activation quick_gelu, as in the weights of OpenAI and ViCLIP"]
        if not is_viclip:
            notes.append("weights trained by OpenCLIP under the same names mostly need activation='gelu'")
    notes = [
        *notes,
        f"heads are {head_widths[0]} wide in the video tower, {head_widths[1]} in the text tower",
    ]

    def mlp_width(tower: str) -> int:
        return ours[f"{tower}.blocks.0.mlp.up.bias"].shape[0]

    if not video_depth or not text_depth:
        raise HarvestError(f"{source}: {video_depth} video blocks and {text_depth} text blocks")
    config = ModelConfig(
        video=VideoEncoderConfig(
            image_size=patch_size * math.isqrt(num_patches),
            patch_size=patch_size,
            tubelet_size=conv.shape[2] if is_viclip else 1,
            num_frames=num_frames * (conv.shape[2] if is_viclip else 1),
            width=width,
            depth=video_depth,
            num_heads=width // head_widths[0],
            mlp_width=mlp_width("video"),
            embed_dim=ours["video.projection.weight"].shape[0],
            activation=activation,
            prefix="clip" if is_viclip else "frame",
            pixel_mean=pixels[0],
            pixel_std=pixels[1],
        ),
        text=TextEncoderConfig(
            vocab_size=ours["text.words.weight"].shape[0],
            context_length=context_length,
            width=text_width,
            depth=text_depth,
            num_heads=text_width // head_widths[1],
            mlp_width=mlp_width("text"),
            embed_dim=ours["text.projection.weight"].shape[0],
            activation=activation,
            start_id=start_id,
            end_id=end_id,
            pad_id=tokenizer.config.pad_id,
        ),
    )
    used = len({name for row in table.values() for name in row.sources})
    report = ImportReport(source, used, ignored, notes=tuple(notes))
    return _assemble(config, ours, tokenizer, report, image_size)


# --- files -------------------------------------------------------------------------------------------------------


def _read_pixels(folder: Path, default: Pixels) -> tuple[Pixels, list[str]]:
    processor = read_json(folder / "processor_config.json").get("image_processor", {})
    processor |= read_json(folder / "preprocessor_config.json")
    if "image_mean" in processor and "image_std" in processor:
        return cast(Pixels, (tuple(processor["image_mean"]), tuple(processor["image_std"]))), []
    return default, ["pixel mean and std are the family's default: no preprocessor_config.json"]


def find_folder(source: str | Path, *, offline: bool = False) -> Path:
    """A local file or folder (of a run: its model), or the snapshot of a hub model of this name."""
    path = Path(source).expanduser()
    if (path / "model" / "config.json").is_file():
        return path / "model"
    return path if path.exists() else _download(str(source), offline=offline)


def _download(name: str, *, offline: bool) -> Path:
    """A snapshot of a hub model: settings and tokenizer, and its weights in one format."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.endswith(
        (".pt", ".pth", ".bin", ".safetensors")
    ):
        raise HarvestError(f"{name}: no such file or folder, and not the name of a model on the hub")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    small = ["*.json", "merges.txt", "vocab.txt", "bpe_simple_vocab_16e6.txt.gz"]
    weights = (
        "model*.safetensors",
        "pytorch_model*.bin",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    )
    try:
        for pattern in weights:
            folder = Path(
                huggingface_hub.snapshot_download(
                    name, allow_patterns=[*small, pattern], local_files_only=offline
                )
            )
            if any(folder.glob(pattern)):
                return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise HarvestError(
            f"{name} is no local file or folder and could not be had from the hub ({type(error).__name__}). Without "
            "network, download the model elsewhere and give the path of its folder."
        ) from error
    raise HarvestError(
        f"{name} has no weights that Harvest reads on the hub. Give the path of a weights file."
    )


# --- tokenizers --------------------------------------------------------------------------------------------------


def clip_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's tokenizer from its vocabulary and merges."""
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
        )
    )
    normalizers, pre = tokenizers.normalizers, tokenizers.pre_tokenizers
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    core.pre_tokenizer = pre.Sequence(
        [
            pre.Split(tokenizers.Regex(words), "removed", invert=True),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.add_special_tokens([START, END])
    core.post_processor = tokenizers.processors.RobertaProcessing((END, vocab[END]), (START, vocab[START]))
    return core


def read_bpe_vocabulary(path: Path) -> tokenizers.Tokenizer:
    """CLIP's tokenizer from OpenAI's `bpe_simple_vocab_16e6.txt.gz`: a list of merges, best first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [line.split() for line in lines.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise HarvestError(f"{path} is not a readable vocabulary of merges: {error}") from error
    merges = [(row[0], row[1]) for row in rows if len(row) == 2]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    return clip_bpe({piece: i for i, piece in enumerate(pieces)}, merges)


def _clip_tokenizer(folder: Path, vocabulary: Path | None, context_length: int) -> Tokenizer:
    names = ("tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz")
    path = vocabulary or next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None or not path.is_file():
        raise HarvestError(
            f"{path or folder}: no vocabulary. CLIP's texts need tokenizer.json, vocab.json with merges.txt, or "
            "bpe_simple_vocab_16e6.txt.gz beside the weights, or given as `vocabulary`."
        )
    if path.name == "vocab.json":
        lines = (path.parent / "merges.txt").read_text(encoding="utf-8").split("\n")
        rows = [line.split() for line in lines if not line.startswith("#version")]
        core = clip_bpe(read_json(path), [(row[0], row[1]) for row in rows if len(row) == 2])
    elif path.suffix == ".json":
        core = tokenizers.Tokenizer.from_file(str(path))
    else:
        core = read_bpe_vocabulary(path)
    core.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteLevel(), tokenizers.decoders.Replace("</w>", " ")]
    )
    pad_id = _id_of(END, core, path)
    return Tokenizer(core, TokenizerConfig(context_length=context_length, pad_id=pad_id, clean="clip"))


def _id_of(token: str, core: tokenizers.Tokenizer, where: Path | str) -> int:
    number = core.token_to_id(token)
    if number is None:
        raise HarvestError(f"{where}: the tokenizer has no {token!r}")
    return number


def _siglip_tokenizer(
    folder: Path, vocabulary: Path | None, context_length: int
) -> tuple[Tokenizer, int, list[str]]:
    """SigLIP's tokenizer, or SigLIP 2's (Gemma's with lower case), with the id that ends a text."""
    path = vocabulary or folder / "tokenizer.json"
    if not path.is_file():
        raise HarvestError(
            f"{folder} has no tokenizer.json. Where there is a spiece.model, transformers and sentencepiece write one: "
            "T5Tokenizer.from_pretrained(folder, extra_ids=0, pad_token='</s>').save_pretrained(folder)"
        )
    core = tokenizers.Tokenizer.from_file(str(path))
    if core.token_to_id("<eos>") is None:
        end_id, pad_id, clean = _id_of("</s>", core, path), _id_of("</s>", core, path), "siglip"
        note = "texts in lower case without punctuation (SigLIP)"
    else:  # the weights were trained on lower case, which not every tokenizer.json of theirs says
        end_id, pad_id, clean = _id_of("<eos>", core, path), _id_of("<pad>", core, path), "none"
        note = "texts in lower case (SigLIP 2)"
        lower = tokenizers.normalizers.Lowercase()
        core.normalizer = tokenizers.normalizers.Sequence(
            [lower, core.normalizer] if core.normalizer else [lower]
        )
    end = core.id_to_token(end_id)
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, end_id)]
    )
    config = TokenizerConfig(context_length=context_length, pad_id=pad_id, clean=cast(Any, clean))
    return Tokenizer(core, config), end_id, [note]
