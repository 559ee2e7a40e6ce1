"""Which published towers load: `python -m experiments.towers` prints the tables of docs/towers.md.

Every architecture that OpenCLIP lists is built by OpenCLIP at its own size without memory for its weights (meta
tensors), and read by Harvest's importer: that names and shapes fit is shown here, that embeddings are equal by
tests/model/importing at toy size. Needs `pip install --no-deps open_clip_torch timm`; torchvision may be absent.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tokenizers
import torch

from experiments import main
from harvest.interfaces import HarvestError
from harvest.model.importing import open_clip as importer
from harvest.model.importing import pretrained
from harvest.model.importing.assembly import ImportOptions
from harvest.model.importing.vocabularies import clip_bpe

TEXTS = {
    "roberta-base": {"vocab_size": 50265},
    "xlm-roberta-base": {"vocab_size": 250002},
    "xlm-roberta-large": {
        "vocab_size": 250002,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
"""Sizes of the text towers that OpenCLIP takes from `transformers`, which it would ask the hub for."""


_MODES = ("BILINEAR", "BICUBIC", "LANCZOS", "HAMMING", "BOX", "NEAREST")


class _Anything(types.ModuleType):
    """Stands in for torchvision, which OpenCLIP imports for training and whose install replaces PyTorch."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        inner = sys.modules.get(f"{self.__name__}.{name}")
        return inner or type(name, (), {mode: n for n, mode in enumerate(_MODES)})


def stand_in(set_module: Callable[[str, types.ModuleType], None]) -> None:
    """Set, by name, a stand-in for each part of torchvision that OpenCLIP imports."""
    parts = ("", ".transforms", ".transforms.functional", ".transforms.v2", ".ops", ".ops.misc", ".models")
    for part in (*parts, ".models.feature_extraction", ".datasets", ".io"):
        module = _Anything(f"torchvision{part}")
        module.__path__ = []
        set_module(f"torchvision{part}", module)


def without_torchvision() -> Any:
    """OpenCLIP, whether or not there is torchvision."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        import transformers  # noqa: F401  # looks for torchvision in its own way, before there is a stand-in

        stand_in(sys.modules.__setitem__)
    import open_clip

    return open_clip


def write_tokenizer(folder: Path, text: dict[str, Any]) -> None:
    """A tokenizer of few words with the marks that the importer looks for."""
    if "hf_tokenizer_name" not in text:
        core = clip_bpe({"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, [])
    else:
        words = ["<s>", "<pad>", "</s>", "<unk>", "<eos>", "a"]
        core = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
        )
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    core.save(str(folder / "tokenizer.json"))


@contextlib.contextmanager
def sizes_of_texts() -> Iterator[None]:
    """`transformers`' configs of text towers without asking the hub."""
    import transformers

    def config(name: str, **_: Any) -> Any:
        marks = {
            "max_position_embeddings": 514,
            "layer_norm_eps": 1e-5,
            "type_vocab_size": 1,
            "pad_token_id": 1,
        }
        kind = transformers.XLMRobertaConfig if name.startswith("xlm") else transformers.RobertaConfig
        return kind(**marks, **TEXTS[name])

    def model(_: str, **how: Any) -> Any:
        return transformers.AutoModel.from_config(config(_), **how)

    with (
        mock.patch.object(transformers.AutoConfig, "from_pretrained", config),
        mock.patch.object(transformers.AutoModel, "from_pretrained", model),
    ):
        yield


def opened(open_clip: Any, name: str, folder: Path) -> str:
    """What the importer says of an architecture: `loads`, or why not."""
    config = open_clip.get_model_config(name)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    write_tokenizer(folder, config["text_cfg"])

    def weights(*_: Any) -> dict[str, torch.Tensor]:
        with sizes_of_texts(), torch.device("meta"):
            return open_clip.create_model(name, device="meta", pretrained_hf=False).state_dict()

    try:
        with mock.patch.object(importer, "read_folder", weights), torch.device("meta"):
            importer.from_folder(folder, name, ImportOptions())
    except HarvestError as error:
        return str(error).removeprefix(f"{folder}/open_clip_config.json").removeprefix(f"{name}").strip(": ")
    return "loads"


def towers() -> None:
    """Print the tables."""
    open_clip = without_torchvision()
    answers: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            answers.setdefault(opened(open_clip, name, Path(folder)), []).append(name)
    loads = answers.pop("loads", [])
    total = len(loads) + sum(map(len, answers.values()))
    print(f"Of {total} architectures {len(loads)} load.\n\n| OpenCLIP's architectures | |\n|---|---|")
    print(f"| {', '.join(loads)} | load |")
    for why, names in sorted(answers.items(), key=lambda item: -len(item[1])):
        print(f"| {', '.join(names)} | refused: {why} |")
    print("\n| `model_type` of `transformers` | |\n|---|---|")
    print(f"| {', '.join(pretrained.FAMILIES)} | load |")
    for kind, why in pretrained.WHY_NOT.items():
        print(f"| {kind} | refused: {why} |")


if __name__ == "__main__":
    main(towers)
