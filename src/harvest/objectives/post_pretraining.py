"""Harvest (arXiv 2310.19554): an image-text model learns video from captioned clips, seeing a tenth of each.

Patches are dropped at random before the encoder, so a step costs a tenth. Words of the caption are hidden and
must be filled by looking at the video, which teaches the fusion of the two. The text tower stays frozen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harvest.interfaces import Batch, HarvestError, Kept, Losses
from harvest.model.matryoshka import shorten
from harvest.model.video_text import ModelConfig, VideoTextModel
from harvest.objectives.contract import Given, Needs, Reading, Ready, hidden_words
from harvest.objectives.contrast import Bank, ContrastiveLoss, contrast
from harvest.objectives.hard_texts import encode_hard_texts, hard_text_parts, hard_text_source
from harvest.objectives.losses import masked_words
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import choose_seen, step_generator
from harvest.objectives.text_store import STORED, Captions, TextType, open_texts
from harvest.objectives.text_tuning import TextTuningConfig, tune_text_tower
from harvest.parallel import generator_for, mean_over_ranks, send
from harvest.ranges import Range
from harvest.tokens import DropRatio, Selection, at_hidden, mask_text, most_hidden
from harvest.tokens.hard_negatives import RULES, Rule

if TYPE_CHECKING:
    from harvest.config import RunConfig


@dataclass(frozen=True)
class PostPretrainingConfig(Selection):
    drop_ratio: DropRatio = 0.9
    """Share of tubelets dropped in each clip, where no budget is given."""
    text_mask_ratio: Annotated[float, Range(least=0, most=1)] = 0.15
    masked_words_ratio: Annotated[float, Range(above=0, most=1)] = 1.0
    """Share of a batch's clips whose captions get hidden words. Where towers are small, that half costs as much as
    the video tower, and the contrastive half learns from every clip all the same."""
    text_tower: Literal["frozen", "trained"] = "frozen"
    text_tuning: TextTuningConfig = field(default_factory=TextTuningConfig)
    """A stage on texts alone before the first step, after which a frozen tower tells apart what it did not."""
    contrastive_weight: float = 1.0
    contrastive_loss: ContrastiveLoss = "softmax"
    """How clips and captions find each other: softmax as CLIP, sigmoid as SigLIP. A model that was trained by softmax
    starts with SigLIP's bias of -10 and scale of 10; raise their learning rate (optim.lr_factors)."""
    masked_words_weight: float = 1.0
    cache_texts: bool = False
    """Encode all captions once, into files that workers read a step's rows of. Only with a frozen text tower; `harvest
    encode-texts` does it before a run."""
    text_store: str | None = None
    """Folder of the encoded captions, one folder in it for each tower and data set; None: beside the run's folder."""
    text_store_type: TextType = "fp32"
    """4 or 2 * embed_dim bytes a caption. fp16 is computed in the run's precision."""
    text_bank: int = 0
    """So many other cached captions, drawn afresh each step, are further negatives of every clip. A frozen tower
    makes them free, and they hold what a batch hardly ever does: captions that differ from the right one in little."""
    hard_negatives: Annotated[int, Range(least=0)] = 0
    """Sentences a clip, drawn at each step, that a rule makes false of it: another direction, order, action or colour
    (`tokens.hard_negatives`). They are negatives of their own clip alone."""
    hard_rules: tuple[Rule, ...] = RULES
    """What those sentences change of the caption."""
    chunk_clips: Annotated[int, Range(least=0)] = 0
    """Clips of a process that are computed at a time; 0 for all. A batch of any size then needs the memory of one such
    chunk, with the gradients of the whole batch, since what was drawn for it is kept; the forward pass is done twice."""
    dims: tuple[int, ...] = ()
    """Sizes of shorter embeddings, the first entries of the whole one (Matryoshka); each adds its contrastive loss.
    A run that starts from an image model first turns the shared space to the axes in which its captions differ most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_texts and self.text_tower == "trained":
            raise HarvestError(
                "objective.cache_texts needs objective.text_tower frozen: a trained tower's embeddings change every step"
            )
        if self.text_bank and not self.cache_texts:
            raise HarvestError(
                "objective.text_bank draws from the cache of texts: it needs objective.cache_texts"
            )

    @property
    def needs(self) -> Needs:
        return Needs(
            self,
            captions=bool(self.dims),
            fusion=self.masked_words_weight > 0,
            hard_texts=hard_text_source(self.hard_negatives, self.hard_rules),
            check=self._check,
            prepare=_prepare_texts,
            tiny=_tiny,
            reading=self._reading,
        )

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> PostPretraining:
        return PostPretraining(self, model, seed=run.loop.seed)

    def _check(self, run: RunConfig) -> None:
        if self.cache_texts and run.data.images:
            raise HarvestError(
                "data.images brings captions that the cache of the clips' does not hold: set objective.cache_texts False"
                " (and objective.text_bank 0)"
            )

    def _reading(self, sizes: ModelConfig, captions: int) -> Reading:
        trained, plain = self.text_tower == "trained", 0 if self.cache_texts else captions
        masked = self.masked_words_ratio if self.masked_words_weight > 0 else 0.0
        return Reading(
            towers=(3 if trained else 1) * plain + (3 if trained else 2) * masked,
            kept=(plain if trained else 0) + masked,
            fused=masked,
            hidden=masked * hidden_words(self.text_mask_ratio),
        )


def _tiny(run: RunConfig) -> RunConfig:
    objective = run.objective
    assert isinstance(objective, PostPretrainingConfig)
    tuning = objective.text_tuning
    few = dataclasses.replace(tuning, steps=min(2, tuning.steps), captions=4)
    return dataclasses.replace(run, objective=dataclasses.replace(objective, text_tuning=few))


def _prepare_texts(objective: PostPretraining, ready: Ready) -> None:
    config = objective.config
    folder = ready.folder.parent if config.text_store is None else Path(config.text_store)
    if config.text_tuning.steps:
        tune_text_tower(objective.model, config.text_tuning, ready, folder)
    if not config.cache_texts:
        return
    objective.captions = open_texts(objective.model, ready, folder, config.text_store_type)


class PostPretraining(nn.Module):
    """Video-text contrastive loss over the global batch and masked words through the fusion decoder."""

    def __init__(self, config: PostPretrainingConfig, model: VideoTextModel, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = model
        if config.contrastive_loss == "sigmoid":
            model.start_sigmoid()
        self.seed = seed
        self.selection: Selection = config
        size = model.config.video.embed_dim
        if any(not 1 <= dim < size for dim in config.dims):
            raise HarvestError(
                f"objective.dims: expected 1 to {size - 1}, less than the model's embeddings have, got {config.dims}"
            )
        self.captions: Captions | None = None
        """Encoded before, with `cache_texts`."""
        if config.text_tower == "frozen":
            model.text.requires_grad_(False)
        if config.masked_words_weight > 0 and model.fusion is None:
            raise HarvestError(
                "this is a video model without a fusion decoder, which masked words need: give"
                " --objective.masked-words-weight 0"
            )
        freeze_unreached(self, hides_words=config.masked_words_weight > 0)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        B = len(batch.video)
        keep = choose_seen(self.model, self.selection, batch.video, generator=generator)
        masked: tuple[Tensor, Tensor] | None = None
        num_hidden = torch.zeros(())
        if self.config.masked_words_weight > 0:
            M = max(1, round(self.config.masked_words_ratio * B))  # the order of a batch is random
            ids = batch.text_ids[:M, 0]
            masked = mask_text(
                ids,
                maskable=self.model.text.maskable(ids),
                ratio=self.config.text_mask_ratio,
                mask_id=self.model.mask_id,
                generator=generator,
                length=self.model.config.text_tower.context_length,
            )
            num_hidden = mean_over_ranks(masked[1].sum().float())
        video_BE, text_RE, mlm, right = self._in_chunks(batch, keep, masked, num_hidden)

        bank = self._bank(step)
        hard = encode_hard_texts(self.model, batch, is_trained=self.config.text_tower == "trained")
        parts = hard_text_parts(hard)
        vtc = torch.zeros((), device=video_BE.device)
        for dim in (None, *self.config.dims):
            some = None if bank is None else bank._replace(pooled=shorten(bank.pooled, dim))
            loss = contrast(
                self.model.scores,
                shorten(video_BE, dim),
                shorten(text_RE, dim),
                example=batch.example,
                loss=self.config.contrastive_loss,
                bank=some,
                hard=None if hard is None else hard._replace(pooled=shorten(hard.pooled, dim)),
            )
            vtc, parts["vtc" if dim is None else f"vtc_{dim}"] = vtc + loss, loss.detach()
        total = self.config.contrastive_weight * vtc / (1 + len(self.config.dims))
        if masked is not None:
            total = total + self.config.masked_words_weight * mlm
            parts |= {"mlm": mlm.detach(), "words_right": right / masked[1].sum().clamp(min=1)}
        return Losses(total, parts)

    def _in_chunks(
        self, batch: Batch, keep: Kept, masked: tuple[Tensor, Tensor] | None, num_hidden: Tensor
    ) -> tuple[Tensor, ...]:
        """`_rows` of the whole batch. Chunks keep no activations but these results, and are computed again, one at a
        time, in the backward pass: gradient caching (Gao et al., 2021) as activation checkpointing over rows."""
        B, size = len(batch.video), self.config.chunk_clips
        if not 0 < size < B:
            return self._rows(batch, keep, masked, num_hidden)
        if keep is not None and not isinstance(keep, Tensor):
            raise HarvestError(
                "objective.chunk_clips goes with choices that keep equally many tubelets of each clip"
            )
        results = []
        for rows in (slice(start, start + size) for start in range(0, B, size)):
            chunk = batch.rows(rows)
            kept = None if keep is None else keep[rows]
            words = None if masked is None else (masked[0][rows], masked[1][rows])
            results.append(checkpoint(self._rows, chunk, kept, words, num_hidden, use_reentrant=False))
        videos, texts, mlm, right = zip(*results, strict=True)
        return torch.cat(videos), torch.cat(texts), torch.stack(mlm).sum(), torch.stack(right).sum()

    def _rows(
        self, batch: Batch, keep: Kept, masked: tuple[Tensor, Tensor] | None, num_hidden: Tensor
    ) -> tuple[Tensor, ...]:
        """Pooled clips `[B, E]` and captions `[B * C, E]`, and of their hidden words the loss, a share of that of
        `num_hidden` words, and the number filled rightly. `masked` may be of fewer rows, the first."""
        video, texts = self.model.encode_video(batch.video, keep), self._pooled_texts(batch)
        none = texts.new_zeros(())
        if masked is None or len(masked[0]) == 0:
            return video.pooled, texts, none, none
        masked_ids, hidden = masked
        M = len(masked_ids)
        states_BLD = self.model.fuse(video.rows(slice(M)), self.model.encode_text(masked_ids))
        L = states_BLD.shape[1]  # what is left out of padding has no hidden words
        most = most_hidden(M, L, ratio=self.config.text_mask_ratio)
        states, targets = at_hidden(states_BLD, batch.text_ids[:M, 0, :L], hidden[:, :L], most=most)
        logits_MV = self.model.predict_words(states)
        mlm = masked_words(logits_MV, targets, num_hidden=num_hidden)
        return video.pooled, texts, mlm, (logits_MV.argmax(dim=1) == targets).sum().to(texts.dtype)

    def _bank(self, step: int) -> Bank | None:
        """Captions that join this step as negatives, the same on all ranks."""
        if not self.config.text_bank or self.captions is None:
            return None
        generator, device = generator_for(self.seed, step), next(self.model.parameters()).device
        chosen = torch.randint(self.captions.num, (self.config.text_bank,), generator=generator)
        pooled, clips = self.captions.pooled(chosen), self.captions.clips(chosen)
        return Bank(send(pooled, device).float(), send(clips, device))

    def _pooled_texts(self, batch: Batch) -> Tensor:
        """Clean captions, `[B * C, E]`: as the batch brings them from the store, or encoded, without gradient where the
        tower is frozen."""
        if len(batch.stored):
            return batch.stored.flatten(0, 1).view(STORED[self.config.text_store_type]).float()
        with torch.set_grad_enabled(self.config.text_tower == "trained" and torch.is_grad_enabled()):
            return self.model.encode_text(batch.text_ids.flatten(0, 1)).pooled
