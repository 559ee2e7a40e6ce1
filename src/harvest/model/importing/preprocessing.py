"""How a picture becomes what a tower takes, as the tower was trained: the families' own ways, and what files say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harvest.interfaces import Fit, HarvestError, Interpolation
from harvest.settings import read_json

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """Mean and standard deviation of red, green and blue, from 0 to 1, and how a picture becomes a square."""

    pixel_mean: Triple
    pixel_std: Triple
    fit: Fit = "crop"
    interpolation: Interpolation = "bicubic"

    @property
    def fields(self) -> dict[str, Any]:
        """As `VideoEncoderConfig` has them."""
        return dataclasses.asdict(self)


CLIP = Preprocessing((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), fit="squash")
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), fit="squash")
"""UMT and ViCLIP."""

_RESAMPLE: dict[object, Interpolation] = {2: "bilinear", 3: "bicubic"}
_RESIZE_MODE: dict[object, Fit] = {"shortest": "crop", "squash": "squash", "longest": "pad"}


def read_processor(folder: Path, default: Preprocessing) -> tuple[Preprocessing, tuple[str, ...]]:
    """What the image processor of a `transformers` folder says, the family's way for the rest, with notes."""
    path = folder / "preprocessor_config.json"
    said = read_json(folder / "processor_config.json").get("image_processor", {})
    said = (said if isinstance(said, dict) else {}) | read_json(path)
    found, notes = _means(said, "image_mean", "image_std", default, path)
    interpolation = _RESAMPLE.get(said.get("resample"))
    if interpolation is None and said.get("resample") is not None:
        raise HarvestError(f"{path}: resample {said['resample']!r} is not supported, only 2 and 3")
    size, crop = said.get("size"), said.get("crop_size")
    fit = default.fit
    if isinstance(size, dict) and "height" in size and "width" in size:
        fit = "squash"
    elif isinstance(size, dict) and "shortest_edge" in size:
        fit = "crop"
        side = crop.get("height") if isinstance(crop, dict) else crop
        if said.get("do_center_crop", True) and side not in (None, size["shortest_edge"]):
            notes = (
                *notes,
                f"the processor scales the shorter side to {size['shortest_edge']} and cuts out {side} pixels; here "
                "the whole shorter side is seen",
            )
    if not isinstance(size, dict) or not said:
        notes = (*notes, f"pictures become squares as the family's do: {fit}")
    return dataclasses.replace(found, fit=fit, interpolation=interpolation or default.interpolation), notes


def read_open_clip(
    config: Mapping[str, Any], default: Preprocessing, path: Path
) -> tuple[Preprocessing, tuple[str, ...]]:
    """`preprocess_cfg` of an open_clip_config.json."""
    said = config.get("preprocess_cfg") or {}
    found, notes = _means(said, "mean", "std", default, path)
    mode, interpolation = said.get("resize_mode"), said.get("interpolation")
    if mode is not None and mode not in _RESIZE_MODE:
        raise HarvestError(f"{path}: resize_mode {mode!r} is not one of {', '.join(map(str, _RESIZE_MODE))}")
    if interpolation not in (None, "bicubic", "bilinear", "random"):
        raise HarvestError(
            f"{path}: interpolation {interpolation!r} is not supported, only bicubic and bilinear"
        )
    if mode is None:
        notes = (*notes, f"pictures become squares as the family's do: {default.fit}")
    return (
        dataclasses.replace(
            found,
            fit=_RESIZE_MODE.get(mode, default.fit),
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        ),
        notes,
    )


def read_timm(
    said: Mapping[str, Any], default: Preprocessing, path: Path
) -> tuple[Preprocessing, tuple[str, ...]]:
    """`pretrained_cfg` of a config.json of timm."""
    found, notes = _means(said, "mean", "std", default, path)
    interpolation, mode = said.get("interpolation", "bicubic"), said.get("crop_mode") or "center"
    modes: dict[str, Fit] = {"center": "crop", "squash": "squash", "border": "pad"}
    if interpolation not in ("bicubic", "bilinear") or mode not in modes:
        raise HarvestError(
            f"{path}: interpolation {interpolation!r} with crop_mode {mode!r} is not supported"
        )
    if mode == "center" and said.get("crop_pct") not in (None, 1, 1.0):
        notes = (*notes, f"timm cuts out {said['crop_pct']:.1%} of the shorter side; here all of it is seen")
    return dataclasses.replace(found, fit=modes[mode], interpolation=interpolation), notes


def _means(
    said: Mapping[str, Any], mean: str, std: str, default: Preprocessing, path: Path
) -> tuple[Preprocessing, tuple[str, ...]]:
    if mean not in said or std not in said:
        return default, ("pixel mean and std are the family's default: no file says them",)
    return (
        dataclasses.replace(
            default, pixel_mean=_triple(said[mean], mean, path), pixel_std=_triple(said[std], std, path)
        ),
        (),
    )


def _triple(value: Any, key: str, path: Path) -> Triple:
    """Three numbers, or one for all colours."""
    values = value if isinstance(value, list) else [value] * 3
    if len(values) == 3 and all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        return (float(values[0]), float(values[1]), float(values[2]))
    raise HarvestError(f"{path}: {key} must be a number or a list of three, got {value!r}")
