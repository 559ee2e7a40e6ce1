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
import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from harvest.files import new_folder
from harvest.interfaces import HarvestError
from harvest.model.heads import Head, HeadConfig, build_head
from harvest.model.importing.files import read_json, read_tensors
from harvest.model.importing.vocabularies import read_tokenizer
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, TokenizerConfig
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


def check_shapes(model: torch.nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """HarvestError with the lists of what is missing, left over, misshapen or of no number with a fraction."""
    own = model.state_dict()
    wrong = {
        "missing": sorted(own.keys() - tensors.keys()),
        "left over": sorted(tensors.keys() - own.keys()),
        "wrong shape": [
            f"{name}: {list(tensors[name].shape)} here, {list(own[name].shape)} expected"
            for name in sorted(own.keys() & tensors.keys())
            if tensors[name].shape != own[name].shape
        ],
        "wrong type": [f"{name}: {t.dtype}" for name, t in tensors.items() if not t.is_floating_point()],
    }
    lines = [
        f"\n  {title} ({len(names)}): {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
        for title, names in wrong.items()
        if names
    ]
    if lines:
        raise HarvestError(f"{source} does not hold this model's weights.{''.join(lines)}")


def load_strictly(model: torch.nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Fill `model` with `tensors`; load or fail with `check_shapes`."""
    check_shapes(model, tensors, source=source)
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
    config = read_json(folder / "config.json")
    kind = config.get("format")
    if not isinstance(kind, int) or not isinstance(config.get("model"), dict):
        raise HarvestError(f"{folder} is not a Harvest model folder: it has no config.json of one")
    if kind > FORMAT:
        raise HarvestError(f"{folder} was written by a newer Harvest (format {kind}): update Harvest")
    where = str(folder / "config.json")
    sizes = _typed(ModelConfig, config["model"], where, "model")
    if (sizes.text is None) != (config.get("tokenizer", 0) is None):
        raise HarvestError(f"{where}: a tokenizer goes with a text tower, and none without one")
    wanted = ["model.safetensors", *(["tokenizer.json"] if sizes.text is not None else [])]
    for name in wanted:
        if not (folder / name).exists():
            raise HarvestError(f"{folder} is not a Harvest model folder: it has no {name}")
    tensors = read_tensors(folder / "model.safetensors")[0]
    with torch.device("meta"):  # before anything is allocated: a config may claim more than there is
        check_shapes(VideoTextModel(sizes), tensors, source=str(folder))
    tokenizer = None
    if sizes.text is not None:
        settings = _typed(TokenizerConfig, config.get("tokenizer"), where, "tokenizer")
        tokenizer = Tokenizer(read_tokenizer(folder / "tokenizer.json"), settings)
        _check_tokenizer(tokenizer, sizes.text, folder)
    model = VideoTextModel(sizes)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    model.eval()
    if check:
        _check_fingerprint(folder, config.get("fingerprint"), _fingerprint(model, tokenizer))
    return model, tokenizer


def _check_tokenizer(tokenizer: Tokenizer, text: TextEncoderConfig, folder: Path) -> None:
    highest = max([tokenizer.config.pad_id, *tokenizer.core.get_vocab().values()])
    if highest >= text.vocab_size or tokenizer.config.context_length > text.context_length:
        raise HarvestError(
            f"{folder}: its tokenizer has ids up to {highest} and texts of {tokenizer.config.context_length}, its text "
            f"tower {text.vocab_size} words and {text.context_length} positions"
        )


def _typed(kind: Any, values: Any, where: str, path: str) -> Any:
    """A dataclass from JSON: every value of its field's type, what an older Harvest did not write by its default."""
    if not isinstance(values, dict):
        raise HarvestError(f"{where}: {path} must be an object with settings, got {values!r}")
    hints, given = get_type_hints(kind), {}
    for key, value in values.items():
        if key not in hints:
            raise HarvestError(f"{where}: {path} has a setting {key!r} that this Harvest does not know")
        given[key] = _value(hints[key], value, where, f"{path}.{key}")
    try:
        return kind(**given)
    except (TypeError, HarvestError) as error:
        raise HarvestError(f"{where}: {path}: {error}") from error


def _value(hint: Any, value: Any, where: str, path: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return _typed(kind, value, where, path)
        if get_origin(kind) is tuple and isinstance(value, list):
            of = get_args(kind)[0]
            return tuple(_value(of, part, where, path) for part in value)
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is float and is_number and math.isfinite(value):
            return float(value)
        if kind in (int, str, bool, NoneType) and type(value) is kind:
            return value
    expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise HarvestError(f"{where}: {path} must be {expected}, got {value!r}")


def load_head(folder: Path) -> Head:
    """The head of a fine-tuned model's folder, in eval mode; HarvestError where there is none."""
    if not (folder / "head.json").is_file():
        raise HarvestError(
            f"{folder} has no head (head.json): it was not fine-tuned for a task. `harvest recipes` lists the recipes"
            " that do so (ft-…)"
        )
    try:
        config = _typed(HeadConfig, read_json(folder / "head.json"), str(folder / "head.json"), "head")
        tensors = read_tensors(folder / "head.safetensors")[0]
    except HarvestError as error:
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


def _check_fingerprint(folder: Path, written: Any, seen: dict[str, list[float]]) -> None:
    if not isinstance(written, dict) or written.keys() != seen.keys():
        raise HarvestError(
            f"{folder}/config.json: fingerprint must hold the embeddings of {' and '.join(seen)}"
        )
    for name, vector in seen.items():
        values = written[name]
        is_like = isinstance(values, list) and len(values) == len(vector)
        if not is_like or not all(isinstance(value, int | float) for value in values):
            raise HarvestError(
                f"{folder}/config.json: the fingerprint of the {name} is not {len(vector)} numbers"
            )
        off = max(abs(a - b) for a, b in zip(values, vector, strict=True))
        if not off <= FINGERPRINT_TOLERANCE:  # nor where it is not a number
            raise HarvestError(
                f"{folder}: the built-in {name} gives another embedding than when this model was saved "
                f"(off by {off:.4f}, at most {FINGERPRINT_TOLERANCE} expected). The weights, the tokenizer or the "
                "code are not those it was made with."
            )
