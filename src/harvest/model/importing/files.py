"""Weights and settings from files, and nothing else: no code in a file is run.

Weights come from safetensors or `torch.load(weights_only=True)`, out of the wrappers that training scripts leave.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from harvest.files import check_file
from harvest.interfaces import HarvestError
from harvest.settings import read_json

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and checkpointing put into names, at any depth."""
OUTER = ("module.", "model.", "clip.")
"""What a whole state dict may stand under: DDP's, Lightning's and wrappers' own."""
MOST_HEADER = 32 << 20
"""Bytes of a safetensors header; 10,000 tensors take one million."""
_BESIDE_WEIGHTS: list[Any] = [
    # Training scripts leave their settings and scores beside the weights: these kinds are mere containers.
    argparse.Namespace,
    (OrderedDict, "easydict.EasyDict"),
    np.dtype,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
]
_BROKEN = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    AssertionError,
    ImportError,
    zipfile.BadZipFile,
)
"""What `torch.load` raises for damaged files."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a weights file, out of its wrappers, and notes on what lay beside it. Runs nothing."""
    check_file(path)
    with path.open("rb") as file:
        start = file.read(9)
    is_safetensors = len(start) == 9 and start[8:] == b"{" and start[:2] != b"PK"
    if path.suffix == ".safetensors" or is_safetensors:
        if int.from_bytes(start[:8], "little") > MOST_HEADER:
            raise HarvestError(f"{path} is not a readable safetensors file: its header is too long")
        try:
            return _unwrapped(safetensors.torch.load_file(path), path), []
        except (safetensors.SafetensorError, *_BROKEN) as error:
            raise HarvestError(f"{path} is not a readable safetensors file: {error}") from error
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_BESIDE_WEIGHTS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise HarvestError(
            f"{path} holds more than tensors, or no weights at all, and is not opened, because that would run its code. "
            f"Ask its author for safetensors. ({str(error).splitlines()[0]})"
        ) from error
    except _BROKEN as error:
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
    return _unwrapped({str(name): tensor for name, tensor in content.items()}, path), notes


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _BROKEN as error:
        raise HarvestError(f"{path} cannot be read as weights: {error}") from error
    if any("/code/" in member.filename for member in members):
        raise HarvestError(
            f"{path} is a TorchScript archive (as OpenAI released CLIP): opening it runs code. Where you trust "
            f"it, write its weights alone: torch.save(torch.jit.load({path.name!r}, 'cpu').state_dict(), "
            "'weights.pt')"
        )
    if sum(member.file_size for member in members) > 2 * path.stat().st_size + (1 << 20):
        raise HarvestError(f"{path} is compressed, as no file of PyTorch's is: it is not opened")


def _unwrapped(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same under the names that the model itself has."""
    found = dict(tensors)
    for wrapper in WRAPPERS:
        found = {name.replace(wrapper, ""): tensor for name, tensor in found.items()}
    for _ in OUTER:
        for outer in OUTER:
            if found and all(name.startswith(outer) for name in found):
                found = {name.removeprefix(outer): tensor for name, tensor in found.items()}
    if len(found) < len(tensors):
        raise HarvestError(f"{path}: some of its tensors have the same name but for what wraps them")
    return found


def read_folder(
    folder: Path, names: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
) -> dict[str, Tensor]:
    """The tensors of a folder: one file of these names, whole, in shards with an index, or a half-precision variant."""
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        for variant in (name, f"{stem}.fp16{dot}{suffix}", f"{stem}.bf16{dot}{suffix}"):
            if (folder / variant).exists():
                return read_tensors(folder / variant)[0]
            index = read_json(folder / f"{variant}.index.json")
            if index:
                return _read_shards(folder, index)
    raise HarvestError(f"{folder} has neither {' nor '.join(names)}")


def _read_shards(folder: Path, index: Mapping[str, Any]) -> dict[str, Tensor]:
    held_by = index.get("weight_map")
    if not isinstance(held_by, dict) or not all(isinstance(name, str) for name in held_by.values()):
        raise HarvestError(f"{folder}: its index of shards has no weight_map of names to files")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(held_by.values())):
        if Path(shard).name != shard:
            raise HarvestError(f"{folder}: its index names {shard}, which is not a file of this folder")
        if not (folder / shard).is_file():
            raise HarvestError(f"{folder} has no {shard}, which its index names")
        tensors |= read_tensors(folder / shard)[0]
    wanted = _unwrapped({name: torch.empty(0) for name in held_by}, folder)
    if tensors.keys() != wanted.keys():
        differ = sorted(tensors.keys() ^ wanted.keys())
        raise HarvestError(f"{folder}: the shards and their index differ in: {', '.join(differ[:12])}")
    return tensors
