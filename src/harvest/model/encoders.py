"""The video tower and the text tower.

Shapes: B clips, T frames, S tubelet times (T / tubelet_size), P places in a frame, N = S * P tubelets, K kept
tubelets, R prefix tokens, L words, D width, E shared width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harvest.interfaces import TextFeatures, VideoFeatures
from harvest.model.layers import Activation, AttentionPooling, Block


@dataclass(frozen=True)
class VideoEncoderConfig:
    """Sizes of a video tower. An image tower is one with `num_frames = 1`."""

    image_size: int = 224
    patch_size: int = 16
    tubelet_size: int = 1
    num_frames: int = 8
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    embed_dim: int = 512
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    prefix: Literal["none", "clip", "frame"] = "frame"
    """Class tokens: none (SigLIP), one a clip (released ViCLIP), or one a frame. Only with one a frame do T equal
    frames give exactly the image's embedding: T copies of every patch would outweigh a single class token."""
    pooling: Literal["prefix", "attention"] = "prefix"
    pre_norm: bool = True
    """CLIP normalises before the first block; SigLIP does not."""
    patch_bias: bool = False
    projection: bool = True
    time_positions: Literal["table", "gated"] = "table"
    """How tokens learn their time: a zero-initialised table (ViCLIP), or a fixed sinusoid times a zero-initialised
    gate per channel, which grows to a useful size in a short run. Both leave a still clip an image at the start."""
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def num_places(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_times(self) -> int:
        return -(-self.num_frames // self.tubelet_size)


class TimePositions(nn.Module):
    """What a token at tubelet time s gets added: zero before any training, so that a still clip is an image."""

    def __init__(self, num_times: int, width: int, kind: Literal["table", "gated"]) -> None:
        super().__init__()
        self.num_times = num_times
        self.gate: nn.Parameter | None = None
        self.table: Tensor
        if kind == "gated":
            self.gate = nn.Parameter(torch.zeros(width))
            # A Fourier basis over the clip: low and high frequencies of sine and cosine in shuffled channels.
            places = (torch.arange(num_times, dtype=torch.float64) + 0.5) / num_times
            waves = torch.arange(width, dtype=torch.float64) // 2 % max(num_times, 1) * 0.5 + 0.5
            phase = torch.arange(width, dtype=torch.float64) % 2 * (torch.pi / 2)
            table = torch.sin(torch.pi * waves * places[:, None] * 2 + phase)
            self.register_buffer("table", table.float(), persistent=False)
        else:
            self.table = nn.Parameter(torch.zeros(num_times, width))

    def forward(self, num_times: int) -> Tensor:
        """`[num_times, D]`. A single time gets the mean (as ViCLIP treats images), other numbers interpolate."""
        table_SD = self.table if self.gate is None else self.table * self.gate
        if num_times == self.num_times:
            return table_SD
        if num_times == 1:
            return table_SD.mean(dim=0, keepdim=True)
        return F.interpolate(table_SD.T[None], size=num_times, mode="linear", align_corners=False)[0].T


class VideoEncoder(nn.Module):
    """Joint space-time attention over the kept tubelets of a clip; nothing is computed for the others."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: VideoEncoderConfig) -> None:
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(
                f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}"
            )
        if (config.pooling == "prefix") == (config.prefix == "none"):
            raise ValueError(f"pooling {config.pooling!r} does not go with prefix {config.prefix!r}")
        self.config = config
        self.checkpointing = False
        D = config.width
        self.patches = nn.Linear(config.tubelet_size * 3 * config.patch_size**2, D, bias=config.patch_bias)
        self.place_positions = nn.Parameter(torch.randn(config.num_places, D) * 0.02)
        self.time_positions = TimePositions(config.num_times, D, config.time_positions)
        self.prefix = nn.Parameter(torch.randn(D) * 0.02) if config.prefix != "none" else None
        self.norm_pre = nn.LayerNorm(D, config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(D, config.num_heads, config.mlp_width, config.activation, config.norm_eps)
            for _ in range(config.depth)
        )
        self.norm_post = nn.LayerNorm(D, config.norm_eps)
        self.pool = (
            AttentionPooling(D, config.num_heads, config.mlp_width, config.activation, config.norm_eps)
            if config.pooling == "attention"
            else None
        )
        self.projection = nn.Linear(D, config.embed_dim, bias=False) if config.projection else nn.Identity()
        for name, values in (("pixel_mean", config.pixel_mean), ("pixel_std", config.pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def num_tubelets(self, video: Tensor) -> int:
        """N of a batch `[B, T, 3, H, W]`."""
        return -(-video.shape[1] // self.config.tubelet_size) * self.config.num_places

    def forward(self, video: Tensor, keep: Tensor | None = None) -> VideoFeatures:
        """Encode `[B, T, 3, H, W]`: uint8, normalised here, or floating point, taken as already normalised.

        `keep` int64 `[B, K]` names the tubelets to see, in (time, row, column) order; None sees all. Prefix
        tokens are always there. Returned tokens are in the order of `keep`.
        """
        x_BKD, times_BK = self.embed_tubelets(video, keep)
        times = self.time_positions(-(-video.shape[1] // self.config.tubelet_size))
        x_BKD = x_BKD + (
            times[times_BK] if keep is not None else times.repeat_interleave(self.config.num_places, 0)
        )
        num_prefix = 0
        if self.prefix is not None:
            prefix_RD = self.prefix + times if self.config.prefix == "frame" else self.prefix[None]
            num_prefix = prefix_RD.shape[0]
            x_BKD = torch.cat([prefix_RD.expand(x_BKD.shape[0], -1, -1), x_BKD], dim=1)
        x_BKD = self.norm_pre(x_BKD)
        for block in self.blocks:
            x_BKD = checkpoint(block, x_BKD, use_reentrant=False) if self.checkpointing else block(x_BKD)
        x_BKD = self.norm_post(x_BKD)
        tokens_BKD = x_BKD[:, num_prefix:]
        # Prefix tokens are averaged before the (linear) projection: the mean of the frames' embeddings.
        pooled_BD = self.pool(tokens_BKD) if self.pool is not None else x_BKD[:, :num_prefix].mean(dim=1)
        return VideoFeatures(tokens_BKD, F.normalize(self.projection(pooled_BD).float(), dim=-1))

    def embed_tubelets(self, video: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens `[B, K, D]` of the kept tubelets with their places' positions, and their times `[B, K]`.

        Pixels are gathered before they are converted, normalised and multiplied, so the work is K's, not N's.
        """
        config = self.config
        p, t = config.patch_size, config.tubelet_size
        B, T, _, H, W = video.shape
        if (config.image_size, config.image_size) != (H, W):
            raise ValueError(f"frames are {H}x{W}, the model takes {config.image_size}x{config.image_size}")
        if T % t:  # an odd last frame, or a still image, fills its tubelet with itself
            video = torch.cat([video, video[:, -1:].expand(-1, t - T % t, -1, -1, -1)], dim=1)
        G, S, P = H // p, video.shape[1] // t, config.num_places
        grid = video.view(B, S, t, 3, G, p, G, p).permute(0, 1, 4, 6, 2, 3, 5, 7)  # [B, S, G, G, t, 3, p, p]
        if keep is None:
            keep = torch.arange(S * P, device=video.device).expand(B, -1)
            pixels = grid.reshape(B, S * P, t, 3, p, p)
            positions = self.place_positions.repeat(S, 1)
        else:
            place = keep % P
            rows = torch.arange(B, device=video.device)[:, None]
            pixels = grid[rows, keep // P, place // G, place % G]  # [B, K, t, 3, p, p]
            positions = self.place_positions[place]
        if not pixels.is_floating_point():
            pixels = (pixels.float() / 255 - self.pixel_mean) / self.pixel_std
        return self.patches(pixels.flatten(2)) + positions, keep // P


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of a text tower and what its tokenizer's special ids mean."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_width: int = 2048
    embed_dim: int = 512
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    pooling: Literal["end", "last"] = "end"
    """CLIP reads its text feature at the first end token, SigLIP at the last position, padding included."""
    projection_bias: bool = False
    end_id: int = 49407
    pad_id: int = 49407
    start_id: int | None = 49406


class TextEncoder(nn.Module):
    """A transformer over words. Id `vocab_size` is the mask: one learnable vector in a hidden word's place."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        self.words = nn.Embedding(config.vocab_size, D)
        self.mask_embedding = nn.Parameter(torch.randn(D) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.context_length, D) * 0.01)
        self.blocks = nn.ModuleList(
            Block(D, config.num_heads, config.mlp_width, config.activation, config.norm_eps)
            for _ in range(config.depth)
        )
        self.norm_post = nn.LayerNorm(D, config.norm_eps)
        self.projection = nn.Linear(D, config.embed_dim, bias=config.projection_bias)
        nn.init.normal_(self.words.weight, std=0.02)

    @property
    def mask_id(self) -> int:
        return self.config.vocab_size

    def word_mask(self, text_ids: Tensor) -> Tensor:
        """Bool `[B, L]`: True up to and with the first end token; where a text has none, where there is no pad."""
        is_end = text_ids == self.config.end_id
        ends_before = is_end.cumsum(dim=1) - is_end.long()
        return torch.where(is_end.any(dim=1, keepdim=True), ends_before == 0, text_ids != self.config.pad_id)

    def maskable(self, text_ids: Tensor) -> Tensor:
        """Bool `[B, L]`: words that may be hidden, which start, end and padding may not."""
        is_word = self.word_mask(text_ids) & (text_ids != self.config.end_id)
        return is_word & (text_ids != self.config.start_id) if self.config.start_id is not None else is_word

    def forward(self, text_ids: Tensor) -> TextFeatures:
        """Encode int64 `[B, L]`, L at most `context_length`. Returned tokens may leave out padding common to all."""
        config = self.config
        if text_ids.shape[1] > config.context_length:
            raise ValueError(
                f"texts have {text_ids.shape[1]} ids, the tower takes at most {config.context_length}"
            )
        mask_BL = self.word_mask(text_ids)
        if config.pooling == "end" and config.causal and text_ids.device.type == "cpu":
            # Nobody looks at padding behind the longest text. (On a GPU, asking how long that is would stall it.)
            longest = int(mask_BL.sum(dim=1).max())
            text_ids, mask_BL = text_ids[:, :longest], mask_BL[:, :longest]
        L = text_ids.shape[1]
        is_hidden = text_ids == self.mask_id
        x_BLD = self.words(text_ids.masked_fill(is_hidden, 0))
        x_BLD = torch.where(is_hidden[..., None], self.mask_embedding, x_BLD) + self.positions[:L]
        for block in self.blocks:
            x_BLD = block(x_BLD, causal=config.causal)
        x_BLD = self.norm_post(x_BLD)
        if config.pooling == "last":
            pooled_BD = x_BLD[:, -1]
        else:  # the end token is the last of the unmasked positions; a text cut short is read at its last word
            last = mask_BL.long().sum(dim=1).clamp(min=1) - 1
            pooled_BD = x_BLD[torch.arange(len(last), device=last.device), last]
        return TextFeatures(x_BLD, F.normalize(self.projection(pooled_BD).float(), dim=-1), mask_BL)
