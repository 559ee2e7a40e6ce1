"""UMT's student tower, and what carries its layers into the space of its teacher.

Shapes: B clips, K kept tubelets, D width of the student, E width of the teacher's space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from harvest.model.importing.preprocessing import IMAGENET
from harvest.model.layers import SinusoidPositions
from harvest.model.video_encoder import VideoEncoderConfig


def student_tower(
    *,
    width: int,
    depth: int,
    num_heads: int,
    mlp_width: int | None = None,
    image_size: int = 224,
    patch_size: int = 16,
    num_frames: int = 8,
    tubelet_size: int = 1,
    positions: Literal["joint", "sinusoid"] = "sinusoid",
) -> VideoEncoderConfig:
    """The video tower that UMT builds: no class token, biases of queries and values alone, ImageNet's mean and std.

    `mlp_width` None is four times `width`.
    """
    return VideoEncoderConfig(
        image_size=image_size,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        num_frames=num_frames,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_width=mlp_width or 4 * width,
        embed_dim=width,
        activation="gelu",
        norm_eps=1e-6,
        prefix="none",
        pooling="mean",
        pre_norm=False,
        patch_bias=True,
        projection=False,
        key_bias=False,
        positions=positions,
        **IMAGENET.fields,
    )


class AlignmentHead(nn.Module):
    """UMT's `Linear_Decoder`: a linear layer and a norm."""

    def __init__(self, width: int, teacher_width: int, norm_eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, teacher_width)
        self.norm = nn.LayerNorm(teacher_width, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class AlignmentHeads(nn.Module):
    """One head a layer. Each sees the layer with a second sinusoid over the tubelets' numbers added (UMT)."""

    def __init__(
        self,
        num_layers: int,
        width: int,
        teacher_width: int,
        *,
        num_positions: int = 1568,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(AlignmentHead(width, teacher_width, norm_eps) for _ in range(num_layers))
        self.positions = SinusoidPositions(num_positions, width)
        init_xavier(self)

    def forward(self, layers: Sequence[Tensor], keep: Tensor | None, num_tubelets: int) -> list[Tensor]:
        """Layers `[B, K, D]` of the tubelets `keep` `[B, K]` (None: all of `num_tubelets`), as `[B, K, E]`."""
        positions = self.positions(num_tubelets)
        if keep is not None:
            positions = positions[keep]
        return [head(layer + positions) for head, layer in zip(self.heads, layers, strict=True)]


@torch.no_grad()
def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases in every linear layer: how UMT starts a student."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
