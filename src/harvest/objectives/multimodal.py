"""UMT stage 2 (arXiv 2303.16058): a taught video tower meets words, still seeing a fifth of each clip.

Four losses of one step: the student's kept tubelets point where the teacher's do (alignment); clips and captions find
each other over the global batch (contrastive); pairs are told from near misses (matching); and hidden words are filled
by looking at the clip. An image is a clip of one frame, of which more is seen.

Shapes: B clips, C captions a clip, K kept tubelets, L words, D width of the text tower, G clips of all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harvest.interfaces import Batch, Grid, HarvestError, Losses, TextFeatures, VideoFeatures
from harvest.model.video_encoder import VideoEncoder
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contrast import ContrastiveLoss, contrast
from harvest.objectives.losses import masked_words, matching, negatives
from harvest.objectives.masked_alignment import (
    MaskedAlignmentConfig,
    Teaching,
    draw_drop_path_scale,
    is_guided,
)
from harvest.parallel import generator_for, mean_over_ranks, seed_for, world_rank_size
from harvest.tokens import Selection, choose_equally, mask_text


@dataclass(frozen=True)
class MultimodalConfig(MaskedAlignmentConfig):
    image_drop_ratio: float = 0.5
    """Share of the tubelets hidden of a clip of one frame."""
    alignment_weight: float = 1.0
    """0: without a teacher, as UMT fine-tunes; then drop_ratio 0 and image_drop_ratio 0 see everything."""
    contrastive_weight: float = 1.0
    contrastive_loss: ContrastiveLoss = "softmax"
    """How clips and captions find each other: softmax as CLIP, sigmoid as SigLIP."""
    matching_weight: float = 1.0
    masked_words_weight: float = 1.0
    text_mask_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.image_drop_ratio < 1 or not 0 <= self.text_mask_ratio <= 1:
            raise HarvestError(
                "objective: expected an image_drop_ratio of 0 or more and less than 1, and a text_mask_ratio of 0 to 1, "
                f"got {self.image_drop_ratio} and {self.text_mask_ratio}"
            )
        if self.teacher_cache is not None and not self.needs_teacher:
            raise HarvestError("objective.teacher_cache: this run has no teacher whose layers could be kept")
        weights = (
            self.alignment_weight,
            self.contrastive_weight,
            self.matching_weight,
            self.masked_words_weight,
        )
        if min(weights) < 0 or max(weights) == 0:
            raise HarvestError(f"objective: weights must be 0 or more, and one of them more, got {weights}")

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher looks along: to be followed, or to say what is kept."""
        hides = self.drop_ratio > 0 or self.image_drop_ratio > 0 or self.budget is not None
        return self.alignment_weight > 0 or (self.selector == "attention" and hides)

    def selection_for(self, selection: Selection, grid: Grid) -> Selection:
        """What is seen of clips of this many times; a clip of one frame is an image."""
        if grid.num_times > 1:
            return selection
        return dataclasses.replace(selection, drop_ratio=self.image_drop_ratio, budget=None)


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
            self.teaching.heads.requires_grad_(config.alignment_weight > 0)
        if config.contrastive_weight and config.contrastive_loss == "sigmoid":
            model.start_sigmoid()
        self._train_what_is_used()

    def _train_what_is_used(self) -> None:
        """Parameters that no loss of this run reaches get no gradient, and DDP would wait for it."""
        config, model = self.config, self.model
        model.requires_grad_(True)
        uses_text = config.contrastive_weight or config.matching_weight or config.masked_words_weight
        if model.answers is not None:
            model.answers.requires_grad_(False)
        if not uses_text:
            model.text.requires_grad_(False)
        if model.text.mask_embedding is not None:
            model.text.mask_embedding.requires_grad_(config.masked_words_weight > 0)
        if not config.contrastive_weight:  # negatives are drawn by the scores, without gradient
            for part in (model.video.projection, model.video.norm_pooled, model.text.projection):
                part.requires_grad_(False)
            model.log_scale.requires_grad_(False)
            if model.score_bias is not None:
                model.score_bias.requires_grad_(False)
        if model.fusion is not None:
            for name, parameter in model.fusion.named_parameters():
                is_match, is_word = (
                    name.startswith("head_match"),
                    name.startswith("head_") and "match" not in name,
                )
                weight = config.matching_weight if is_match else config.masked_words_weight
                if not (is_match or is_word):
                    weight = config.matching_weight + config.masked_words_weight
                parameter.requires_grad_(weight > 0)

    def forward(self, batch: Batch, step: int) -> Losses:
        rank, _ = world_rank_size()
        generator = generator_for(self.seed, step, rank)
        with seeded_dropout(seed_for(self.seed, step, rank)):
            return self.losses(batch, generator)

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
        drop_path_scale = self._drop_path_scale(len(batch.video), generator, batch.video.device)
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
        if wrong_clip is None or wrong_text is None:
            return 0.0 * self.match(video, text, None, None).sum()
        logits = self.match(video, text, wrong_clip, wrong_text)
        is_match = torch.arange(len(logits), device=logits.device) < len(example)
        return matching(logits, is_match)

    def match(
        self, video: VideoFeatures, text: TextFeatures, wrong_clip: Tensor | None, wrong_text: Tensor | None
    ) -> Tensor:
        """Scores `[3 B, 2]` of the pairs, of texts with wrong clips, and of clips with wrong texts."""
        rows = torch.arange(len(text.mask), device=text.mask.device)
        clips, texts = rows, rows
        if wrong_clip is not None and wrong_text is not None:
            clips = torch.cat([rows, wrong_clip, rows])
            texts = torch.cat([rows, rows, wrong_text])
        shown = video.rows(clips)
        read = TextFeatures(text.tokens[texts], text.pooled, text.mask[texts])
        return self.model.match(self.model.fuse(shown, read), read)

    def masked_words(
        self, video: VideoFeatures, text_ids: Tensor, masked_ids: Tensor, hidden: Tensor
    ) -> Tensor:
        """Cross-entropy at the words `hidden`, read from the masked captions beside the clips."""
        text = self.model.encode_text(masked_ids)
        states = self.model.fuse(video, text)
        logits = self.model.predict_words(states[hidden[:, : states.shape[1]]])  # at hidden positions only
        count = mean_over_ranks(hidden.sum().float())
        return masked_words(logits, text_ids[hidden], num_hidden=count)

    def _drop_path_scale(
        self, num_clips: int, generator: torch.Generator, device: torch.device
    ) -> Tensor | None:
        if not self.training or self.config.drop_path == 0:
            return None
        depth = self.model.config.video.depth
        return draw_drop_path_scale(depth, num_clips, rate=self.config.drop_path, generator=generator).to(
            device
        )


@contextmanager
def seeded_dropout(seed: int) -> Iterator[None]:
    """Dropout draws from PyTorch's global generators: seed them for a step, and leave them as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
