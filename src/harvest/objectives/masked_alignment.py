"""UMT stage 1 (arXiv 2303.16058): a video tower from scratch learns to see what an image tower sees, from a fifth.

The frozen teacher looks at every frame in full; the student sees the kept tubelets of the whole clip, and its last
layers there must point where the teacher's do. Nothing is reconstructed where tubelets are hidden.

Shapes: B clips, T frames, S tubelet times, P places, N = S * P tubelets, K kept ones, E width of the teacher's space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.interfaces import Batch, Grid, HarvestError, Losses
from harvest.model.alignment import AlignmentHeads
from harvest.model.layers import take
from harvest.model.teacher import Look, look, outputs
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.model.video_text import VideoTextModel
from harvest.objectives.losses import alignment
from harvest.parallel import generator_for, world_rank_size
from harvest.tokens import Selection, Selector, budget_of, choose_equally

EVEN = ("attention", "tube")
"""What keeps as many tubelets at each time, where the times divide the budget."""

if TYPE_CHECKING:
    from harvest.objectives.teacher_cache import TeacherCache


@dataclass(frozen=True)
class MaskedAlignmentConfig(Selection):
    teacher: str = "openai/clip-vit-base-patch16"
    """An image-text model whose image tower teaches: whatever `start.model` takes."""
    teacher_image_size: int | None = None
    """Frames are resized to this for the teacher; None is its own size. Its grid must be the student's: 196 for
    patches of 14, 224 for patches of 16."""
    teacher_int8: bool = False
    """The teacher multiplies in 8 bits, in all blocks but its last: on a CPU, 1.2 times the clips a second. What it
    changes: docs/method.md."""
    drop_ratio: float = 0.8
    """Share of the tubelets hidden from the student."""
    selector: Selector = "attention"
    """What the student sees: with attention, what the teacher attends to, in each frame alike."""
    num_layers: int = 6
    """The last so many layers are aligned, each through its own head."""
    student_interval: float = 1.0
    """Blocks between two aligned layers of the student, counted back from the last."""
    teacher_interval: float = 1.0
    loss: Literal["l2", "mse", "smooth_l1"] = "l2"
    """How unit vectors are compared: `2 - 2 cos`, or the mean over their entries."""
    drop_path: float = 0.1
    """Stochastic depth of the student: from 0 in the first block to this in the last."""
    teacher_cache: str | None = None
    """Folder in which what the teacher sees is kept, so that every epoch but the first skips it. Only for clips that
    look the same each time: data.times middle, no random crop, no mirror."""
    teacher_cache_ratio: float = 0.4
    """Share of a frame's places that are stored, drawn by attention; each step draws what it keeps among them. Where it
    is what is kept (0.2), every epoch sees the same; 1 stores all."""
    teacher_cache_type: Literal["fp16", "fp8"] = "fp8"
    """fp8 halves the cache; its directions are off by a cosine of about 1e-3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.teacher_cache_ratio <= 1:
            raise HarvestError(
                f"objective.teacher_cache_ratio: expected more than 0 and at most 1, got {self.teacher_cache_ratio}"
            )
        if not 0 <= self.drop_path < 1:
            raise HarvestError(
                f"objective.drop_path: expected 0 or more and less than 1, got {self.drop_path}"
            )
        if self.num_layers < 1 or self.student_interval <= 0 or self.teacher_interval <= 0:
            raise HarvestError(
                f"objective: num_layers {self.num_layers} must be at least 1, the intervals {self.student_interval} "
                f"and {self.teacher_interval} more than 0"
            )


def aligned_layers(depth: int, num_layers: int, interval: float = 1.0) -> tuple[int, ...]:
    """The blocks whose outputs are aligned, in ascending depth (UMT counts `depth - int(i * interval) - 1`).

    >>> aligned_layers(12, 6)
    (6, 7, 8, 9, 10, 11)
    """
    found = sorted({depth - int(i * interval) - 1 for i in range(num_layers)})
    if len(found) < num_layers or found[0] < 0:
        raise HarvestError(
            f"{depth} blocks do not have {num_layers} layers to align at an interval of {interval}"
        )
    return tuple(found)


def draw_drop_path_scale(depth: int, num_clips: int, *, rate: float, generator: torch.Generator) -> Tensor:
    """Stochastic depth as `drop_path_scale` `[depth, 2, num_clips]`: 0 where a branch is left out, else 1 / its chance."""
    chances = 1 - torch.linspace(0, rate, depth)[:, None, None]
    return (torch.rand(depth, 2, num_clips, generator=generator) < chances) / chances


class Teaching(nn.Module):
    """A frozen teacher, and the heads that carry a student's layers to where the teacher's are.

    The teacher is no part of the module: it is never trained, saved, wrapped or switched out of eval mode, but moves
    between devices with it. Its pixels are normalised with its own mean and std.
    """

    def __init__(
        self,
        config: MaskedAlignmentConfig,
        student: VideoEncoderConfig,
        teacher: VideoEncoder,
        *,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        taught = teacher.config
        check_grids(student.image_size, student.patch_size, taught.image_size, taught.patch_size)
        if taught.attention != "frame":
            raise ValueError(
                "the teacher looks at frames apart: attention 'frame' (model.inflation.as_teacher)"
            )
        self.loss = config.loss
        self.student_layers = aligned_layers(student.depth, config.num_layers, config.student_interval)
        self.teacher_layers = aligned_layers(taught.depth, config.num_layers, config.teacher_interval)
        self.heads = AlignmentHeads(
            config.num_layers,
            student.width,
            taught.embed_dim if taught.projection else taught.width,
            num_positions=student.num_times * student.num_patches,
            norm_eps=norm_eps,
        )
        self.num_times = student.num_times
        self.cache: TeacherCache | None = None
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple, it is not registered

    @property
    def teacher(self) -> VideoEncoder:
        return self._teacher[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.teacher._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def draw(
        self,
        batch: Batch,
        grid: Grid,
        selection: Selection,
        *,
        generator: torch.Generator,
        with_targets: bool = True,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """What the student sees of clips `[B, K]` (None: all), and the teacher's aligned layers there `[B, K, E]`.

        Out of the cache where there is one; it holds clips, and a picture is looked at.
        """
        is_picture = grid.num_times < self.num_times
        if self.cache is not None and not is_picture:
            return self.cache.draw(batch.example, batch.video, grid, selection, generator=generator)
        looks, attention = self.look(batch.video, grid, attention=is_guided(selection, grid))
        keep = choose_equally(
            selection, batch.video, grid, generator=generator, attention_fn=lambda: attention
        )
        if not with_targets:
            return keep, []
        return keep, self.targets(looks, keep, is_even=selection.selector in EVEN)

    @torch.no_grad()
    def look(self, video: Tensor, grid: Grid, *, attention: bool) -> tuple[Looks, Tensor | None]:
        """What `targets` goes on from, and where the teacher looks, `[B, N]`, if that is asked for.

        Of a tubelet of several frames the teacher looks at the first.
        """
        teacher = self.teacher
        frames = video[:, :: grid.tubelet_size].flatten(0, 1)
        size = teacher.config.image_size
        if frames.shape[-1] != size:
            frames = F.interpolate(
                teacher.normalise(frames), size=(size, size), mode="bicubic", align_corners=False
            )
        looks, weights = look(teacher, frames[:, None], layers=self.teacher_layers, attention=attention)
        return Looks(looks, grid), weights.view(len(video), -1) if weights is not None else None

    @torch.no_grad()
    def targets(self, seen: Looks, keep: Tensor | None, *, is_even: bool = False) -> list[Tensor]:
        """The teacher's aligned layers at the kept tubelets, after its last norm and in its shared space: `[B, K, E]`.

        `keep` `[B, K]` ascends. `is_even` says that it names as many tubelets at each time, which a GPU would have to
        wait for to find out; without it, a GPU computes the last block at all of them.
        """
        S, P = seen.grid.num_times, seen.grid.num_patches
        places, slots = None, None
        if keep is not None:
            places, slots = by_frame(keep, S, P, is_even=is_even)
        found = outputs(self.teacher, seen.frames, layers=self.teacher_layers, places=places)
        layers = [layer.view(-1, S * layer.shape[1], layer.shape[2]) for layer in found]
        return layers if slots is None else [take(layer, slots) for layer in layers]

    def distance(self, student: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The loss between layers `[B, K, E]` that went through the heads and the teacher's."""
        with torch.autocast(student[0].device.type, enabled=False):
            return alignment(torch.stack(list(student)), torch.stack(list(targets)), kind=self.loss)


class Looks(NamedTuple):
    """What a teacher has computed of the frames of a batch of clips."""

    frames: list[Look]
    grid: Grid


def by_frame(
    keep: Tensor, num_times: int, num_patches: int, *, is_even: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Kept tubelets `[B, K]`, ascending, frame by frame: places `[B * S, M]`, and where among a clip's S * M places
    each kept one is `[B, K]`; None where each frame keeps M.

    >>> import torch
    >>> places, slots = by_frame(torch.tensor([[0, 3, 4], [1, 2, 5]]), 2, 3)  # two frames of three places
    >>> places.tolist(), slots.tolist()
    ([[0, 0], [0, 1], [1, 2], [2, 0]], [[0, 2, 3], [0, 1, 2]])
    """
    B, K = keep.shape
    is_even = is_even and K % num_times == 0
    if is_even:
        return (keep % num_patches).view(B * num_times, -1), None
    times = keep // num_patches
    counts = torch.zeros(B, num_times, dtype=torch.int64, device=keep.device)
    counts.scatter_add_(1, times, torch.ones_like(times))
    M = int(counts.max()) if keep.device.type == "cpu" else num_patches
    before = (counts.cumsum(dim=1) - counts).gather(1, times)  # kept at earlier times
    slots = times * M + torch.arange(K, device=keep.device) - before
    places = torch.zeros(B, num_times * M, dtype=torch.int64, device=keep.device)
    return places.scatter_(1, slots, keep % num_patches).view(B * num_times, M), slots


class MaskedAlignment(nn.Module):
    """Aligns the student's kept tubelets with the teacher's, layer by layer."""

    def __init__(
        self, config: MaskedAlignmentConfig, model: VideoTextModel, teacher: VideoEncoder, *, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        self.teaching = Teaching(config, model.config.video, teacher)
        # Nothing here trains what is not in the loss: words, scales, and what follows the student's tokens.
        model.requires_grad_(False)
        for name, parameter in model.video.named_parameters():
            parameter.requires_grad_(not name.startswith(("norm_pooled.", "projection.", "pool.")))

    def forward(self, batch: Batch, step: int) -> Losses:
        rank, _ = world_rank_size()
        generator = generator_for(self.seed, step, rank)
        video, teaching = batch.video, self.teaching
        grid = self.model.grid(video)
        keep, targets = teaching.draw(batch, grid, self.selection, generator=generator)
        drop_path_scale = None
        if self.training and self.config.drop_path > 0:
            depth = self.model.config.video.depth
            drop_path_scale = draw_drop_path_scale(
                depth, len(video), rate=self.config.drop_path, generator=generator
            )
            drop_path_scale = drop_path_scale.to(video.device)
        seen = self.model.encode_video(
            video, keep, layers=teaching.student_layers, drop_path_scale=drop_path_scale
        )
        student = teaching.heads(seen.layers, keep, grid.num_tubelets)
        total = teaching.distance(student, targets)
        return Losses(total, {"alignment": total.detach()})


def is_guided(selection: Selection, grid: Grid) -> bool:
    """Whether a selection asks where the teacher looks: not where it sees all."""
    return selection.selector == "attention" and budget_of(selection, grid) < grid.num_tubelets


def check_grids(image_size: int, patch_size: int, teacher_image_size: int, teacher_patch_size: int) -> None:
    """Student and teacher must divide a frame alike; HarvestError says which sizes would."""
    grid, taught = image_size // patch_size, teacher_image_size // teacher_patch_size
    if grid != taught:
        raise HarvestError(
            f"student and teacher divide a frame differently: {grid} x {grid} places ({image_size} / {patch_size}) and "
            f"{taught} x {taught} ({teacher_image_size} / {teacher_patch_size}). They match with "
            f"objective.teacher_image_size {grid * teacher_patch_size}, or with a student of image_size "
            f"{taught * patch_size}."
        )
