"""What a frozen teacher sees of every clip, kept in `data.stored_rows`: later epochs, and later runs, skip the teacher.

A row holds the places that are stored, the teacher's attention there, and its aligned layers there, unit vectors in fp16
or fp8. It holds for clips that look the same each time: middle frames, no random crop, no mirror.

Shapes: B clips, S tubelet times, N tubelets of a clip, M stored ones, K kept ones, E width of the teacher's space.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.stored_rows import Fields
from harvest.interfaces import Grid, HarvestError
from harvest.model.folder import digest_of
from harvest.model.video_text import compile_blocks
from harvest.objectives.stores import open_clip_rows
from harvest.parallel import generator_for
from harvest.tokens import Selection, attention_keep, budget_of, choose_equally

if TYPE_CHECKING:
    from harvest.objectives.contract import Ready
    from harvest.objectives.teaching import Teaching

Stored = Literal["fp16", "fp8"]
DTYPES = {"fp16": torch.float16, "fp8": torch.float8_e4m3fn}


def draw(
    rows: Mapping[str, Tensor], video: Tensor, grid: Grid, selection: Selection, *, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Of the stored fields of clips the tubelets to keep `[B, K]`, and the teacher's layers there, each `[B, K, E]`."""
    places, layers = rows["places"].long(), rows["layers"]
    M, K = places.shape[1], budget_of(selection, grid)
    check(selection, grid, num_stored=M)
    if K == M:
        return places, list(layers.float().unbind(1))
    if selection.selector == "attention":
        chosen = attention_keep(rows["attention"].float(), grid.num_times, budget=K, generator=generator)
    else:  # all are stored
        picked = choose_equally(selection, video, grid, generator=generator)
        assert picked is not None  # fewer than all
        chosen = picked
    stored = layers.view(torch.uint8)  # 8 bits have no gather of their own
    taken = stored.gather(2, chosen[:, None, :, None].expand(-1, stored.shape[1], -1, stored.shape[3]))
    return places.gather(1, chosen), list(taken.view(layers.dtype).float().unbind(1))


def num_stored(grid: Grid, share: float) -> int:
    """M: as many places of each frame, at least one."""
    return max(1, round(share * grid.num_patches)) * grid.num_times


def check(selection: Selection, grid: Grid, *, num_stored: int) -> None:
    """See that what a selection sees of a clip can be drawn from the stored tubelets."""
    M, K, N = num_stored, budget_of(selection, grid), grid.num_tubelets
    if K > M:
        raise HarvestError(
            f"{K} tubelets are kept and {M} stored: raise objective.teacher_cache_ratio, or keep fewer"
            " (tuning.drop_ratio in the last stage)"
        )
    if K < M < N and selection.selector != "attention":
        raise HarvestError(
            f"selector {selection.selector} may want any tubelet, and the teacher cache stores {M} of {N}: "
            "set objective.teacher_cache_ratio 1, or selector attention"
        )


def fields_of(grid: Grid, *, layers: int, width: int, share: float, stored: Stored) -> Fields:
    """What a row holds of `layers` of `width`: in each frame `share` of the places."""
    M = num_stored(grid, share)
    return {
        "places": (torch.int32, (M,)),
        "attention": (torch.float16, (M,)),
        "layers": (DTYPES[stored], (layers, M, width)),
    }


def look(
    teaching: Teaching, clips: Tensor, video: Tensor, grid: Grid, *, share: float, seed: int
) -> dict[str, Tensor]:
    """The fields of clips: places drawn in proportion to attention, the same ones in every run."""
    looks, attention = teaching.look(video, grid, attention=True)
    assert attention is not None  # asked for
    N = grid.num_tubelets
    budget = num_stored(grid, share)
    places = torch.arange(N, device=video.device).expand(len(clips), -1)
    if budget < N:
        rows = [
            attention_keep(row[None], grid.num_times, budget=budget, generator=generator_for(seed, int(clip)))
            for clip, row in zip(clips, attention, strict=True)
        ]
        places = torch.cat(rows)
    targets = torch.stack(teaching.targets(looks, places, is_even=True), dim=1).float()  # [B, layers, M, E]
    unit = (
        F.normalize(targets, dim=-1) * targets.shape[-1] ** 0.5
    )  # entries near 1: fp8 keeps three bits of each
    return {
        "places": places,
        "attention": attention.gather(1, places).clamp(min=1e-7),
        "layers": unit.half(),
    }


def prepare(objective: Any, ready: Ready) -> None:
    """What an objective with a teacher does before the first step: compile it, fill its cache and open it."""
    teaching: Teaching | None = objective.teaching
    run, settings = ready.run, objective.config
    if teaching is not None and run.loop.compiles_on(ready.here.device):
        compile_blocks(teaching.teacher)
    if settings.teacher_cache is None:
        return
    assert teaching is not None  # the config says so
    size, share = objective.model.config.video.image_size, settings.teacher_cache_ratio
    shape = (1, run.data.num_frames, 3, size, size)
    grid = objective.model.grid(torch.empty(shape, dtype=torch.uint8, device="meta"))
    made_of = {
        "teacher": digest_of(teaching.teacher),
        "layers": list(teaching.teacher_layers),
        "teacher_image_size": teaching.teacher.config.image_size,
        "grid": list(grid),
        "seed": run.loop.seed,
    }
    teaching.stored = open_clip_rows(
        ready,
        Path(settings.teacher_cache),
        "teacher",
        made_of,
        teaching.fields(grid, share=share, stored=settings.teacher_cache_type),
        lambda clips, video: look(teaching, clips, video, grid, share=share, seed=run.loop.seed),
    ).fields
