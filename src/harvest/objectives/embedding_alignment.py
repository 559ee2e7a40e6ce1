"""Videos without captions: an image model learns to say of a clip from a few tubelets what it says of all its frames.

The image model, frozen, embeds every frame alone, and the mean of these embeddings is what the video model is to give
for the clip. This is UMT's idea (arXiv 2303.16058), a teacher that sees all and a student that sees little, in the
shared space of image and text: the text tower stays as it is and finds what the student embeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.folder import digest_of
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Given, Needs, Ready
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import check_seen, choose_seen, step_generator
from harvest.objectives.stores import open_clip_rows
from harvest.tokens import DropRatio, Selection, Selector

if TYPE_CHECKING:
    from harvest.config import RunConfig


@dataclass(frozen=True)
class EmbeddingAlignmentConfig(Selection):
    drop_ratio: DropRatio = 0.9
    """Share of the tubelets that the student does not see. `vary.budgets` trains for several at once."""
    selector: Selector = "motion"

    @property
    def needs(self) -> Needs:
        return Needs(
            self,
            text=False,
            check=check_run,
            check_seen=partial(check_seen, attention=True),
            prepare=open_targets,
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> nn.Module:
        return EmbeddingAlignment(self, model, seed=run.loop.seed)


def check_run(run: RunConfig) -> None:
    """Raise HarvestError where the teacher would see other clips than the student."""
    data = run.data
    if data.times != "middle" or data.crop_scale != (1.0, 1.0) or data.flip or data.rand_augment:
        raise HarvestError(
            "the teacher sees every clip once, before the first step, so clips must look the same each time: give"
            " --data.times middle --data.crop-scale 1 1 --data.no-flip, and no RandAugment"
        )
    if data.images:
        raise HarvestError(
            "data.images brings captioned pictures, and nothing is learned from captions here: leave it out"
        )


class EmbeddingAlignment(nn.Module):
    """Pulls the embedding of what is seen of a clip towards the teacher's of the whole clip, which batches bring as fp16:
    the loss is `1 - cos`."""

    def __init__(self, config: EmbeddingAlignmentConfig, model: VideoTextModel, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        freeze_unreached(self, stored=2 * model.config.video.embed_dim)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        keep = choose_seen(self.model, self.selection, batch.video, generator=generator)
        pooled = self.model.encode_video(batch.video, keep).pooled
        cosine = (pooled.float() * batch.stored.view(torch.float16).float()).sum(dim=1)
        total = (1 - cosine).mean()
        return Losses(total, {"distance": total.detach()})


def open_targets(objective: EmbeddingAlignment, ready: Ready) -> None:
    """Embed every clip of the training set with the image model, or open what an earlier start has stored.

    The store lies beside the run's folder, where runs of the same model and clips share it.
    """
    run, device, teacher = ready.run, ready.here.device, ready.image_model
    if teacher is None:
        raise HarvestError(f"start.model {run.start.model} is no image model: adaptation starts from one")

    def look(clips: Tensor, video: Tensor) -> dict[str, Tensor]:
        frames = video.flatten(0, 1)[:, None]
        pooled = teacher.encode_video(frames).pooled.float().view(*video.shape[:2], -1).mean(dim=1)
        return {"pooled": F.normalize(pooled, dim=1)}

    teacher.to(device).eval()
    fields = {"pooled": (torch.float16, (teacher.config.video.embed_dim,))}
    open_clip_rows(ready, ready.folder.parent, "targets", {"teacher": digest_of(teacher.video)}, fields, look)
    teacher.cpu()
