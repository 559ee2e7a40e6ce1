"""A model in the layout of its peers, where it fits: OpenCLIP's for image models, ViCLIP's checkpoint for video models.

OUT/open_clip_config.json, open_clip_model.safetensors   `open_clip.create_model("local-dir:OUT")`
OUT/viclip.safetensors                                   the state dict of ViCLIP's own class

What was written is read again by the importer of that layout: a model that does not come back as it is has something
that the layout cannot say, and is refused.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from harvest.files import new_folder
from harvest.interfaces import HarvestError
from harvest.model.importing.openai import openai_text_rows, openai_video_rows, score_rows, viclip_table
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.importing.tables import Table
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel

PeerLayout = Literal["open_clip", "viclip"]
WEIGHTS = {"open_clip": "open_clip_model.safetensors", "viclip": "viclip.safetensors"}
_OF_CLIP = ("a photo of a cat, running", [49406, 320, 1125, 539, 320, 2368, 267, 2761, 49407])
_CLOSE = 1e-6  # of a temperature that was written as such


def export_layout(source: str | Path, out: Path, layout: PeerLayout) -> None:
    """Write the model that `source` names for a peer's code; HarvestError where it does not fit."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise HarvestError(f"{out} is not an empty folder: give another one")
    model, tokenizer, _ = load_pretrained(source)
    if layout == "open_clip" and tokenizer.core.encode(_OF_CLIP[0]).ids != _OF_CLIP[1]:
        raise HarvestError(f"{source}: OpenCLIP reads texts by CLIP's vocabulary, and this model has another")
    config = model.config
    if config.text is None:
        raise HarvestError(f"{source} has no text tower, and the layout of {layout} needs one")
    if layout == "viclip":
        table = viclip_table(config.video.depth, config.text.depth)
    else:
        table = {
            **openai_video_rows(config.video.depth, "visual.", ()),
            **openai_text_rows(config.text.depth, "", ()),
            **score_rows(()),
        }
    missing = sorted(table.keys() - model.state_dict().keys())
    if missing:
        raise HarvestError(
            f"{source} does not fit the layout of {layout}: it has no {', '.join(missing[:4])}"
        )
    with new_folder(out) as temporary:
        save_file(their_tensors(model, table), temporary / WEIGHTS[layout])
        tokenizer.save(temporary / "tokenizer.json")
        if layout == "open_clip":
            (temporary / "open_clip_config.json").write_text(json.dumps(open_clip_config(model), indent=1))
        _check(
            model,
            tokenizer,
            temporary if layout == "open_clip" else temporary / WEIGHTS[layout],
            layout,
        )


def their_tensors(model: VideoTextModel, table: Table) -> dict[str, Tensor]:
    """The tensors of a rename table's sources, from those that the table would make of them."""
    own, video = model.state_dict(), model.config.video
    found: dict[str, Tensor] = {}
    for target, row in table.items():
        tensor, name = own[target].float(), row.sources[0]
        if target == "video.prefix":  # the class token and its position, of which only the sum is known
            found[name] = tensor.reshape(-1)
            continue
        if target == "video.place_positions":
            tensor = torch.cat([torch.zeros_like(tensor[:1]), tensor])
        elif target == "video.patches.weight":
            times, side = video.tubelet_size, video.patch_size
            tensor = tensor.reshape(len(tensor), times, 3, side, side).transpose(1, 2)
            tensor = tensor if "vision_encoder" in name else tensor[:, :, 0]
        elif target == "video.time_positions.table":
            tensor = tensor[None]
        elif name == "temp":
            tensor = (-tensor).exp()
        elif name.endswith(("proj", "text_projection")):
            tensor = tensor.T
        found[name] = tensor.contiguous().clone()
    return found


def open_clip_config(model: VideoTextModel) -> dict[str, Any]:
    """open_clip_config.json of a model in OpenCLIP's own towers."""
    video, text = model.config.video, model.config.text
    assert text is not None
    modes = {"crop": "shortest", "squash": "squash", "pad": "longest"}
    return {
        "model_cfg": {
            "embed_dim": video.embed_dim,
            "quick_gelu": video.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": video.image_size,
                "layers": video.depth,
                "width": video.width,
                "head_width": video.width // video.num_heads,
                "patch_size": video.patch_size,
                "mlp_ratio": video.mlp_width / video.width,
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.num_heads,
                "layers": text.depth,
                "mlp_ratio": text.mlp_width / text.width,
            },
        },
        "preprocess_cfg": {
            "mean": list(video.pixel_mean),
            "std": list(video.pixel_std),
            "interpolation": video.interpolation,
            "resize_mode": modes[video.fit],
        },
    }


def _check(model: VideoTextModel, tokenizer: Tokenizer, written: Path, layout: str) -> None:
    """HarvestError unless what was written is the same model to the importer of that layout."""
    again, words, _ = load_pretrained(written)
    for tower in ("video", "text"):
        ours, theirs = (dataclasses.asdict(getattr(one.config, tower)) for one in (model, again))
        other = [
            f"{tower}.{key} is {ours[key]!r}, there {theirs[key]!r}"
            for key in ours
            if ours[key] != theirs[key]
        ]
        if other:
            raise HarvestError(f"the model does not fit the layout of {layout}: {'; '.join(other[:4])}")
    if words.config != tokenizer.config:
        raise HarvestError(
            f"the model does not fit the layout of {layout}: its tokenizer is {tokenizer.config}"
        )
    own, found = model.state_dict(), again.state_dict()
    names = [name for name in own if name.startswith(("video.", "text.")) and name != "text.mask_embedding"]
    wrong = [
        name
        for name in (*names, "log_scale")
        if name not in found or not torch.allclose(own[name], found[name], rtol=0, atol=_CLOSE)
    ]
    if wrong:
        raise HarvestError(
            f"the model does not fit the layout of {layout}: {', '.join(wrong[:4])} would change"
        )
