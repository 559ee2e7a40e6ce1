"""Reading other people's weights: safe files, rename tables, and a strict report.

Every tensor of a source is used or listed as ignored, every one of ours is filled or listed as new; anything else is
an error that names both. Weights come from safetensors or `torch.load(weights_only=True)`: nothing in a file is run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from harvest.interfaces import HarvestError

CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Pixels = tuple[tuple[float, float, float], tuple[float, float, float]]


IGNORED = re.compile(r"(.*\.)?(position_ids|attn_mask)|input_resolution|context_length|vocab_size")
"""Buffers and sizes that other libraries write among the weights."""


def digest_of(*modules: torch.nn.Module) -> str:
    """A hash of every weight, by name and to the bit, on whatever device they are."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ImportReport:
    """What became of every tensor, and what had to be assumed."""

    source: str
    used: int
    """Tensors of the source that are in the model now."""
    ignored: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    """Tensors of the model that the source does not have: zero positions in time, the mean word for hidden words."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.used} tensors used"]
        for title, names in (("ignored", self.ignored), ("new", self.new)):
            if names:
                lines.append(f"  {title} ({len(names)}): {', '.join(names)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


# --- rename tables: our name -> the source's names and how their tensors become ours -----------------------------


@dataclass(frozen=True)
class Row:
    sources: tuple[str, ...]
    convert: Callable[..., Tensor] = lambda *tensors: torch.cat(tensors)


Table = dict[str, Row]


def layer_rows(target: str, *sources: str) -> Table:
    """A layer with weight and bias; `{}` in a source stands for either word."""
    return {
        f"{target}.{kind}": Row(tuple(name.format(kind) for name in sources)) for kind in ("weight", "bias")
    }


def scalar(value: Tensor) -> Tensor:
    return value.reshape(())


def flat_patches(weight: Tensor) -> Tensor:
    """A convolution `[D, 3, p, p]` or `[D, 3, t, p, p]` as a product with pixels in the order (t, 3, p, p)."""
    return (weight.transpose(1, 2) if weight.ndim == 5 else weight).flatten(1)


def check_names(tensors: Mapping[str, Tensor], table: Table, *, source: str) -> tuple[str, ...]:
    """The names that are ignored, or HarvestError with what is missing and left over."""
    wanted = {name for row in table.values() for name in row.sources}
    missing = sorted(wanted - tensors.keys())
    left = sorted(tensors.keys() - wanted)
    ignored = tuple(name for name in left if IGNORED.fullmatch(name))
    unused = [name for name in left if name not in ignored]
    if missing or unused:
        lists = [
            f"{title} ({len(names)}): " + ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            for title, names in (("missing", missing), ("not used", unused))
            if names
        ]
        raise HarvestError(f"{source}: the weights do not match their layout.\n  " + "\n  ".join(lists))
    return ignored


def rename(
    tensors: Mapping[str, Tensor], table: Table, *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Our tensors in fp32 and the names that were ignored, or HarvestError with what is missing and left over."""
    ignored = check_names(tensors, table, source=source)
    renamed = {}
    for target, row in table.items():
        values = [tensors[name].float() for name in row.sources]
        try:
            renamed[target] = row.convert(*values).contiguous()
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in row.sources)
            raise HarvestError(f"{source}: wrong shape: {shapes} cannot become {target}: {error}") from error
    return renamed, ignored


def stack_depth(names: Mapping[str, Any], prefix: str) -> int:
    """One more than the highest number after `prefix`: a hole in the middle is then found as missing."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return max((int(found[1]) + 1 for name in names if (found := pattern.match(name))), default=0)


# --- files -------------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a weights file, out of its wrappers, and notes on what lay beside it. Runs nothing."""
    if path.suffix == ".safetensors":
        try:
            return _without_module(safetensors.torch.load_file(path)), []
        except safetensors.SafetensorError as error:
            raise HarvestError(f"{path} is not a readable safetensors file: {error}") from error
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise HarvestError(
                    f"{path} is a TorchScript archive (as OpenAI released CLIP): opening it runs code. Where you trust "
                    f"it, write its weights alone: torch.save(torch.jit.load({path.name!r}, 'cpu').state_dict(), "
                    "'weights.pt')"
                )
    # Training scripts leave their settings beside the weights: these two kinds are built, and are mere containers.
    beside_weights: list[Any] = [argparse.Namespace, (OrderedDict, "easydict.EasyDict")]
    try:
        with torch.serialization.safe_globals(beside_weights):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise HarvestError(
            f"{path} holds more than tensors and is not opened, because that would run its code. Where you trust it, "
            "write its weights alone: torch.save(torch.load(path, weights_only=False)['model'], 'weights.pt'). "
            f"({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise HarvestError(f"{path} cannot be read as weights: {error}") from error
    notes: list[str] = []
    for key in ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            beside = sorted(str(name) for name in content if name != key)
            if beside:
                notes.append(f"read from key {key!r}; beside it: {', '.join(beside)}")
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise HarvestError(f"{path} holds no state dict")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise HarvestError(f"{path}: not tensors: {', '.join(others[:12])}")
    return _without_module(content), notes


def _without_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a `transformers` folder: one file, or shards with an index."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)[0]
        index = read_json(folder / f"{name}.index.json")
        if index:
            tensors: dict[str, Tensor] = {}
            for shard in sorted(set(index["weight_map"].values())):
                if not (folder / shard).is_file():
                    raise HarvestError(f"{folder} has no {shard}, which its index names")
                tensors |= read_tensors(folder / shard)[0]
            if tensors.keys() != index["weight_map"].keys():
                differ = sorted(tensors.keys() ^ index["weight_map"].keys())
                raise HarvestError(
                    f"{folder}: the shards and their index differ in: {', '.join(differ[:12])}"
                )
            return tensors
    raise HarvestError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HarvestError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise HarvestError(f"{path}: expected a JSON object")
    return content
