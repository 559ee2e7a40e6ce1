"""Videos without captions: an image model learns to say of a clip from a few tubelets what it says of all its frames.

The image model, frozen, embeds every frame alone, and the mean of these embeddings is what the video model is to give
for the clip. This is UMT's idea (arXiv 2303.16058), a teacher that sees all and a student that sees little, in the
shared space of image and text: the text tower stays as it is and finds what the student embeds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from harvest.data.columns import Columns
from harvest.files import write_file
from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.folder import digest_of
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Given, Needs, Ready
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import check_seen, choose_seen, step_generator
from harvest.parallel import autocast, computed_in, mean_over_ranks, sync_errors
from harvest.progress import bar
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
            prepare=fill_targets,
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
    """Pulls the embedding of what is seen of a clip towards the teacher's of the whole clip: the loss is `1 - cos`."""

    targets: Tensor

    def __init__(self, config: EmbeddingAlignmentConfig, model: VideoTextModel, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        # The teacher's embeddings, fp16 [clips, E], filled before the first step: 1 kB a clip at a width of 512.
        nothing = torch.zeros(1, model.config.video.embed_dim, dtype=torch.float16)
        self.register_buffer("targets", nothing, persistent=False)
        freeze_unreached(self)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        keep = choose_seen(self.model, self.selection, batch.video, generator=generator)
        pooled = self.model.encode_video(batch.video, keep).pooled
        cosine = (pooled.float() * self.targets[batch.example].float()).sum(dim=1)
        total = (1 - cosine).mean()
        return Losses(total, {"distance": total.detach()})


def fill_targets(objective: EmbeddingAlignment, ready: Ready) -> None:
    """Embed every clip of the training set with the image model, or read what an earlier start has kept.

    Ranks share the work. The file lies beside the run's folder, under a name that is a digest of the model and the
    clips: runs of the same share it.
    """
    from harvest.data.read_once import first_rows  # decodes: training is started where there is no PyAV too

    run, here, dataset, teacher = ready.run, ready.here, ready.dataset, ready.image_model
    if teacher is None:
        raise HarvestError(f"start.model {run.start.model} is no image model: adaptation starts from one")
    if not isinstance(dataset.examples, Columns):
        raise HarvestError("the teacher's embeddings need a manifest: shards have no order of clips to keep")
    clips = [dataset.examples[row] for row in first_rows(dataset.clip_of)]
    named = "\n".join(f"{clip.video} {clip.start_s} {clip.end_s}" for clip in clips)
    shown = [run.data.num_frames, run.data.fit, computed_in(here.device, run.loop.precision)]
    digest = hashlib.sha256(f"{digest_of(teacher.video)} {shown}\n{named}".encode()).hexdigest()
    path = ready.folder.parent / f"targets-{digest[:16]}.safetensors"
    kept = _kept(path)
    if kept is None:
        teacher.to(here.device).eval()
        mine = torch.arange(here.rank, len(clips), here.size)
        targets = torch.zeros(len(clips), objective.targets.shape[1], device=here.device)
        with (
            torch.no_grad(),
            autocast(here.device, run.loop.precision),
            bar("the teacher embeds the clips", quiet=not here.is_main) as progress,
        ):
            for numbers, video in ready.read_clips([clips[place] for place in mine]):
                frames = video.to(here.device).flatten(0, 1)[:, None]
                pooled = teacher.encode_video(frames).pooled.float().view(*video.shape[:2], -1).mean(dim=1)
                targets[mine[numbers]] = F.normalize(pooled, dim=1)
                progress(int(numbers[-1]) + 1, len(mine))
        teacher.cpu()
        kept = (mean_over_ranks(targets) * here.size).half()
        with sync_errors():
            if here.is_main:
                write_file(path, save({"targets": kept.cpu()}))
    objective.targets = kept.to(here.device)


def _kept(path: Path) -> Tensor | None:
    """The embeddings of an earlier start; None where there are none, or damaged ones."""
    try:
        return load_file(path)["targets"]
    except (OSError, SafetensorError):
        return None
