"""Any supported model by name: what a source is, and the family that opens it.

Layouts: Harvest's model folders; folders of `transformers` (`FAMILIES`), of OpenCLIP and of timm; OpenAI's and OpenCLIP's
state dicts; ViCLIP's and UMT's checkpoints. Image models have one frame (`num_frames = 1`); `as_video_model` inflates
them. docs/towers.md lists what loads.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from harvest.interfaces import HarvestError
from harvest.model.folder import load_model
from harvest.model.importing import clip, halves, open_clip, openai, siglip, timm_vit
from harvest.model.importing.assembly import ImportOptions, adjust, complete
from harvest.model.importing.files import read_tensors
from harvest.model.importing.sources import find_model
from harvest.model.importing.tables import ImportReport
from harvest.model.importing.umt import is_umt, load_umt
from harvest.model.importing.vocabularies import clip_tokenizer
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import NO_TEXT_TOWER, VideoTextModel
from harvest.settings import read_json

FAMILIES = {
    "clip": clip.from_transformers,
    "metaclip_2": clip.from_transformers,
    "siglip": siglip.from_transformers,
    "siglip2": siglip.from_transformers,
    "clipseg": clip.from_transformers,
    "xclip": clip.from_transformers,
    "chinese_clip": halves.from_transformers,
    "altclip": halves.from_transformers,
    "vision-text-dual-encoder": halves.from_transformers,
    **{kind: halves.from_vision for kind in halves.VISION},
}
"""By the `model_type` of a `transformers` config.json."""
WHY_NOT = {
    "align": "an EfficientNet has no patches that could be left out",
    "blip": "its texts are read by a BERT that also looks at images",
    "blip-2": "a Q-Former stands between its image tower and its texts",
    "flava": "its embeddings are those of two BERTs with a mixer behind them",
    "groupvit": "its image tower merges patches into groups, so that none could be left out",
    "owlvit": "it is a detector: its embeddings are of patches",
    "owlv2": "it is a detector: its embeddings are of patches",
    "bridgetower": "its towers read each other in every layer",
    "tipsv2": "its towers have no rename table yet",
    "videoprism": "it is a video model, of factored attention in space and time",
    "siglip2_vision_model": "give the whole model's folder, or its fixed resolutions, which are siglip_vision_model",
    "dinov2_with_registers": "it has register tokens",
    "dinov3_vit": "it has register tokens and rotary positions of another kind",
    "clip_text_model": "it has no image tower",
}
"""Why others are not."""


def load_pretrained(
    source: str | Path, *, offline: bool = False, **options: Any
) -> tuple[VideoTextModel, Tokenizer, ImportReport]:
    """Open any supported model with a text tower, in fp32 and eval mode; load or fail with HarvestError.

    `source` is what `find_model` takes: `mini-image`, a run, a model folder of Harvest, a folder or hub name in the
    layout of `transformers` (`openai/clip-vit-base-patch16`) or of OpenCLIP, or a file with a state dict in OpenAI's,
    OpenCLIP's, ViCLIP's or UMT's names. `options` are the fields of `ImportOptions`. `offline` asks the hub's local
    cache only.
    """
    model, tokenizer, report = load_any(source, offline=offline, **options)
    if tokenizer is None:
        raise HarvestError(f"{source}: {NO_TEXT_TOWER}")
    return model, tokenizer, report


def load_any(
    source: str | Path, *, offline: bool = False, **options: Any
) -> tuple[VideoTextModel, Tokenizer | None, ImportReport]:
    """As `load_pretrained`, and models without a text tower, which have no tokenizer."""
    said, path = ImportOptions(**options), find_model(source, offline=offline)
    model, tokenizer, report = open_path(path, str(source), said)
    tokenizer, notes = adjust(model, tokenizer, said, str(source))
    return model, tokenizer, dataclasses.replace(report, notes=(*report.notes, *notes))


def open_path(
    path: Path, source: str, options: ImportOptions
) -> tuple[VideoTextModel, Tokenizer | None, ImportReport]:
    """The model of a file or folder, by the family whose layout it has; `source` is its name in messages."""
    if path.is_file():
        return _open_file(path, source, options)
    if options.for_files:
        raise HarvestError(
            f"{path}: {', '.join(options.for_files)} are for single files; a folder says its own"
        )
    config = read_json(path / "config.json")
    if "format" in config and isinstance(config.get("model"), dict):
        return _open_own(path, source, options)
    kind = str(config.get("model_type"))
    if "architecture" in config and "pretrained_cfg" in config:
        return timm_vit.from_timm(path, source, config, options)
    if "model_type" in config and (kind in FAMILIES or not (path / "open_clip_config.json").is_file()):
        family = FAMILIES.get(kind)
        if family is None:
            raise HarvestError(
                f"{source}: model_type {kind!r} is not supported"
                + (f": {WHY_NOT[kind]}. Supported are " if kind in WHY_NOT else ", only ")
                + f"{', '.join(map(repr, FAMILIES))} (SigLIP 2 in its fixed resolutions is 'siglip' too)"
            )
        return family(path, source, config, options)
    if (path / "open_clip_config.json").is_file():
        return open_clip.from_folder(path, source, options)
    raise HarvestError(
        f"{path} is not a model folder that Harvest can read: expected config.json of Harvest or transformers, or "
        "open_clip_config.json. For a single weights file, give the path of the file."
    )


def _open_file(
    path: Path, source: str, options: ImportOptions
) -> tuple[VideoTextModel, Tokenizer | None, ImportReport]:
    tensors, notes = read_tensors(path)
    if is_umt(tensors):
        return load_umt(tensors, options, source=source, folder=path.parent, notes=notes)
    if options.num_frames is not None:
        raise HarvestError(f"{path}: num_frames is for UMT's files; this one says its own")
    stated = openai.stated_by_user(tensors, options, source, tuple(notes))
    return openai.from_state_dict(
        tensors,
        source,
        options,
        stated,
        tokenizer_of=lambda length: clip_tokenizer(path.parent, options.vocabulary, length),
    )


def _open_own(
    folder: Path, source: str, options: ImportOptions
) -> tuple[VideoTextModel, Tokenizer | None, ImportReport]:
    model, tokenizer = load_model(folder)
    tensors = model.state_dict()
    report = ImportReport(source, used=len(tensors))
    if options.image_size in (None, model.config.video.image_size):
        return model, tokenizer, report
    if tokenizer is None or "video.place_positions" not in tensors:
        raise HarvestError(
            f"{source}: its positions cannot be resized from {model.config.video.image_size} pixels"
        )
    return complete(model.config, tensors, tokenizer, report, options)
