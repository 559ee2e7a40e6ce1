"""A folder of videos without captions becomes a training run: stretches of each video, and the recipe that fits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from harvest.config import RunConfig
from harvest.data.manifest import read_manifest
from harvest.data.video import VideoError, probe
from harvest.evaluation.embed import Mode, embed_videos
from harvest.files import write_file
from harvest.interfaces import HarvestError
from harvest.model.importing.pretrained import load_pretrained
from harvest.model.inflation import as_video_model
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import VideoTextModel
from harvest.progress import bar, say
from harvest.recipes.post_pretraining import adapt_b16
from harvest.search.library.files import scan
from harvest.tokens.select import see

BUDGETS = (0.05, 0.1, 0.2)
"""Shares of the tubelets of a clip that a model is adapted for."""


def write_stretches(folders: Sequence[Path], manifest: Path, *, window_s: float) -> int:
    """Write a manifest of consecutive stretches of `window_s` of all videos in some folders; returns their number.

    What is left of a video is a stretch where it is at least half as long. A video that cannot be opened is left out
    and named. Raises HarvestError where none can.
    """
    lines: list[str] = []
    broken: dict[str, str] = {}
    files = [(found.root / file.path, file.reason) for found in scan(folders) for file in found.files]
    with bar("looking at videos") as progress:
        for number, (path, reason) in enumerate(files):
            progress(number, len(files))
            try:
                if reason is not None:
                    raise VideoError(str(path), reason)
                duration_s = probe(path).duration_s
            except VideoError as error:
                broken[str(path)] = error.reason
                continue
            num = max(1, int(duration_s / window_s + 0.5))
            for start in range(num):
                stretch = {"id": f"{path}#{start}", "video": str(path), "start_s": start * window_s}
                if start < num - 1:
                    stretch["end_s"] = (start + 1) * window_s
                lines.append(json.dumps(stretch, ensure_ascii=False) + "\n")
        progress(len(files), len(files))
    if broken:
        first, reason = next(iter(broken.items()))
        say(
            f"{len(broken)} of {len(files)} videos cannot be opened and are left out; first: {first}: {reason}"
        )
    if not lines:
        raise HarvestError("no video can be opened: nothing to adapt to")
    write_file(manifest, "".join(lines))
    return len(lines)


def budgets_of(video: VideoEncoderConfig, num_frames: int) -> tuple[int, ...]:
    """`BUDGETS` in tubelets of a clip."""
    num_tubelets = num_frames * video.num_patches
    return tuple(max(1, round(share * num_tubelets)) for share in BUDGETS)


def adapting_run(model: str, manifest: Path, *, steps: int, batch: int) -> RunConfig:
    """The recipe `adapt-b16` for another image model, another manifest and another length."""
    base = adapt_b16()
    image_model, _, _ = load_pretrained(model)
    return dataclasses.replace(
        base,
        start=dataclasses.replace(base.start, model=model),
        data=dataclasses.replace(base.data, train=str(manifest.resolve()), workers=2),
        vary=dataclasses.replace(
            base.vary, budgets=budgets_of(image_model.config.video, base.data.num_frames)
        ),
        optim=dataclasses.replace(base.optim, warmup_steps=min(base.optim.warmup_steps, steps // 10)),
        loop=dataclasses.replace(base.loop, steps=steps, global_batch=batch),
    )


class Agreement(NamedTuple):
    """How near a video model's embeddings are to the image model's, at one budget."""

    budget: int
    before: float
    """Mean cosine of the image model itself, given only that budget."""
    after: float


def agreement(model: str, adapted: Path, manifest: Path, budgets: Sequence[int], num: int) -> list[Agreement]:
    """Compare both models with the image model that sees all frames, on up to `num` stretches, evenly spread."""
    rows = list(read_manifest(manifest, captions_required=False))
    rows = rows[:: max(1, len(rows) // num)][:num]
    image, _, _ = load_pretrained(model)
    video, _, _ = load_pretrained(adapted)
    sizes = video.config.video
    start, _ = as_video_model(image, num_frames=sizes.num_frames, tubelet_size=sizes.tubelet_size)

    def embedded(one: VideoTextModel, budget: int | None, mode: Mode = "video") -> Tensor:
        given = {"num_frames": sizes.num_frames, "mode": mode, "selection": see(budget, "motion")}
        return embed_videos(one, rows, **given).pooled  # type: ignore[arg-type]

    whole = embedded(image, None, "image")
    found = []
    with bar("comparing with the image model") as progress:
        for number, budget in enumerate(budgets):
            before, after = (
                float((whole * embedded(one, budget)).sum(dim=1).mean()) for one in (start, video)
            )
            found.append(Agreement(budget, before, after))
            progress(number + 1, len(budgets))
    return found
