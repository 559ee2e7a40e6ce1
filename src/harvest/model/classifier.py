"""A video tower with a head that names an action. Shapes: B clips, T frames, D width, A actions."""

from __future__ import annotations

from torch import Tensor, nn

from harvest.model.video_encoder import VideoEncoder, VideoEncoderConfig


class VideoClassifier(nn.Module):
    """UMT's fine-tuned classifier: the pooled tokens of a tower and one linear layer."""

    def __init__(self, config: VideoEncoderConfig, num_classes: int) -> None:
        super().__init__()
        self.video = VideoEncoder(config)
        self.head = nn.Linear(config.width, num_classes)

    def forward(self, video: Tensor, keep: Tensor | None = None) -> Tensor:
        """Scores `[B, A]` of clips `[B, T, 3, H, W]`, uint8 or already normalised."""
        return self.head(self.video.features(video, keep).pooled)
