"""The model folder: weights, sizes, tokenizer and a fingerprint that is checked on load.

model/config.json        sizes, normalisation, frame sampling, tokenizer settings, licence, fingerprint
model/model.safetensors  every tensor; load or fail
model/tokenizer.json     as the `tokenizers` library writes it; absent where there is no text tower
model/head.json          of a fine-tuned model: what its head tells apart, beside head.safetensors
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from harvest.files import new_folder
from harvest.interfaces import HarvestError
from harvest.model.fusion import FusionConfig
from harvest.model.heads import Head, HeadConfig, build_head
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, TokenizerConfig
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

FORMAT = 1
FILES = ("config.json", "model.safetensors", "tokenizer.json", "head.json", "head.safetensors")
SENTENCE = "a red circle moves to the left"
FINGERPRINT_TOLERANCE = 2e-3


def digest_of(*modules: torch.nn.Module) -> str:
    """A hash of every weight, by name and to the bit, on whatever device they are."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_strictly(model: torch.nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Fill `model` with `tensors`, or raise HarvestError with the lists of what is missing, left over or misshapen."""
    own = model.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    extra = sorted(tensors.keys() - own.keys())
    wrong = [
        f"{name}: {list(tensors[name].shape)} here, {list(own[name].shape)} expected"
        for name in sorted(own.keys() & tensors.keys())
        if tensors[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        lists = [
            f"{title} ({len(names)}): " + ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            for title, names in (("missing", missing), ("left over", extra), ("wrong shape", wrong))
            if names
        ]
        raise HarvestError(f"{source} does not hold this model's weights.\n  " + "\n  ".join(lists))
    model.load_state_dict(dict(tensors))


def save_model(
    folder: Path,
    model: VideoTextModel,
    tokenizer: Tokenizer | None,
    *,
    head: Head | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder atomically, with the head of a fine-tuned model. It takes the place of a model alone.

    `notes` (recipe, licence, source, …) go into its config. A model without a text tower has no tokenizer.
    """
    check_room(folder)
    if (tokenizer is None) != (model.config.text is None):
        raise ValueError("a tokenizer goes with a text tower, and none without one")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = {
        "format": FORMAT,
        "model": dataclasses.asdict(model.config),
        "tokenizer": dataclasses.asdict(tokenizer.config) if tokenizer is not None else None,
        "frame_sampling": "one frame from the middle of each of num_frames equal segments",
        "fingerprint": _fingerprint(model, tokenizer),
        **(notes or {}),
    }
    try:
        with new_folder(folder) as temporary:
            safetensors.torch.save_file(tensors, temporary / "model.safetensors")
            if tokenizer is not None:
                tokenizer.save(temporary / "tokenizer.json")
            if head is not None:
                own = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
                safetensors.torch.save_file(own, temporary / "head.safetensors")
                (temporary / "head.json").write_text(json.dumps(dataclasses.asdict(head.config), indent=1))
            (temporary / "config.json").write_text(json.dumps(config, indent=1))
    except (OSError, safetensors.SafetensorError) as error:
        raise HarvestError(f"could not write the model folder {folder}: {error}") from error


def check_room(folder: Path) -> None:
    """HarvestError where a model folder would take the place of what is none."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise HarvestError(f"{folder} is a file: give a folder for the model")
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if name not in FILES]
    if others or (found and not _is_own(folder / FILES[0])):
        raise HarvestError(
            f"{folder} is not empty and holds no Harvest model alone ({(others or found)[0]}): give another folder"
        )


def _is_own(config: Path) -> bool:
    try:
        return "format" in json.loads(config.read_text())
    except (OSError, ValueError):
        return False


def load_model(folder: Path, *, check: bool = True) -> tuple[VideoTextModel, Tokenizer | None]:
    """Open a model folder in eval mode; load or fail. The tokenizer is None where there is no text tower.

    With `check`, the embeddings of a built-in clip and sentence are compared with those written when it was saved.
    """
    files = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [name for name in files if not (folder / name).is_file()]
    config = json.loads((folder / "config.json").read_text()) if files[0] not in missing else {}
    if config.get("tokenizer", "") is None:
        missing = [name for name in missing if name != "tokenizer.json"]
    if missing:
        raise HarvestError(f"{folder} is not a Harvest model folder: it has no {missing[0]}")
    if config.get("format", 0) > FORMAT:
        raise HarvestError(
            f"{folder} was written by a newer Harvest (format {config['format']}): update Harvest"
        )
    model = VideoTextModel(_config_of(config["model"]))
    try:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
    except safetensors.SafetensorError as error:
        raise HarvestError(f"{folder}: model.safetensors cannot be read: {error}") from error
    load_strictly(model, {name: tensor.float() for name, tensor in tensors.items()}, source=str(folder))
    tokenizer = None
    if config["tokenizer"] is not None:
        tokenizer = Tokenizer.load(folder / "tokenizer.json", TokenizerConfig(**config["tokenizer"]))
    model.eval()
    if check:
        _check_fingerprint(folder, config["fingerprint"], _fingerprint(model, tokenizer))
    return model, tokenizer


def _config_of(sizes: dict[str, Any]) -> ModelConfig:
    """What `dataclasses.asdict` wrote; what an older Harvest did not write has its default."""

    def part(kind: Callable[..., Any], name: str) -> Any:
        values = sizes.get(name)
        if values is None:
            return None
        return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})

    settings: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in sizes.items() if not isinstance(v, dict)
    }
    kinds = {
        "video": VideoEncoderConfig,
        "text": TextEncoderConfig,
        "fusion": FusionConfig,
        "answers": FusionConfig,
    }
    return ModelConfig(**settings | {name: part(kind, name) for name, kind in kinds.items()})


def load_head(folder: Path) -> Head:
    """The head of a fine-tuned model's folder, in eval mode; HarvestError where there is none."""
    if not (folder / "head.json").is_file():
        raise HarvestError(
            f"{folder} has no head (head.json): it was not fine-tuned for a task. `harvest recipes` lists the recipes"
            " that do so (ft-…)"
        )
    values: dict[str, Any] = json.loads((folder / "head.json").read_text())
    try:
        config = HeadConfig(**(values | {"names": tuple(values["names"])}))
        tensors = safetensors.torch.load_file(folder / "head.safetensors")
    except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise HarvestError(f"{folder}: its head cannot be read: {error}") from error
    head = build_head(config)
    load_strictly(head, tensors, source=f"{folder}/head.safetensors")
    return head.eval()


@torch.no_grad()
def _fingerprint(model: VideoTextModel, tokenizer: Tokenizer | None) -> dict[str, list[float]]:
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    size, frames = model.config.video.image_size, model.config.video.num_frames
    places = torch.arange(frames * 3 * size * size, device=device).view(1, frames, 3, size, size)
    clip = (places * 2654435761 % 4294967296 >> 24).to(
        torch.uint8
    )  # Knuth's multiplicative hash: fixed noise
    values = {"clip": model.encode_video(clip).pooled[0, :16]}
    if tokenizer is not None:
        values["sentence"] = model.encode_text(tokenizer([SENTENCE]).to(device)).pooled[0, :16]
    model.train(was_training)
    return {name: [round(float(x), 5) for x in vector] for name, vector in values.items()}


def _check_fingerprint(folder: Path, written: dict[str, list[float]], seen: dict[str, list[float]]) -> None:
    for name in written:
        off = max(abs(a - b) for a, b in zip(written[name], seen[name], strict=True))
        if off > FINGERPRINT_TOLERANCE:
            raise HarvestError(
                f"{folder}: the built-in {name} gives another embedding than when this model was saved "
                f"(off by {off:.4f}, at most {FINGERPRINT_TOLERANCE} expected). The weights, the tokenizer or the "
                "code are not those it was made with."
            )
