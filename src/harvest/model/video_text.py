"""The model: a video tower, a text tower, and (once trained for it) decoders in which they meet.

A video tower alone, as UMT's stage 1 trains it, is a model without a text tower.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harvest.interfaces import Grid, HarvestError, Kept, TextFeatures, VideoFeatures
from harvest.model.answers import AnswerDecoder
from harvest.model.fusion import FusionBlock, FusionConfig, FusionDecoder
from harvest.model.layers import Block, leave_uncompiled
from harvest.model.text_encoder import TextEncoder, TextEncoderConfig
from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig


@dataclass(frozen=True)
class ModelConfig:
    """Everything that says what a model is; written into its folder."""

    video: VideoEncoderConfig = field(default_factory=VideoEncoderConfig)
    text: TextEncoderConfig | None = field(default_factory=TextEncoderConfig)
    """None: a video tower alone."""
    fusion: FusionConfig | None = None
    answers: FusionConfig | None = None
    """A decoder that says answers to questions."""
    score_bias: bool = False
    """SigLIP adds a learned bias to its scores, as does every model trained by the sigmoid loss."""
    scale_range: tuple[float, float] = (0.0, 100.0)
    """The scale of cosines is held in it, as in CLIP: beyond 100 softmax saturates and training can blow up. UMT holds
    its temperature between 0.001 and 0.5: a scale of 2 to 1000."""

    @property
    def text_tower(self) -> TextEncoderConfig:
        """The text tower's sizes; HarvestError where there is none."""
        if self.text is None:
            raise HarvestError(NO_TEXT_TOWER)
        return self.text

    def with_vocabulary(self, vocab_size: int) -> ModelConfig:
        return dataclasses.replace(self, text=dataclasses.replace(self.text_tower, vocab_size=vocab_size))


NO_TEXT_TOWER = (
    "this model has no text tower: it is a video tower alone, as UMT stage 1 trains it. Train it with texts first, for instance "
    "harvest train umt-stage2-b16 --start.model FOLDER"
)


class VideoTextModel(nn.Module):
    """Methods that encode, fuse, score and read. Objectives call these and read no parameter."""

    text: TextEncoder  # absent where config.text is None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoEncoder(config.video)
        if config.text is not None:
            self.text = TextEncoder(config.text)
        self.fusion = (
            FusionDecoder(config.fusion, text=config.text_tower, context_width=config.video.width)
            if config.fusion is not None
            else None
        )
        self.answers = (
            AnswerDecoder(config.answers, config.text_tower) if config.answers is not None else None
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.score_bias = nn.Parameter(torch.tensor(0.0)) if config.score_bias else None

    def grid(self, video: Tensor) -> Grid:
        """How a batch `[B, T, 3, H, W]` is divided into tubelets: what `keep` counts."""
        return self.video.grid(video)

    def num_tubelets(self, video: Tensor) -> int:
        """How many tubelets a batch `[B, T, 3, H, W]` has a clip: the range of `keep`."""
        return self.grid(video).num_tubelets

    def encode_video(
        self,
        video: Tensor,
        keep: Kept = None,
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        drop_path_scale: Tensor | None = None,
    ) -> VideoFeatures:
        """Encode clips `[B, T, 3, H, W]`, uint8 or already normalised, seeing only the tubelets in `keep` `[B, K]`.

        `layers`, `attention` and `drop_path_scale` are `VideoEncoder.forward`'s.
        """
        return self.video(video, keep, layers=layers, attention=attention, drop_path_scale=drop_path_scale)

    def video_features(
        self, video: Tensor, keep: Kept = None, *, drop_path_scale: Tensor | None = None
    ) -> VideoFeatures:
        """As `encode_video`, but `pooled` is `[B, D]`, neither projected nor of unit length: what heads read."""
        return self.video.features(video, keep, drop_path_scale=drop_path_scale)

    def normalise(self, video: Tensor) -> Tensor:
        """Pixels as the tower wants them; the encode methods do it too where they get uint8."""
        return self.video.normalise(video)

    def encode_text(self, text_ids: Tensor) -> TextFeatures:
        """Encode texts, int64 `[B, L]`. Words may be hidden by the id `mask_id`."""
        if self.config.text is None:
            raise HarvestError(NO_TEXT_TOWER)
        return self.text(text_ids)

    def fuse(self, video: VideoFeatures, text: TextFeatures) -> Tensor:
        """Words that have looked at the video and at each other, `[B, L, D]`. Row b of one meets row b of the other.

        Where there are fewer videos than texts, equally many neighbouring texts meet the same video.
        """
        return self._fusion().forward(video.tokens, text.tokens, text.mask, context_mask=video.mask)

    def predict_words(self, states: Tensor) -> Tensor:
        """Scores over the vocabulary `[M, V]` for M states of `fuse`."""
        return self._fusion().predict_words(states, self.text.words.weight)

    def match(self, states: Tensor, text: TextFeatures) -> Tensor:
        """Whether fused texts `[B, L, D]` go with what they looked at: scores `[B, 2]` of no and yes."""
        head = self._fusion().head_match
        if head is None:
            raise ValueError("this model has no matching head")
        return head(self.text.pool(states, text.mask))

    def match_pairs(self, video: VideoFeatures, text: TextFeatures) -> Tensor:
        """`match` of what `fuse` gives, `[B, 2]`, of which no more is computed than is read."""
        fusion = self._fusion()
        if fusion.head_match is None:
            raise ValueError("this model has no matching head")
        places = torch.arange(text.mask.shape[1], device=text.mask.device).expand_as(text.mask)
        read = self.text.pool(places[..., None], text.mask)[:, 0]
        states = fusion(video.tokens, text.tokens, text.mask, context_mask=video.mask, only=read)
        return fusion.head_match(states[:, 0])

    def decode_answers(self, states: Tensor, text: TextFeatures, answer_ids: Tensor) -> Tensor:
        """Scores `[A, M, V]` of the word behind each of answers `[A, M]`, to fused questions `[B, L, D]`.

        A is a multiple of B: equally many neighbouring answers go with one question.
        """
        if self.answers is None:
            raise ValueError("this model has no decoder of answers")
        return self.answers(states, text.mask, answer_ids)

    def scores(self, video_pooled: Tensor, text_pooled: Tensor) -> Tensor:
        """Scaled cosines, texts by videos: `[B, E]` and `[G, E]` give `[G, B]`."""
        with torch.autocast(
            video_pooled.device.type, enabled=False
        ):  # bf16 puts captions that differ little on one point
            cosines = text_pooled.float() @ video_pooled.float().T
            if (
                self.score_bias is not None
            ):  # SigLIP does not limit its scale; the released ones are above 100
                return self.log_scale.exp() * cosines + self.score_bias
            low, high = self.config.scale_range
            return self.log_scale.clamp(math.log(low) if low else None, math.log(high)).exp() * cosines

    @torch.no_grad()
    def start_sigmoid(self) -> None:
        """Ready the scores for the sigmoid loss, in place: a model without a bias gets SigLIP's, -10, and its scale, 10.

        With them nearly every pair starts as judged apart, as nearly every pair is; at CLIP's scale of 100 the first
        steps would only mend the scores. A model that has a bias goes on with it.
        """
        if self.score_bias is None:
            self.config = dataclasses.replace(self.config, score_bias=True)
            self.score_bias = nn.Parameter(torch.tensor(-10.0, device=self.log_scale.device))
            self.log_scale.fill_(math.log(10))

    @property
    def mask_id(self) -> int:
        return self.text.mask_id

    def _fusion(self) -> FusionDecoder:
        if self.fusion is None:
            raise ValueError("this model has no fusion decoder: it was not trained to fill masked words")
        return self.fusion


def compile_blocks(tower: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile every transformer block in place; names and weights stay as they are."""
    leave_uncompiled()
    for part in tower.modules():
        if isinstance(part, (Block, FusionBlock)):
            part.compile(dynamic=None, backend=backend)


@torch.no_grad()
def own_attention(model: VideoTextModel, video: Tensor) -> Tensor | None:
    """Where the model itself looks when it sees all of clips `[B, T, 3, H, W]`: `[B, N]`, without gradient.

    As a guide of what to keep it costs the whole forward pass that keeping less would save: for comparisons.
    """
    return model.encode_video(video, attention=True).attention
