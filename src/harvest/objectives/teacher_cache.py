"""What a frozen teacher sees of every clip, kept on disk: later epochs, and later runs, skip the teacher.

FOLDER/shard-00000.safetensors   of 64 clips: their numbers, the places that are stored, the teacher's attention there,
                                 and its aligned layers there, unit vectors in fp16 or fp8
FOLDER/filling.json              what the shards are made of, before the first of them; gone when the last is there
FOLDER/cache.json                the same; written last, and compared when it is opened

It holds for clips that look the same each time: middle frames, no random crop, no mirror.

Shapes: B clips, S tubelet times, N tubelets of a clip, M stored ones, K kept ones, E width of the teacher's space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.data.columns import Columns
from harvest.files import WHOLE, begin_filling, check_made_of, finish_filling, new_file
from harvest.interfaces import Example, Grid, HarvestError
from harvest.model.video_text import compile_blocks
from harvest.objectives.teaching import Teaching
from harvest.parallel import autocast, barrier, generator_for, sync_errors
from harvest.progress import bar
from harvest.tokens import Selection, attention_keep, budget_of, choose_equally

if TYPE_CHECKING:
    from harvest.objectives.contract import Ready

Stored = Literal["fp16", "fp8"]
DTYPES = {"fp16": torch.float16, "fp8": torch.float8_e4m3fn}
CLIPS_A_SHARD = 64
WHAT = "teacher cache"


class TeacherCache:
    """Opened shards; `draw` picks what a step sees and gives the teacher's layers there."""

    def __init__(self, folder: Path, *, made_of: dict[str, Any]) -> None:
        check_made_of(folder, made_of, WHAT)
        self.place_of: dict[int, tuple[int, int]] = {}  # clip -> shard, row
        self.shards: list[Any] = []
        for number, shard in enumerate(sorted(folder.glob("shard-*.safetensors"))):
            try:
                opened: Any = safetensors.safe_open(shard, framework="pt")
            except safetensors.SafetensorError as error:
                raise HarvestError(
                    f"{shard} cannot be read: {error}. Remove {folder} to fill it anew."
                ) from error
            self.shards.append(opened)
            clips: Tensor = opened.get_slice("clips")[:]
            for row, clip in enumerate(clips.tolist()):
                self.place_of[clip] = number, row

    def read(self, clips: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Places `[B, M]`, attention there `[B, M]` and layers `[B, layers, M, E]`, on the CPU in fp32."""
        parts: list[tuple[Tensor, ...]] = []
        for clip in clips:
            if clip not in self.place_of:
                raise HarvestError(
                    f"the teacher cache lacks clip {clip} of the training set: it could not be read then"
                )
            shard, row = self.place_of[clip]
            parts.append(
                tuple(
                    self.shards[shard].get_slice(name)[row : row + 1].float()
                    for name in ("places", "attention", "layers")
                )
            )
        places, attention, layers = (torch.cat(part) for part in zip(*parts, strict=True))
        return places.long(), attention, layers

    def draw(
        self, clips: Tensor, video: Tensor, grid: Grid, selection: Selection, *, generator: torch.Generator
    ) -> tuple[Tensor, list[Tensor]]:
        """The tubelets to keep `[B, K]`, drawn from the stored ones, and the teacher's layers there `[B, K, E]`."""
        places, attention, layers = (part.to(video.device) for part in self.read(clips.tolist()))
        M, K = places.shape[1], budget_of(selection, grid)
        check(selection, grid, num_stored=M)
        if K == M:
            chosen = torch.arange(M, device=places.device).expand(len(places), -1)
        elif selection.selector == "attention":
            chosen = attention_keep(attention, grid.num_times, budget=K, generator=generator)
        else:  # all are stored
            picked = choose_equally(selection, video, grid, generator=generator)
            assert picked is not None  # fewer than all
            chosen = picked
        keep = places.gather(1, chosen)
        rows = chosen[..., None].expand(-1, -1, layers.shape[-1])
        return keep, [layer.gather(1, rows) for layer in layers.unbind(1)]


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


def describe(
    teaching: Teaching,
    grid: Grid,
    *,
    share: float,
    stored: Stored,
    fit: str,
    clips: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """What a cache is made of: another teacher, other layers, another crop or other clips are another cache."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(teaching.teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    named = hashlib.blake2b(json.dumps(list(clips)).encode(), digest_size=16)
    return {
        "teacher": digest.hexdigest(),
        "layers": list(teaching.teacher_layers),
        "teacher_image_size": teaching.teacher.config.image_size,
        "grid": list(grid),
        "share": share,
        "stored": stored,
        "fit": fit,
        "clips": named.hexdigest(),
        "seed": seed,
    }


@torch.no_grad()
def fill(
    folder: Path,
    teaching: Teaching,
    shards: Iterable[tuple[int, Callable[[], Iterable[tuple[Tensor, Tensor]]]]],
    grid: Grid,
    *,
    share: float,
    stored: Stored,
    seed: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the shards that are not there yet: (number, a function that gives (clip numbers, video) batches).

    `begin_filling` sees before that those that are there are made of the same.
    In each frame `share` of the places are stored, drawn in proportion to attention, the same ones in every run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for number, batches in shards:
        path = folder / f"shard-{number:05d}.safetensors"
        if not path.exists():
            parts = [
                _look(teaching, clips, video.to(device), grid, share=share, seed=seed)
                for clips, video in batches()
            ]
            if parts:
                with torch.autocast("cpu", enabled=False):  # which knows no fp16 on a CPU
                    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                tensors["layers"] = tensors["layers"].to(DTYPES[stored])
                with new_file(path) as part:
                    safetensors.torch.save_file(tensors, part)
        done += CLIPS_A_SHARD
        progress(done)


def _look(
    teaching: Teaching, clips: Tensor, video: Tensor, grid: Grid, *, share: float, seed: int
) -> dict[str, Tensor]:
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
        "clips": clips.to(torch.int32),
        "places": places.to(torch.int32).cpu(),
        "attention": attention.gather(1, places).clamp(min=1e-7).half().cpu(),
        "layers": unit.half().cpu(),
    }


def prepare(objective: Any, ready: Ready) -> None:
    """What an objective with a teacher does before the first step: compile it, fill its cache and open it.

    Ranks share the filling.
    """
    teaching: Teaching | None = objective.teaching
    run, here, settings = ready.run, ready.here, objective.config
    if teaching is not None and run.loop.compiles_on(here.device):
        compile_blocks(teaching.teacher)
    if settings.teacher_cache is None:
        return
    assert teaching is not None  # the config says so
    if not isinstance(ready.dataset.examples, Columns):
        raise HarvestError("objective.teacher_cache needs a manifest: shards have no order of clips to keep")
    folder, size = Path(settings.teacher_cache), objective.model.config.video.image_size
    shape = (1, run.data.num_frames, 3, size, size)
    grid = objective.model.grid(torch.empty(shape, dtype=torch.uint8, device="meta"))
    firsts: dict[int, Example] = {}
    for example, clip in zip(ready.dataset.examples, ready.dataset.clip_of.tolist(), strict=True):
        firsts.setdefault(clip, example)
    clips = [firsts[clip] for clip in range(len(firsts))]
    how: dict[str, Any] = {
        "share": settings.teacher_cache_ratio,
        "stored": settings.teacher_cache_type,
        "seed": run.loop.seed,
    }
    made_of = describe(
        teaching,
        grid,
        fit=run.data.fit or objective.model.config.video.fit,
        clips=[f"{clip.video} {clip.start_s} {clip.end_s}" for clip in clips],
        **how,
    )
    if not (folder / WHOLE).exists():
        with sync_errors():
            if here.is_main:
                begin_filling(folder, made_of, WHAT)

        def batches(start: int) -> Iterator[tuple[Tensor, Tensor]]:
            for numbers, video in ready.read_clips(clips[start : start + CLIPS_A_SHARD]):
                yield numbers + start, video

        starts = range(0, len(clips), CLIPS_A_SHARD)
        mine = [(n, partial(batches, start)) for n, start in enumerate(starts) if n % here.size == here.rank]
        with (
            bar("the teacher looks", quiet=not here.is_main) as progress,
            autocast(here.device, run.loop.precision),
        ):
            fill(
                folder,
                teaching,
                mine,
                grid,
                device=here.device,
                progress=lambda done: progress(min(done * here.size, len(clips)), len(clips)),
                **how,
            )
        barrier()
        if here.is_main:
            finish_filling(folder, made_of)
        barrier()
    teaching.cache = TeacherCache(folder, made_of=made_of)
