"""Action detection: what every boxed actor does, read from the tower's tokens where the box is (AVA).

Boxes of people are given, in training by the annotators, in the test by them or by a detector; what is learned is what
people do. Shapes: B clips, R boxes of all clips, A actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.data.labels import boxed, read_class_names
from harvest.data.words import names_a_side
from harvest.interfaces import Batch, Example, HarvestError, Losses
from harvest.model.heads import HeadConfig, build_head
from harvest.model.regions import region_features
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Given, Needs
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import drop_path_of, seeded_dropout, step_generator, step_seed
from harvest.parallel import mean_over_ranks, send
from harvest.ranges import Range, check_ranges
from harvest.tokens import Selection

if TYPE_CHECKING:
    from harvest.config import RunConfig
    from harvest.objectives.contract import Rows


@dataclass(frozen=True)
class DetectionConfig:
    classes: str | None = None
    """File of the actions' names in the order of the labels: a JSON list, a name a line, or names with their
    numbers (docs/tasks.md)."""
    drop_path: Annotated[float, Range(least=0, below=1)] = 0.2
    head_dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    flip: bool = True
    """Mirror every other clip, and its boxes; none with an action whose name says left or right."""
    drop_ratio: float = 0.0
    """0: regions are cut out of all tubelets."""

    def __post_init__(self) -> None:
        check_ranges(self, "objective")
        if self.drop_ratio != 0:
            raise HarvestError("objective.drop_ratio: detection reads regions of all tubelets, it must be 0")

    @property
    def needs(self) -> Needs:
        return Needs(
            Selection(),
            text=False,
            from_shards=False,
            rows=self._boxed,
            check=_check,
            check_seen=lambda *_: None,  # all is seen
            tiny=lambda run: dataclasses.replace(run, objective=dataclasses.replace(self, flip=False)),
            mini_world="mini-world/acting",
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> Detection:
        return Detection(self, model, given.names, given.clips, seed=run.loop.seed)

    def _boxed(self, rows: Rows, listed: Path | None) -> tuple[Rows, list[str]]:
        """The rows with boxes, one a clip, so that the numbers of clips are those of rows; and the actions."""
        path = self.classes or listed
        if path is None:
            raise HarvestError(
                "detection needs the actions' names in the order of their labels: --objective.classes FILE"
            )
        names = read_class_names(path)
        return boxed(rows, len(names)), names


def _check(run: RunConfig) -> None:
    if run.data.fit != "squash" or run.data.flip:
        raise HarvestError(
            "boxes are shares of whole pictures: detection needs --data.fit squash, and mirrors clips with their boxes"
            " itself (objective.flip, not data.flip)"
        )


class BoxTable(nn.Module):
    """The boxes of every clip of a training set, on the device: rows of clip c are `starts[c]` to `starts[c + 1]`."""

    starts: Tensor  # int64 [clips + 1]
    boxes: Tensor  # fp32 [boxes, 4]
    actions: Tensor  # uint8 [boxes, A]

    def __init__(self, clips: Sequence[Example], num_actions: int) -> None:
        super().__init__()
        counts = [len(example.boxes) for example in clips]
        rows = [box for example in clips for box in example.boxes]
        actions = torch.zeros(len(rows), num_actions, dtype=torch.uint8)
        for row, box in zip(actions, rows, strict=True):
            row[list(box.labels)] = 1
        self.register_buffer("starts", F.pad(torch.tensor(counts).cumsum(0), (1, 0)), persistent=False)
        self.register_buffer("boxes", torch.tensor([box.sides for box in rows]), persistent=False)
        self.register_buffer("actions", actions, persistent=False)

    def of(self, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes `[R, 4]`, their actions `[R, A]` and whose they are in the batch `[R]`, of clips `[B]`."""
        count = self.starts[clip + 1] - self.starts[clip]
        num_boxes = int(count.sum())  # the host reads it: what is computed has its size
        owner = torch.arange(len(clip), device=clip.device).repeat_interleave(count, output_size=num_boxes)
        first = count.cumsum(0) - count
        rows = self.starts[clip][owner] + torch.arange(len(owner), device=clip.device) - first[owner]
        return self.boxes[rows], self.actions[rows], owner


class Detection(nn.Module):
    """Binary cross-entropy of every action of every box, a mean over the boxes of the global batch."""

    def __init__(
        self,
        config: DetectionConfig,
        model: VideoTextModel,
        names: Sequence[str],
        clips: Sequence[Example],
        *,
        seed: int,
    ) -> None:
        super().__init__()
        if model.config.video.prefix == "clip" or model.config.video.attention == "frame":
            raise HarvestError("detection reads the tokens of a tower whose frames see each other")
        self.config = config
        self.model = model
        self.seed = seed
        self.table = BoxTable(clips, len(names))
        self.sided = [number for number, name in enumerate(names) if names_a_side([name])]
        self.head = build_head(HeadConfig("boxes", tuple(names), model.config.video.width, several=True))
        freeze_unreached(self)

    def forward(self, batch: Batch, step: int) -> Losses:
        B, device = len(batch.video), batch.video.device
        generator = step_generator(self.seed, step, device=device)
        boxes, actions, owner = self.table.of(batch.example)
        video = batch.video
        if self.training and self.config.flip:
            mirrored = send(torch.rand(B, generator=generator, device=generator.device) < 0.5, device)
            if self.sided:
                sided = actions[:, send(torch.tensor(self.sided), device)].sum(dim=1).float()
                mirrored &= torch.zeros(B, device=device).index_add(0, owner, sided) == 0
            video = torch.where(mirrored[:, None, None, None, None], video.flip(-1), video)
            boxes = torch.where(mirrored[owner, None], mirror(boxes), boxes)
        drop_path_scale = drop_path_of(
            self.model, video, rate=self.config.drop_path, is_training=self.training, generator=generator
        )
        seen = self.model.video_features(video, drop_path_scale=drop_path_scale)
        with seeded_dropout(step_seed(self.seed, step)):
            regions = region_features(seen.tokens, self.model.grid(video).num_patches, boxes, owner)
            scores = self.head(regions, dropout=self.config.head_dropout if self.training else 0.0).float()
        each = F.binary_cross_entropy_with_logits(scores, actions.float(), reduction="none").mean(dim=1)
        # Ranks may have different numbers of boxes: each counts alike in the mean that the ranks' gradients make.
        loss = each.sum() / mean_over_ranks(torch.full((), float(len(each)), device=device)).clamp(min=1)
        boxes_a_clip = torch.full((), len(each) / B, device=device)
        return Losses(loss, {"actions": loss.detach(), "boxes": boxes_a_clip})


def mirror(boxes: Tensor) -> Tensor:
    """Boxes `[R, 4]` of the mirrored picture."""
    left, top, right, bottom = boxes.unbind(dim=-1)
    return torch.stack([1 - right, top, 1 - left, bottom], dim=-1)
