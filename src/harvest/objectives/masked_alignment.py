"""UMT stage 1 (arXiv 2303.16058): a video tower from scratch learns to see what an image tower sees, from a fifth.

The frozen teacher looks at every frame in full; the student sees the kept tubelets of the whole clip, and its last
layers there must point where the teacher's do. Nothing is reconstructed where tubelets are hidden.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor, nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.video_encoder import VideoEncoder
from harvest.model.video_text import VideoTextModel
from harvest.objectives import teacher_cache
from harvest.objectives.contract import Given, Needs
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import check_seen, drop_path_of, step_generator
from harvest.objectives.teaching import Teaching, is_guided, load_teacher
from harvest.ranges import Range
from harvest.tokens import DropRatio, Selection, Selector

if TYPE_CHECKING:
    from harvest.config import RunConfig


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
    drop_ratio: DropRatio = 0.8
    """Share of the tubelets hidden from the student."""
    selector: Selector = "attention"
    """What the student sees: with attention, what the teacher attends to, in each frame alike."""
    num_layers: Annotated[int, Range(least=1)] = 6
    """Number of last layers that are aligned, each through its own head."""
    student_interval: Annotated[float, Range(above=0)] = 1.0
    """Blocks between two aligned layers of the student, counted back from the last."""
    teacher_interval: Annotated[float, Range(above=0)] = 1.0
    loss: Literal["l2", "mse", "smooth_l1"] = "l2"
    """How unit vectors are compared: `2 - 2 cos`, or the mean over their entries."""
    drop_path: Annotated[float, Range(least=0, below=1)] = 0.1
    """Stochastic depth of the student: from 0 in the first block to this in the last."""
    teacher_cache: str | None = None
    """Folder in which what the teacher sees is kept, so that every epoch but the first skips it. Only for clips that
    look the same each time: data.times middle, no random crop, no mirror."""
    teacher_cache_ratio: Annotated[float, Range(above=0, most=1)] = 0.4
    """Share of a frame's places that are stored, drawn by attention; each step draws what it keeps among them. Where it
    is what is kept (0.2), every epoch sees the same; 1 stores all."""
    teacher_cache_type: Literal["fp16", "fp8"] = "fp8"
    """fp8 halves the cache; its directions are off by a cosine of about 1e-3."""

    @property
    def aligns(self) -> bool:
        """Whether the student's layers are to point where the teacher's do."""
        return True

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is there: to be followed, or to say what is kept."""
        return True

    @property
    def needs(self) -> Needs:
        return Needs(
            self,
            text=False,
            check=self.check_run,
            check_seen=partial(check_taught, self),
            prepare=teacher_cache.prepare,
            tiny=lambda run: dataclasses.replace(run, objective=self.with_tiny_teacher()),
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> nn.Module:
        return MaskedAlignment(self, model, load_teacher(run, self), seed=run.loop.seed)

    def with_tiny_teacher(self) -> MaskedAlignmentConfig:
        return dataclasses.replace(self, teacher="mini-image", teacher_image_size=None, num_layers=2)

    def check_run(self, run: RunConfig) -> None:
        data = run.data
        is_fixed = data.times == "middle" and data.crop_scale == (1.0, 1.0) and not data.flip
        if self.teacher_cache is not None and not (is_fixed and data.rand_augment == 0):
            raise HarvestError(
                "objective.teacher_cache holds for clips that look the same each time: give --data.times middle "
                "--data.crop-scale 1 1 --data.no-flip, and no RandAugment"
            )
        if run.vary.image_sizes:
            raise HarvestError(
                "vary.image_sizes: a student and its teacher divide every frame alike; leave them out beside a teacher"
            )


def check_taught(
    config: MaskedAlignmentConfig, selection: Selection, model: VideoTextModel, video: Tensor
) -> None:
    """See that a student can learn what is seen of clips, and that the teacher's cache, where there is one, has it."""
    check_seen(selection, model, video, attention=config.needs_teacher, equally=True)
    grid = model.grid(video)
    if config.teacher_cache is None or grid.num_times < model.config.video.num_times:
        return
    if config.aligns or is_guided(selection, grid):
        stored = teacher_cache.num_stored(grid, config.teacher_cache_ratio)
        teacher_cache.check(selection, grid, num_stored=stored)


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
        freeze_unreached(self)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        video, teaching = batch.video, self.teaching
        grid = self.model.grid(video)
        keep, targets = teaching.draw(batch, grid, self.selection, generator=generator)
        drop_path_scale = drop_path_of(
            self.model, video, rate=self.config.drop_path, is_training=self.training, generator=generator
        )
        seen = self.model.encode_video(
            video, keep, layers=teaching.student_layers, drop_path_scale=drop_path_scale
        )
        student = teaching.heads(seen.layers, keep, grid.num_tubelets)
        total = teaching.distance(student, targets)
        return Losses(total, {"alignment": total.detach()})
