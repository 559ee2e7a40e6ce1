"""UMT stage 2 (arXiv 2303.16058): a taught video tower meets words, still seeing a fifth of each clip.

Four losses of one step: the student's kept tubelets point where the teacher's do (alignment); clips and captions find
each other over the global batch (contrastive); pairs are told from near misses (matching); and hidden words are filled
by looking at the clip. An image is a clip of one frame, of which more is seen.

Shapes: B clips, C captions a clip, K kept tubelets, L words, D width of the text tower, G clips of all ranks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from harvest.interfaces import Batch, Grid, HarvestError, Losses, TextFeatures, VideoFeatures
from harvest.model.alignment import AlignmentHeads
from harvest.model.fusion import FusionConfig
from harvest.model.importing.sources import find_model
from harvest.model.importing.umt import read_heads
from harvest.model.text_encoder import bert_text
from harvest.model.video_encoder import VideoEncoder
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives import teacher_cache
from harvest.objectives.contract import Given, Needs, Reading, hidden_words
from harvest.objectives.contrast import ContrastiveLoss, contrast
from harvest.objectives.losses import masked_words, matching, negatives
from harvest.objectives.masked_alignment import MaskedAlignmentConfig, check_taught
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import drop_path_of, seeded_dropout, step_generator, step_seed
from harvest.objectives.starting import start_second_stage
from harvest.objectives.teaching import Teaching, is_guided, load_teacher
from harvest.parallel import mean_over_ranks
from harvest.progress import say
from harvest.ranges import Range
from harvest.tokens import DropRatio, Selection, at_hidden, choose_equally, mask_text, most_hidden

if TYPE_CHECKING:
    from harvest.config import RunConfig

_TINY_BERT = bert_text(
    vocab_size=768,
    context_length=32,
    width=64,
    depth=1,
    num_heads=2,
    mlp_width=128,
    start_id=0,
    end_id=1,
    pad_id=2,
)


@dataclass(frozen=True)
class MultimodalConfig(MaskedAlignmentConfig):
    image_drop_ratio: DropRatio = 0.5
    """Share of the tubelets hidden of a clip of one frame."""
    alignment_weight: Annotated[float, Range(least=0)] = 1.0
    """0: without a teacher, as UMT fine-tunes; then drop_ratio 0 and image_drop_ratio 0 see everything."""
    contrastive_weight: Annotated[float, Range(least=0)] = 1.0
    contrastive_loss: ContrastiveLoss = "softmax"
    """How clips and captions find each other: softmax as CLIP, sigmoid as SigLIP."""
    matching_weight: Annotated[float, Range(least=0)] = 1.0
    masked_words_weight: Annotated[float, Range(least=0)] = 1.0
    text_mask_ratio: Annotated[float, Range(least=0, most=1)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_cache is not None and not self.needs_teacher:
            raise HarvestError("objective.teacher_cache: this run has no teacher whose layers could be kept")
        weights = (
            self.alignment_weight,
            self.contrastive_weight,
            self.matching_weight,
            self.masked_words_weight,
        )
        if max(weights) == 0:
            raise HarvestError("objective: one of the four weights must be more than 0")

    @property
    def aligns(self) -> bool:
        return self.alignment_weight > 0

    @property
    def needs_teacher(self) -> bool:
        hides = self.drop_ratio > 0 or self.image_drop_ratio > 0 or self.budget is not None
        return self.alignment_weight > 0 or (self.selector == "attention" and hides)

    def selection_for(self, selection: Selection, grid: Grid) -> Selection:
        """What is seen of clips of this many times; a clip of one frame is an image."""
        if grid.num_times > 1:
            return selection
        return dataclasses.replace(selection, drop_ratio=self.image_drop_ratio, budget=None)

    @property
    def needs(self) -> Needs:
        return Needs(
            self,
            matching=self.matching_weight > 0,
            second_stage=True,
            start=start_second_stage,
            check=self.check_run,
            check_seen=self._check_seen,
            prepare=teacher_cache.prepare,
            tiny=self._tiny,
            reading=self._reading,
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> nn.Module:
        teacher = load_teacher(run, self) if self.needs_teacher else None
        made = Multimodal(self, model, teacher, seed=run.loop.seed)
        if made.teaching is not None:
            _take_heads(made.teaching.heads, find_model(run.start.model), given)
        return made

    def _check_seen(self, selection: Selection, model: VideoTextModel, video: Tensor) -> None:
        check_taught(self, self.selection_for(selection, model.grid(video)), model, video)

    def _tiny(self, run: RunConfig) -> RunConfig:
        """A twin goes on from a twin of stage 1, with a text tower from scratch in the layout of BERT."""
        start = dataclasses.replace(run.start, model="runs/umt-stage1-b16", embed_dim=128)
        if start.text != "mini-image":
            bert = FusionConfig(depth=1, num_heads=4, layout="bert", tied_words=True, matches=True)
            start = dataclasses.replace(start, text="scratch", scratch_text=_TINY_BERT, fusion=bert)
        data = dataclasses.replace(run.data, images="mini-world/stills")
        return dataclasses.replace(run, start=start, data=data, objective=self.with_tiny_teacher())

    def _reading(self, sizes: ModelConfig, captions: int) -> Reading:
        read = captions if self.contrastive_weight or self.matching_weight else 0
        masked = 1 if self.masked_words_weight else 0
        return Reading(
            towers=3 * (read + masked),
            kept=read + masked,
            fused=masked + (3 if self.matching_weight else 0),  # a pair and two near misses
            hidden=masked * hidden_words(self.text_mask_ratio),
        )


def _take_heads(heads: AlignmentHeads, source: Path, given: Given) -> None:
    """Go on with the alignment heads of stage 1 where they can be had: its run folder, or a released file."""
    if source.is_file():
        found = read_heads(source)
    else:
        prefix = "teaching.heads."
        found = {k.removeprefix(prefix): t for k, t in given.earlier().items() if k.startswith(prefix)}
    own = heads.state_dict()
    if {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in own.items()}:
        heads.load_state_dict(found)
        say("the alignment heads go on from stage 1")
    else:
        say(
            "the alignment heads are new: those of stage 1 are not there, or are for other layers or another teacher"
        )


class Multimodal(nn.Module):
    """Alignment, contrastive, matching and masked words, each with its weight."""

    def __init__(
        self, config: MultimodalConfig, model: VideoTextModel, teacher: VideoEncoder | None, *, seed: int
    ) -> None:
        super().__init__()
        fusion = model.config.fusion
        if config.matching_weight and (fusion is None or not fusion.matches):
            raise HarvestError(
                "objective.matching_weight needs a model with a matching head (start.fusion.matches)"
            )
        if config.masked_words_weight and (fusion is None or not fusion.fills_words):
            raise HarvestError("objective.masked_words_weight needs a model whose fusion fills in words")
        if config.needs_teacher and teacher is None:
            raise HarvestError("this objective needs a teacher: objective.teacher")
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        self.teaching: Teaching | None = None
        if teacher is not None and config.needs_teacher:
            # The reference's heads of stage 2 have PyTorch's own epsilon, those of stage 1 have not.
            self.teaching = Teaching(config, model.config.video, teacher, norm_eps=1e-5)
        if config.contrastive_weight and config.contrastive_loss == "sigmoid":
            model.start_sigmoid()
        freeze_unreached(self, hides_words=config.masked_words_weight > 0)

    def forward(self, batch: Batch, step: int) -> Losses:
        with seeded_dropout(step_seed(self.seed, step)):
            return self.losses(batch, step_generator(self.seed, step, device=batch.video.device))

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        config, model, teaching = self.config, self.model, self.teaching
        grid = model.grid(batch.video)
        selection = self.selection_for(grid)
        aligns = config.alignment_weight > 0
        targets: list[Tensor] = []
        if teaching is not None and (aligns or is_guided(selection, grid)):
            keep, targets = teaching.draw(batch, grid, selection, generator=generator, with_targets=aligns)
        else:
            keep = choose_equally(selection, batch.video, grid, generator=generator)
        drop_path_scale = drop_path_of(
            model, batch.video, rate=config.drop_path, is_training=self.training, generator=generator
        )
        wanted = teaching.student_layers if teaching is not None and aligns else ()
        video = model.encode_video(batch.video, keep, layers=wanted, drop_path_scale=drop_path_scale)

        parts: dict[str, Tensor] = {}
        if teaching is not None and aligns:
            student = teaching.heads(video.layers, keep, grid.num_tubelets)
            parts["alignment"] = teaching.distance(student, targets)
        if config.contrastive_weight or config.matching_weight:
            C = batch.text_ids.shape[1]
            text = model.encode_text(batch.text_ids.flatten(0, 1))
            if config.contrastive_weight:
                parts["vtc"] = contrast(
                    model.scores,
                    video.pooled,
                    text.pooled,
                    example=batch.example,
                    loss=config.contrastive_loss,
                )
            if config.matching_weight:
                first = TextFeatures(*(part[::C] for part in text))  # one caption a clip
                parts["vtm"] = self.matching(video, first, batch.example, generator)
        if config.masked_words_weight:
            ids = batch.text_ids[:, 0]
            masked_ids, hidden = mask_text(
                ids,
                maskable=model.text.maskable(ids),
                ratio=config.text_mask_ratio,
                mask_id=model.mask_id,
                random_words=model.config.text_tower.vocab_size,
                generator=generator,
                length=model.config.text_tower.context_length,
            )
            parts["mlm"] = self.masked_words(video, ids, masked_ids, hidden)
        weights = {
            "alignment": config.alignment_weight,
            "vtc": config.contrastive_weight,
            "vtm": config.matching_weight,
            "mlm": config.masked_words_weight,
        }
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return Losses(total, {name: part.detach() for name, part in parts.items()})

    def selection_for(self, grid: Grid) -> Selection:
        return self.config.selection_for(self.selection, grid)

    def matching(
        self, video: VideoFeatures, text: TextFeatures, example: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Each pair against its text with a wrong clip and its clip with a wrong text, drawn by how near they are.

        Negatives come from this rank's clips. A batch in which all rows are one video has none, and asks nothing.
        """
        with torch.no_grad():
            scores = self.model.scores(video.pooled, text.pooled)  # texts by clips
            is_same = example[:, None] == example[None]
            wrong_clip = negatives(scores, is_same, generator=generator)
            wrong_text = negatives(scores.T, is_same, generator=generator)
        logits = self.match(video, text, wrong_clip, wrong_text)
        is_match = torch.arange(len(logits), device=logits.device) < len(example)
        return matching(logits, is_match) * (~is_same).any()

    def match(
        self, video: VideoFeatures, text: TextFeatures, wrong_clip: Tensor, wrong_text: Tensor
    ) -> Tensor:
        """Scores `[3 B, 2]` of the pairs, of texts with wrong clips, and of clips with wrong texts."""
        rows = torch.arange(len(text.mask), device=text.mask.device)
        clips, texts = torch.cat([rows, wrong_clip, rows]), torch.cat([rows, rows, wrong_text])
        shown = video.rows(clips)
        read = TextFeatures(text.tokens[texts], text.pooled, text.mask[texts])
        return self.model.match(self.model.fuse(shown, read), read)

    def masked_words(
        self, video: VideoFeatures, text_ids: Tensor, masked_ids: Tensor, hidden: Tensor
    ) -> Tensor:
        """Cross-entropy at the words `hidden`, read from the masked captions beside the clips."""
        text = self.model.encode_text(masked_ids)
        states = self.model.fuse(video, text)
        B, L = states.shape[:2]  # what is left out of padding has no hidden words
        most = most_hidden(B, L, ratio=self.config.text_mask_ratio)
        asked, targets = at_hidden(states, text_ids[:, :L], hidden[:, :L], most=most)
        count = mean_over_ranks(hidden.sum().float())
        return masked_words(self.model.predict_words(asked), targets, num_hidden=count)
