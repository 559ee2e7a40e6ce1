"""What the name of a model stands for, wherever one is named: one resolver for every command and function."""

from __future__ import annotations

import re
from pathlib import Path

from harvest.errors import HarvestError
from harvest.settings import read_json

MINI_IMAGE = Path(__file__).parents[2] / "weights" / "mini-image"
"""The image model of the mini-world, shipped with Harvest."""

WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")


def find_model(name: str | Path, *, offline: bool = False) -> Path:
    """The folder or file of a model: `mini-image`, a run folder, a model folder, a weights file, or a hub name.

    Hub models are downloaded, settings first; `offline` asks the local cache alone. HarvestError names the remedy.
    """
    path = find_local(name)
    if is_onnx_export(path):
        raise HarvestError(
            f"{path} is an ONNX export, which harvest index, search and serve run; this needs the model that was exported"
        )
    if (path / "checkpoints").is_dir():
        raise HarvestError(f"{path} is a run that has no model yet: it has not ended. Continue it first")
    return path if path.exists() else _download(str(name), offline=offline)


def find_local(name: str | Path) -> Path:
    """`find_model` without the hub: the path, whether or not there is something."""
    if str(name) == "mini-image":
        return MINI_IMAGE
    path = Path(name).expanduser()
    return path / "model" if (path / "model" / "config.json").is_file() else path


def is_onnx_export(path: Path) -> bool:
    """Whether a folder is what `harvest export --format onnx` wrote: to be run, not to be loaded."""
    return (path / "video.onnx").is_file() and (path / "settings.json").is_file()


def _download(name: str, *, offline: bool) -> Path:
    """A snapshot of a hub model: its settings and tokenizer first, then the weights that they are for."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.endswith(WEIGHT_SUFFIXES):
        raise HarvestError(f"{name}: no such file or folder, and not the name of a model on the hub")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(*patterns: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), local_files_only=offline)
        )

    try:
        folder = fetch("*.json", "merges.txt", "vocab.txt", "bpe_simple_vocab_16e6.txt.gz")
        for patterns in _weight_patterns(folder):
            if any(any(fetch(*patterns).glob(pattern)) for pattern in patterns):
                return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise HarvestError(
            f"{name} is no local file or folder and could not be had from the hub ({type(error).__name__}). Without "
            "network, download the model elsewhere and give the path of its folder."
        ) from error
    raise HarvestError(
        f"{name} has no weights that Harvest reads on the hub. Give the path of a weights file."
    )


def _weight_patterns(folder: Path) -> list[tuple[str, ...]]:
    """Which weights a repository's settings are for, the best format first."""
    transformers: list[tuple[str, ...]] = [
        ("model.safetensors", "model-*.safetensors"),
        ("model.fp16.safetensors", "model.fp16-*.safetensors"),
        ("pytorch_model.bin", "pytorch_model-*.bin"),
    ]
    open_clip: list[tuple[str, ...]] = [("open_clip_model.safetensors",), ("open_clip_pytorch_model.bin",)]
    config = read_json(folder / "config.json")
    if "format" in config:  # a Harvest model folder
        return [("model.safetensors", "head.safetensors")]
    if "model_type" in config:
        return transformers
    return open_clip if (folder / "open_clip_config.json").is_file() else [*transformers, *open_clip]
