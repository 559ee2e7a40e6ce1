"""A frozen teacher and what carries a student's layers to it: UMT's two stages learn by it (arXiv 2303.16058).

Shapes: B clips, T frames, S tubelet times, P places, N = S * P tubelets, K kept ones, E width of the teacher's space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.data.stored_rows import Fields, unpack
from harvest.interfaces import Batch, Grid, HarvestError
from harvest.model.alignment import AlignmentHeads
from harvest.model.importing.pretrained import load_any
from harvest.model.inflation import as_teacher
from harvest.model.layers import take
from harvest.model.teacher import Look, look, outputs
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig
from harvest.objectives import teacher_cache
from harvest.objectives.losses import alignment
from harvest.objectives.starting import vocabulary_of
from harvest.parallel import TYPES, computed_in, own_device
from harvest.progress import say
from harvest.tokens import SELECTORS, Selection, budget_of, choose_equally

if TYPE_CHECKING:
    from harvest.config import RunConfig


class TeachingConfig(Protocol):
    """The settings of an objective that has a teacher."""

    @property
    def teacher(self) -> str: ...
    @property
    def teacher_image_size(self) -> int | None: ...
    @property
    def teacher_int8(self) -> bool: ...
    @property
    def loss(self) -> Literal["l2", "mse", "smooth_l1"]: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def student_interval(self) -> float: ...
    @property
    def teacher_interval(self) -> float: ...


def load_teacher(run: RunConfig, config: TeachingConfig) -> VideoEncoder:
    """The image tower of `objective.teacher`, which needs no texts (DINOv2), frozen, in the precision of the run."""
    dtype = TYPES[computed_in(own_device(), run.loop.precision)]
    with torch.random.fork_rng(devices=[]):  # what is new in the run is drawn as without a teacher
        model, _, report = load_any(
            config.teacher, image_size=config.teacher_image_size, vocabulary=vocabulary_of(run)
        )
        if model.config.video.num_frames != 1:
            raise HarvestError(
                f"objective.teacher {config.teacher} is a video model of {model.config.video.num_frames} frames: "
                "give an image model"
            )
        say(f"the teacher is {report}")
        return as_teacher(model, dtype=dtype, int8=config.teacher_int8)


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


class Teaching(nn.Module):
    """A frozen teacher, and the heads that carry a student's layers to where the teacher's are.

    The teacher is no part of the module: it is never trained, saved, wrapped or switched out of eval mode, but moves
    between devices with it. Its pixels are normalised with its own mean and std.
    """

    def __init__(
        self,
        config: TeachingConfig,
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
        self.stored: Fields | None = None
        """What batches bring of clips that the teacher has looked at before."""
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple, it is not registered

    @property
    def teacher(self) -> VideoEncoder:
        return self._teacher[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.teacher._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def fields(self, grid: Grid, *, share: float, stored: teacher_cache.Stored) -> Fields:
        """What a store holds of a clip."""
        taught = self.teacher.config
        width = taught.embed_dim if taught.projection else taught.width
        layers = len(self.teacher_layers)
        return teacher_cache.fields_of(grid, layers=layers, width=width, share=share, stored=stored)

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

        Out of the cache where there is one; it holds whole clips, and pictures and shorter ones are looked at.
        """
        if self.stored is not None and len(batch.stored) and grid.num_times == self.num_times:
            rows = unpack(batch.stored, self.stored)
            return teacher_cache.draw(rows, batch.video, grid, selection, generator=generator)
        looks, attention = self.look(batch.video, grid, attention=is_guided(selection, grid))
        keep = choose_equally(
            selection, batch.video, grid, generator=generator, attention_fn=lambda: attention
        )
        if not with_targets:
            return keep, []
        return keep, self.targets(looks, keep, is_even=SELECTORS[selection.selector].by_frame)

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
