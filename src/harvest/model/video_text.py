"""The model: a video tower, a text tower, and (once trained for it) a decoder in which they meet."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harvest.interfaces import TextFeatures, VideoFeatures
from harvest.model.encoders import TextEncoder, TextEncoderConfig, VideoEncoder, VideoEncoderConfig
from harvest.model.fusion import FusionConfig, FusionDecoder


@dataclass(frozen=True)
class ModelConfig:
    """Everything that says what a model is; written into its folder."""

    video: VideoEncoderConfig = field(default_factory=VideoEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    fusion: FusionConfig | None = None
    score_bias: bool = False
    """SigLIP adds a learned bias to its scores."""

    def with_vocabulary(self, vocab_size: int) -> ModelConfig:
        return dataclasses.replace(self, text=dataclasses.replace(self.text, vocab_size=vocab_size))


class VideoTextModel(nn.Module):
    """Two encode methods, one that fuses, one that scores. Objectives call these and read no parameter."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoEncoder(config.video)
        self.text = TextEncoder(config.text)
        self.fusion = (
            FusionDecoder(
                config.fusion,
                text_width=config.text.width,
                video_width=config.video.width,
                vocab_size=config.text.vocab_size,
            )
            if config.fusion is not None
            else None
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.score_bias = nn.Parameter(torch.tensor(0.0)) if config.score_bias else None

    def num_tubelets(self, video: Tensor) -> int:
        """How many tubelets a batch `[B, T, 3, H, W]` has a clip: the range of `keep`."""
        return self.video.num_tubelets(video)

    def encode_video(
        self,
        video: Tensor,
        keep: Tensor | None = None,
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        shares: Tensor | None = None,
    ) -> VideoFeatures:
        """Encode clips `[B, T, 3, H, W]`, uint8 or already normalised, seeing only the tubelets in `keep` `[B, K]`.

        `layers`, `attention` and `shares` are `VideoEncoder.forward`'s.
        """
        return self.video(video, keep, layers=layers, attention=attention, shares=shares)

    def encode_text(self, text_ids: Tensor) -> TextFeatures:
        """Encode texts, int64 `[B, L]`. Words may be hidden by the id `mask_id`."""
        return self.text(text_ids)

    def fuse(self, video: VideoFeatures, text: TextFeatures) -> Tensor:
        """Words that have looked at the video and at each other, `[B, L, D]`. Row b of one meets row b of the other."""
        return self._fusion().forward(video.tokens, text.tokens, text.mask)

    def predict_words(self, states: Tensor) -> Tensor:
        """Scores over the vocabulary `[M, V]` for M states of `fuse`."""
        return self._fusion().predict_words(states)

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
            # Trained scales are held at 100, as in CLIP: beyond it softmax saturates and training can blow up.
            return self.log_scale.clamp(max=math.log(100)).exp() * cosines

    @property
    def mask_id(self) -> int:
        return self.text.mask_id

    def _fusion(self) -> FusionDecoder:
        if self.fusion is None:
            raise ValueError("this model has no fusion decoder: it was not trained to fill masked words")
        return self.fusion

    def compile_blocks(self) -> None:
        """Compile every transformer block in place; names and weights stay as they are."""
        for stack in (self.video.blocks, self.text.blocks, self.fusion.blocks if self.fusion else ()):
            for block in stack:
                block.compile(dynamic=None)
