"""The model folder: weights, sizes, tokenizer and a fingerprint that is checked on load.

model/config.json        sizes, normalisation, frame sampling, tokenizer settings, licence, fingerprint, checksums
model/model.safetensors  every tensor; load or fail
model/tokenizer.json     as the `tokenizers` library writes it; absent where there is no text tower
model/head.json          of a fine-tuned model: what its head tells apart, beside head.safetensors
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harvest.files import check_checksums, checksums_of, new_folder
from harvest.interfaces import HarvestError
from harvest.model.heads import Head, HeadConfig, build_head
from harvest.model.importing.files import read_tensors
from harvest.model.importing.vocabularies import read_tokenizer
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, TokenizerConfig
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.settings import from_dict, read_json, read_settings

FORMAT = 2
FILES = ("config.json", "model.safetensors", "tokenizer.json", "head.json", "head.safetensors")
MODEL_CARD = "README.md"
"""Of the weights that it lies beside: a model that is saved in their place leaves none."""
NOTES = ("recipe", "started_from", "import_report", "licence", "blended", "video_ratio", "budgets")
SENTENCE = "a red circle moves to the left"
FINGERPRINT_TOLERANCE = 2e-3


def digest_of(*modules: torch.nn.Module, without: Collection[str] = ()) -> str:
    """A hash of every weight but those of some names, by name and to the bit, on whatever device they are."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            if name in without:
                continue
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_digest(model: torch.nn.Module) -> str:
    """A hash of every weight as it is kept, by which a library of videos knows its model."""
    made = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        made.update(name.encode())
        made.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return made.hexdigest()


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


class Unfilled(TorchFunctionMode):
    """Modules built in this context draw no first weights, as all of them are loaded next: opening takes half as long.

    Not for a run, whose new parts are drawn from the generator's state after the rest of the model was built.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.normal_):
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


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
    try:
        with new_folder(folder) as temporary:
            write_model(temporary, model, tokenizer, head=head, notes=notes)
    except (OSError, safetensors.SafetensorError) as error:
        raise HarvestError(f"could not write the model folder {folder}: {error}") from error


def write_model(
    folder: Path,
    model: VideoTextModel,
    tokenizer: Tokenizer | None,
    *,
    head: Head | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model folder into a folder that exists; arguments are those of `save_model`."""
    if (tokenizer is None) != (model.config.text is None):
        raise ValueError("a tokenizer goes with a text tower, and none without one")
    config = {
        "format": FORMAT,
        "model": dataclasses.asdict(model.config),
        "tokenizer": dataclasses.asdict(tokenizer.config) if tokenizer is not None else None,
        "frame_sampling": "one frame from the middle of each of num_frames equal segments",
        "fingerprint": _fingerprint(model, tokenizer),
        **(notes or {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    if head is not None:
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
        safetensors.torch.save_file(own, folder / "head.safetensors")
        (folder / "head.json").write_text(json.dumps(dataclasses.asdict(head.config), indent=1))
    sums = {name: sum for name, sum in checksums_of(folder).items() if name in FILES}
    config["checksums"] = sums | {"config.json": _settings_checksum(config)}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def read_notes(folder: Path) -> dict[str, Any]:
    """What was noted of a model when it was saved: its recipe, licence, source. Empty for a folder that is not Harvest's."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return {name: config[name] for name in NOTES if name in config} if "format" in config else {}


def check_room(folder: Path, files: Collection[str] = FILES) -> None:
    """HarvestError where a model folder, of these files, would take the place of what is none."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise HarvestError(f"{folder} is a file: give a folder for the model")
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if name not in files and name != MODEL_CARD]
    if others or (found and not _is_own(folder / FILES[0])):
        raise HarvestError(
            f"{folder} is not empty and holds no Harvest model alone ({(others or found)[0]}): give another folder"
        )


def _is_own(config: Path) -> bool:
    try:
        return "format" in read_json(config)
    except HarvestError:
        return False


def _settings_checksum(config: Mapping[str, Any]) -> str:
    decisive = [config.get("model"), config.get("tokenizer")]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _check_files(folder: Path, config: Mapping[str, Any]) -> None:
    """See that a folder's files are those that were written; folders of format 1 have no checksums."""
    if config["format"] < 2:
        return
    where = str(folder / "config.json")
    written = dict(from_dict(dict[str, str], config.get("checksums"), where=where, path="checksums"))
    if written.pop("config.json", None) != _settings_checksum(config):
        raise HarvestError(f"{where}: its sizes have changed since it was written (their checksum differs)")
    wanted = {path.name for path in folder.iterdir() if path.name in FILES} - {"config.json"}
    if written.keys() != wanted:
        raise HarvestError(f"{folder}: missing or added files: {', '.join(sorted(wanted ^ written.keys()))}")
    check_checksums(folder, written)


def load_model(folder: Path, *, check: bool = True) -> tuple[VideoTextModel, Tokenizer | None]:
    """Open a model folder in eval mode; load or fail. The tokenizer is None where there is no text tower.

    With `check`, checksums, and the embeddings of a built-in clip and sentence, are compared with those written when
    it was saved.
    """
    config = read_json(folder / "config.json")
    kind = config.get("format")
    if type(kind) is not int or not isinstance(config.get("model"), dict):
        raise HarvestError(f"{folder} is not a Harvest model folder: it has no config.json of one")
    if kind > FORMAT:
        raise HarvestError(f"{folder} was written by a newer Harvest (format {kind}): update Harvest")
    sizes, settings = sizes_of(config, str(folder / "config.json"))
    wanted = ["model.safetensors", *(["tokenizer.json"] if sizes.text is not None else [])]
    for name in wanted:
        if not (folder / name).exists():
            raise HarvestError(f"{folder} is not a Harvest model folder: it has no {name}")
    if check:
        _check_files(folder, config)
    tensors = read_tensors(folder / "model.safetensors")[0]
    with Unfilled(), torch.device("meta"):  # a config may claim more than there is: nothing is allocated yet
        check_shapes(VideoTextModel(sizes), tensors, source=str(folder))
    tokenizer = None
    if sizes.text is not None and settings is not None:
        tokenizer = Tokenizer(read_tokenizer(folder / "tokenizer.json"), settings)
        _check_tokenizer(tokenizer, sizes.text, folder)
    model = VideoTextModel(sizes)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    model.eval()
    if check:
        _check_fingerprint(folder, config.get("fingerprint"), _fingerprint(model, tokenizer))
    return model, tokenizer


def sizes_of(config: Mapping[str, Any], where: str) -> tuple[ModelConfig, TokenizerConfig | None]:
    """The settings in the config.json of a model folder; HarvestError with the key of what is wrong."""
    sizes: ModelConfig = from_dict(ModelConfig, config["model"], where=where, path="model")
    if (sizes.text is None) != (config.get("tokenizer", 0) is None):
        raise HarvestError(f"{where}: a tokenizer goes with a text tower, and none without one")
    if sizes.text is None:
        return sizes, None
    return sizes, from_dict(TokenizerConfig, config.get("tokenizer"), where=where, path="tokenizer")


def _check_tokenizer(tokenizer: Tokenizer, text: TextEncoderConfig, folder: Path) -> None:
    highest = max([tokenizer.config.pad_id, *tokenizer.core.get_vocab().values()])
    if highest >= text.vocab_size or tokenizer.config.context_length > text.context_length:
        raise HarvestError(
            f"{folder}: its tokenizer has ids up to {highest} and texts of {tokenizer.config.context_length}, its text "
            f"tower {text.vocab_size} words and {text.context_length} positions"
        )


def load_head(folder: Path) -> Head:
    """The head of a fine-tuned model's folder, in eval mode; HarvestError where there is none."""
    if not (folder / "head.json").is_file():
        raise HarvestError(
            f"{folder} has no head (head.json): it was not fine-tuned for a task. `harvest recipes` lists the recipes"
            " that do so (ft-…)"
        )
    try:
        config = read_settings(HeadConfig, folder / "head.json")
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
    where = f"{folder}/config.json"
    for name, vector in seen.items():
        values = from_dict(list[float], written[name], where=where, path=f"fingerprint.{name}")
        if len(values) != len(vector):
            raise HarvestError(f"{where}: the fingerprint of the {name} is not {len(vector)} numbers")
        off = max(abs(a - b) for a, b in zip(values, vector, strict=True))
        if not off <= FINGERPRINT_TOLERANCE:  # nor where it is not a number
            raise HarvestError(
                f"{folder}: the built-in {name} gives another embedding than when this model was saved "
                f"(off by {off:.4f}, at most {FINGERPRINT_TOLERANCE} expected). The weights, the tokenizer or the "
                "code are not those it was made with."
            )
