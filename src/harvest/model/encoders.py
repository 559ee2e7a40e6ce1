"""The video tower and the text tower.

Shapes: B clips, T frames, S tubelet times (T / tubelet_size), P places in a frame, N = S * P tubelets, K kept
tubelets, R prefix tokens, L words, D width, E shared width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harvest.interfaces import Grid, Kept, Merged, Packed, TextFeatures, VideoFeatures
from harvest.model.layers import Activation, AttentionPooling, Block, Norms, Segments, SinusoidPositions
from harvest.model.token_merging import merge_plan, merge_tokens


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
    pooling: Literal["prefix", "attention", "mean"] = "prefix"
    """A clip's feature: its class tokens' mean (CLIP), a learned query's look at all tokens (SigLIP), or all tokens'
    mean (UMT)."""
    attention: Literal["joint", "frame"] = "joint"
    """Tokens attend to all of the clip, or to those of their own time alone: an image tower looking at each frame."""
    pre_norm: bool = True
    """CLIP normalises before the first block; SigLIP does not."""
    post_norm: bool = True
    """UMT's fine-tuned classifiers have no norm behind the last block."""
    pooled_norm: bool = False
    """A norm of the mean token (UMT's `fc_norm` and `pool_norm`)."""
    pool_times: bool = False
    """Where a whole clip is seen, embed the mean token of each time apart and average the unit vectors, as UMT's stage 2
    does at test time; the average is a little shorter than 1. With `keep`, the mean is over all kept tokens."""
    key_bias: bool = True
    """UMT's attention has biases of queries and values alone."""
    positions: Literal["factored", "joint", "sinusoid"] = "factored"
    """Learned, one for the place and one for the time; learned, one for each (time, place); or a fixed sinusoid over
    the number of the tubelet in the clip, which is computed for any number of frames (UMT)."""
    patch_bias: bool = False
    projection: bool = True
    projection_bias: bool = False
    time_positions: Literal["table", "gated"] = "table"
    """How tokens learn their time: a zero-initialised table (ViCLIP), or a fixed sinusoid times a zero-initialised
    gate per channel, which grows to a useful size in a short run. Both leave a still clip an image at the start."""
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def num_patches(self) -> int:
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
        if (config.pooling == "prefix") == (config.prefix == "none") or (
            config.attention == "frame" and config.prefix == "clip"
        ):
            raise ValueError(
                f"pooling {config.pooling!r} and attention {config.attention!r} do not go with prefix {config.prefix!r}"
            )
        if (config.pooled_norm or config.pool_times) and config.pooling != "mean":
            raise ValueError(f"pooled_norm and pool_times need pooling 'mean', got {config.pooling!r}")
        if config.pool_times and config.attention != "joint":
            raise ValueError(f"pool_times needs attention 'joint', got {config.attention!r}")
        self.config = config
        self.checkpointing = False
        D = config.width
        self.patches = nn.Linear(config.tubelet_size * 3 * config.patch_size**2, D, bias=config.patch_bias)
        num_tubelets = config.num_times * config.num_patches
        if config.positions == "factored":
            self.place_positions = nn.Parameter(torch.randn(config.num_patches, D) * 0.02)
            self.time_positions = TimePositions(config.num_times, D, config.time_positions)
        elif config.positions == "joint":
            self.joint_positions = nn.Parameter(torch.randn(num_tubelets, D) * 0.02)
        else:
            self.sinusoid = SinusoidPositions(num_tubelets, D)
        self.prefix = nn.Parameter(torch.randn(D) * 0.02) if config.prefix != "none" else None
        self.norm_pre = nn.LayerNorm(D, config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                D,
                config.num_heads,
                config.mlp_width,
                config.activation,
                config.norm_eps,
                key_bias=config.key_bias,
            )
            for _ in range(config.depth)
        )
        self.norm_post = nn.LayerNorm(D, config.norm_eps) if config.post_norm else nn.Identity()
        self.norm_pooled = nn.LayerNorm(D, config.norm_eps) if config.pooled_norm else nn.Identity()
        self.pool = (
            AttentionPooling(D, config.num_heads, config.mlp_width, config.activation, config.norm_eps)
            if config.pooling == "attention"
            else None
        )
        self.projection = (
            nn.Linear(D, config.embed_dim, bias=config.projection_bias)
            if config.projection
            else nn.Identity()
        )
        for name, values in (("pixel_mean", config.pixel_mean), ("pixel_std", config.pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def grid(self, video: Tensor) -> Grid:
        """How a batch `[B, T, 3, H, W]` of square frames is divided into tubelets."""
        config = self.config
        num_times = -(-video.shape[1] // config.tubelet_size)
        return Grid(
            num_times, (video.shape[-1] // config.patch_size) ** 2, config.tubelet_size, config.patch_size
        )

    def forward(
        self,
        video: Tensor,
        keep: Kept = None,
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        drop_path_scale: Tensor | None = None,
    ) -> VideoFeatures:
        """Encode `[B, T, 3, H, W]`: uint8, normalised here, or floating point, taken as already normalised.

        Frames are square; for another size than the model's own the positions of its places are resized, bicubic.

        `keep` int64 `[B, K]` names the tubelets to see, in (time, row, column) order; None sees all. Where clips keep
        different numbers it is `Packed`: nothing is computed for padding, and only returned tokens have some (`mask`).
        `Merged` reads all and merges. `layers`, `attention` and `drop_path_scale` are for neither. Prefix tokens are always there. Returned tokens are in the order of `keep`. `layers` asks for the outputs of blocks,
        counted from 0, or from the last as -1, in that order, each after the final norm. `attention` asks for the last
        block's attention from the prefix (where there is none, the pooling query) to the tubelets, mean over heads.
        `drop_path_scale` `[depth, 2, B]` multiplies what each block's two branches add (stochastic depth); None is 1.
        """
        apart = self.config.pool_times and keep is None
        features = self.features(
            video,
            keep,
            layers=layers,
            attention=attention,
            drop_path_scale=drop_path_scale,
            times_apart=apart,
        )
        pooled = F.normalize(self.projection(features.pooled).float(), dim=-1)
        return features._replace(pooled=pooled.mean(dim=1) if pooled.ndim == 3 else pooled)

    def features(
        self,
        video: Tensor,
        keep: Kept = None,
        *,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        drop_path_scale: Tensor | None = None,
        times_apart: bool = False,
    ) -> VideoFeatures:
        """As `forward`, but `pooled` is `[B, D]`, neither projected nor of unit length: what a classifier reads.

        With `times_apart` it is `[B, S, D]`, each time's own mean token.
        """
        config = self.config
        if isinstance(keep, Packed):
            if layers or attention or drop_path_scale is not None:
                raise ValueError(
                    "layers, attention and drop_path_scale need equally many kept tubelets of every clip"
                )
            return self._packed_features(video, keep)
        if isinstance(keep, Merged):
            if layers or attention or drop_path_scale is not None or config.attention == "frame":
                raise ValueError(
                    "layers, attention, drop_path_scale and attention 'frame' do not go with merged tokens"
                )
            return self._merged_features(video, keep.budget)
        wanted = tuple(range(config.depth)[layer] for layer in layers)
        grid = self.grid(video)
        B, D, S = len(video), config.width, grid.num_times
        K = grid.num_tubelets if keep is None else keep.shape[1]
        frames = S if config.attention == "frame" else 1  # folded into the batch
        x_BKD, num_prefix = self.enter(video, keep)
        if frames > 1 and drop_path_scale is not None:
            drop_path_scale = drop_path_scale.repeat_interleave(S, dim=2)
        seen: dict[int, Tensor] = {}
        weights: Tensor | None = None
        for i, block in enumerate(self.blocks):
            share = drop_path_scale[i] if drop_path_scale is not None else None
            if attention and i == config.depth - 1 and num_prefix:
                assert isinstance(block, Block)
                rows = block.attention.first_rows(block.norm_attention(x_BKD), num_prefix)
                weights = rows[..., num_prefix:].mean(dim=1)
            if self.checkpointing:
                x_BKD = checkpoint(block, x_BKD, drop_path_scale=share, use_reentrant=False)
            else:
                x_BKD = block(x_BKD, drop_path_scale=share)
            if i in wanted and i < config.depth - 1:
                seen[i] = self.norm_post(x_BKD[:, num_prefix:]).reshape(B, K, D)
        x_BKD = self.norm_post(x_BKD)
        tokens_BKD = x_BKD[:, num_prefix:]
        # Prefix tokens are averaged before the (linear) projection: the mean of the frames' embeddings.
        if self.pool is not None:
            pooled_BD = self.pool(tokens_BKD)
            weights = self.pool.weights(tokens_BKD) if attention else None
        elif times_apart:
            pooled_BD = tokens_BKD.view(B, S, -1, D).mean(dim=2)  # [B, S, D]
        else:
            pooled_BD = (x_BKD[:, :num_prefix] if num_prefix else tokens_BKD).mean(dim=1)
        if attention and weights is None:
            raise ValueError(
                "this tower has neither a prefix nor a pooling query whose attention could be given"
            )
        if frames > 1:
            pooled_BD = pooled_BD.view(B, S, D).mean(dim=1)
            tokens_BKD = tokens_BKD.reshape(B, K, D)
        seen[config.depth - 1] = tokens_BKD
        return VideoFeatures(
            tokens_BKD,
            self.norm_pooled(pooled_BD),
            tuple(seen[i] for i in wanted),
            weights.reshape(B, K) if weights is not None else None,
        )

    def enter(self, video: Tensor, keep: Tensor | None) -> tuple[Tensor, int]:
        """What the first block gets, `[B, R + K, D]`, and R, the number of prefix tokens in front.

        With attention "frame" every time is a row of its own, `[B * S, R + K / S, D]`.
        """
        config = self.config
        x_BKD, times_BK = self.embed_tubelets(video, keep)
        B, K, D = x_BKD.shape
        grid = self.grid(video)
        S = grid.num_times
        times: Tensor | None = None
        if config.positions == "factored":
            times = self.time_positions(S)
            x_BKD = x_BKD + (
                times[times_BK] if keep is not None else times.repeat_interleave(grid.num_patches, 0)
            )
        frames = 1
        if config.attention == "frame":
            frames = S
            if keep is not None:
                self._check_frames_apart(times_BK, S)
            x_BKD = x_BKD.reshape(B * S, K // S, D)
        num_prefix = 0
        if self.prefix is not None:
            prefix_RD = self.prefix[None]
            if config.prefix == "frame":
                prefix_RD = self.prefix + times if times is not None else self.prefix.expand(S, -1)
            num_prefix = prefix_RD.shape[0] // frames
            prefix = prefix_RD.expand(B, -1, -1).reshape(B * frames, num_prefix, D)
            x_BKD = torch.cat([prefix, x_BKD], dim=1)
        return self.norm_pre(x_BKD), num_prefix

    def _packed_features(self, video: Tensor, packed: Packed) -> VideoFeatures:
        """`features` of clips that keep different numbers: one sequence of all their tokens through the blocks."""
        config = self.config
        if config.attention == "frame":
            raise ValueError("attention 'frame' needs equally many kept tubelets of each time")
        S, groups = self.grid(video).num_times, packed.groups
        counts = torch.tensor([K for n, K in groups for _ in range(n)], device=packed.clips.device)
        rows = packed.clips.repeat_interleave(counts, output_size=len(packed.keep))
        x_TD = self._embed_packed(video, packed, rows)
        prefix_RD = x_TD.new_empty(0, x_TD.shape[1])
        if self.prefix is not None:
            prefix_RD = self.prefix[None].to(x_TD.dtype)
            if config.prefix == "frame":
                times = self.time_positions(S) if config.positions == "factored" else x_TD.new_zeros(S, 1)
                prefix_RD = self.prefix + times
        R = len(prefix_RD)
        parts = [
            torch.cat([prefix_RD.to(x_TD.dtype).expand(n, -1, -1), part.view(n, K, -1)], dim=1).flatten(0, 1)
            for (n, K), part in zip(groups, torch.split(x_TD, [n * K for n, K in groups]), strict=True)
        ]
        x_1TD = self.norm_pre(torch.cat(parts)[None])
        segments = Segments.of([(n, R + K) for n, K in groups], x_TD.device)
        for block in self.blocks:
            if self.checkpointing:
                x_1TD = checkpoint(block, x_1TD, segments, use_reentrant=False)
            else:
                x_1TD = block(x_1TD, segments)
        x_TD = self.norm_post(x_1TD)[0]
        longest, tokens, pooled = max(K for _, K in groups), [], []
        for (n, K), part in zip(groups, torch.split(x_TD, [n * (R + K) for n, K in groups]), strict=True):
            seen = part.view(n, R + K, -1)
            kept = seen[:, R:]
            pooled.append(
                self.pool(kept) if self.pool is not None else (seen[:, :R] if R else kept).mean(dim=1)
            )
            tokens.append(F.pad(kept, (0, 0, 0, longest - K)))
        back = packed.clips.argsort()
        mask = torch.arange(longest, device=counts.device) < counts[:, None]
        return VideoFeatures(
            torch.cat(tokens)[back], self.norm_pooled(torch.cat(pooled))[back], mask=mask[back]
        )

    def _merged_features(self, video: Tensor, budget: int) -> VideoFeatures:
        """`features` with similar tokens merged between blocks; a token counts as often as it has been merged."""
        config = self.config
        x_BND, _ = self.embed_tubelets(video, None)
        B, N, D = x_BND.shape
        plan = merge_plan(N, budget, config.depth)
        S, P = self.grid(video)[:2]
        times = self.time_positions(S) if config.positions == "factored" else x_BND.new_zeros(S, D)
        x_BND = x_BND + times.repeat_interleave(P, 0)
        R = 0
        if self.prefix is not None:
            prefix_RD = self.prefix + times if config.prefix == "frame" else self.prefix[None]
            R = len(prefix_RD)
            x_BND = torch.cat([prefix_RD.expand(B, -1, -1).to(x_BND.dtype), x_BND], dim=1)
        x_BND, sizes = self.norm_pre(x_BND), x_BND.new_ones(B, N)
        for i, block in enumerate(self.blocks):
            # A merged token weighs in every softmax as much as what it stands for would together.
            weights = F.pad(sizes, (R, 0), value=1.0).log()[:, None, None]
            x_BND = block(x_BND, weights if i else None)
            if i + 1 < len(plan):
                merged, sizes = merge_tokens(x_BND[:, R:], sizes, plan[i] - plan[i + 1])
                x_BND = torch.cat([x_BND[:, :R], merged.to(x_BND.dtype)], dim=1)
        x_BND = self.norm_post(x_BND)
        tokens = x_BND[:, R:]
        if self.pool is not None:
            pooled = self.pool(tokens, sizes.log())
        elif R:
            pooled = x_BND[:, :R].mean(dim=1)
        else:
            pooled = (tokens * sizes[..., None]).sum(dim=1) / N
        return VideoFeatures(tokens, self.norm_pooled(pooled))

    def _embed_packed(self, video: Tensor, packed: Packed, rows: Tensor) -> Tensor:
        """Tokens `[total, D]` with their positions, in time the mean over the run that each stands for."""
        config, grid = self.config, self.grid(video)
        S, P, keep = grid.num_times, grid.num_patches, packed.keep
        pixels = self._pixels(video)[rows, keep // P, keep % P // (G := math.isqrt(P)), keep % P % G]
        x_TD = self.patches(self.normalise(pixels).flatten(1))
        if config.positions == "factored":
            x_TD = x_TD + self._positions(1, P)[keep % P]
            table_SPD = self.time_positions(S)[:, None]
            place = torch.zeros_like(keep)
        else:
            table_SPD, place = self._positions(S, P).view(S, P, -1), keep % P
        sums = F.pad(table_SPD.cumsum(dim=0), (0, 0, 0, 0, 1, 0))
        start, runs = keep // P, packed.runs
        return x_TD + (sums[start + runs, place] - sums[start, place]) / runs[:, None]

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens `[..., D]` in the shared space, `[..., E]`."""
        return self.projection(tokens)

    def normalise(self, video: Tensor) -> Tensor:
        """Pixels as the blocks want them, from uint8; floating point is taken as already normalised."""
        if video.is_floating_point():
            return video
        return (video.float() / 255 - self.pixel_mean) / self.pixel_std

    @staticmethod
    def _check_frames_apart(times_BK: Tensor, num_times: int) -> None:
        K = times_BK.shape[1]
        wanted = torch.arange(num_times, device=times_BK.device).repeat_interleave(K // num_times)
        if K % num_times or not bool((times_BK == wanted).all()):
            raise ValueError("attention 'frame' needs equally many kept tubelets of each time, in order")

    def embed_tubelets(self, video: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens `[B, K, D]` of the kept tubelets with their places' positions, and their times `[B, K]`.

        Pixels are gathered before they are converted, normalised and multiplied, so the work is K's, not N's.
        """
        config = self.config
        p, t = config.patch_size, config.tubelet_size
        grid = self._pixels(video)
        B, S, G = grid.shape[:3]
        P = G * G
        if keep is None:
            keep = torch.arange(S * P, device=video.device).expand(B, -1)
            pixels = grid.reshape(B, S * P, t, 3, p, p)
            positions = self._positions(S, P)
        else:
            place = keep % P
            rows = torch.arange(B, device=video.device)[:, None]
            pixels = grid[rows, keep // P, place // G, place % G]  # [B, K, t, 3, p, p]
            if config.positions == "factored":
                positions = self._positions(1, P)[place]
            else:
                positions = self._positions(S, P)[keep]
        pixels = self.normalise(pixels)
        return self.patches(pixels.flatten(2)) + positions, keep // P

    def _pixels(self, video: Tensor) -> Tensor:
        """The pixels of every tubelet, a view `[B, S, G, G, t, 3, p, p]` of `[B, T, 3, H, W]`."""
        config = self.config
        p, t = config.patch_size, config.tubelet_size
        B, T, _, H, W = video.shape
        if H != W or H % p:
            raise ValueError(
                f"frames are {H}x{W}; the model takes {config.image_size}x{config.image_size}, or other squares whose "
                f"sides are multiples of {p}"
            )
        if T % t:  # an odd last frame, or a still image, fills its tubelet with itself
            video = torch.cat([video, video[:, -1:].expand(-1, t - T % t, -1, -1, -1)], dim=1)
        grid = video.view(B, video.shape[1] // t, t, 3, H // p, p, W // p, p)
        return grid.permute(0, 1, 4, 6, 2, 3, 5, 7)

    def _positions(self, num_times: int, num_patches: int) -> Tensor:
        """What tubelets get added before those of time, in their order: `[N, D]`."""
        config = self.config
        if config.positions == "factored":
            return self._for_places(self.place_positions, num_patches).repeat(num_times, 1)
        if config.positions == "sinusoid":
            return self._for_places(self.sinusoid(num_times * config.num_patches), num_patches)
        if num_times == config.num_times:
            return self._for_places(self.joint_positions, num_patches)
        table = self.joint_positions.view(config.num_times, -1).T[None]  # [1, P * D, S]
        table = F.interpolate(table, size=num_times, mode="linear", align_corners=False)
        return self._for_places(table[0].T.reshape(-1, config.width), num_patches)

    def _for_places(self, table_ND: Tensor, num_patches: int) -> Tensor:
        """Positions for frames of the model's size, time after time, as those of frames of another size."""
        own, new, old = self.config.num_patches, math.isqrt(num_patches), math.isqrt(self.config.num_patches)
        if num_patches == own:
            return table_ND
        table = table_ND.view(-1, old, old, table_ND.shape[1]).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(new, new), mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1).flatten(0, 2)


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
    norms: Norms = "before"
    """BERT's norms stand behind each branch and behind the word vectors, and none follows the last block."""
    dropout: float = 0.0
    """In training: of word vectors, of attention and of what each branch adds (BERT)."""
    pooling: Literal["end", "last", "first"] = "end"
    """CLIP reads its text feature at the first end token, SigLIP at the last position, padding included, BERT at the
    first position. Only SigLIP's words attend to padding."""
    projection: bool = True
    projection_bias: bool = False
    end_id: int | None = 49407
    """None: texts end without a mark of their own (UMT's BERT)."""
    pad_id: int = 49407
    start_id: int | None = 49406
    mask_id: int | None = None
    """The word that stands for hidden ones. None: one learnable vector does, and its id is `vocab_size`."""


class TextEncoder(nn.Module):
    """A transformer over words, in which hidden words can be marked."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        D, is_bert = config.width, config.norms == "after"
        self.words = nn.Embedding(config.vocab_size, D)
        self.mask_embedding = nn.Parameter(torch.randn(D) * 0.02) if config.mask_id is None else None
        self.positions = nn.Parameter(torch.randn(config.context_length, D) * 0.01)
        self.norm_pre = nn.LayerNorm(D, config.norm_eps) if is_bert else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                D,
                config.num_heads,
                config.mlp_width,
                config.activation,
                config.norm_eps,
                norms=config.norms,
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        self.norm_post = nn.Identity() if is_bert else nn.LayerNorm(D, config.norm_eps)
        self.projection = (
            nn.Linear(D, config.embed_dim, bias=config.projection_bias)
            if config.projection
            else nn.Identity()
        )
        nn.init.normal_(self.words.weight, std=0.02)

    @property
    def mask_id(self) -> int:
        return self.config.vocab_size if self.config.mask_id is None else self.config.mask_id

    def word_mask(self, text_ids: Tensor) -> Tensor:
        """Bool `[B, L]`: True up to and with the first end token; where a text has none, where there is no pad."""
        is_word = text_ids != self.config.pad_id
        if self.config.end_id is None:
            return is_word
        is_end = text_ids == self.config.end_id
        ends_before = is_end.cumsum(dim=1) - is_end.long()
        return torch.where(is_end.any(dim=1, keepdim=True), ends_before == 0, is_word)

    def maskable(self, text_ids: Tensor) -> Tensor:
        """Bool `[B, L]`: words that may be hidden, which start, end and padding may not."""
        is_word = self.word_mask(text_ids)
        for special in (self.config.start_id, self.config.end_id):
            if special is not None:
                is_word = is_word & (text_ids != special)
        return is_word

    def embed(self, text_ids: Tensor) -> Tensor:
        """Word vectors with their positions, `[B, L, D]`."""
        positions = self.positions[: text_ids.shape[1]]
        if self.mask_embedding is None:
            x_BLD = self.words(text_ids) + positions
        else:
            is_hidden = text_ids == self.mask_id
            x_BLD = self.words(text_ids.masked_fill(is_hidden, 0))
            x_BLD = torch.where(is_hidden[..., None], self.mask_embedding, x_BLD) + positions
        return F.dropout(self.norm_pre(x_BLD), self.config.dropout, self.training)

    def pool(self, x_BLD: Tensor, word_mask_BL: Tensor) -> Tensor:
        """The state `[B, D]` at which a text is read as a whole."""
        if self.config.pooling == "first":
            return x_BLD[:, 0]
        if self.config.pooling == "last":
            return x_BLD[:, -1]
        # The end token is the last of the unmasked positions; a text cut short is read at its last word.
        last = word_mask_BL.long().sum(dim=1).clamp(min=1) - 1
        return x_BLD[torch.arange(len(last), device=last.device), last]

    def forward(self, text_ids: Tensor) -> TextFeatures:
        """Encode int64 `[B, L]`, L at most `context_length`. Returned tokens may leave out padding common to all."""
        config = self.config
        if text_ids.shape[1] > config.context_length:
            raise ValueError(
                f"texts have {text_ids.shape[1]} ids, the tower takes at most {config.context_length}"
            )
        mask_BL = self.word_mask(text_ids)
        looks_at_padding = config.pooling == "last"
        if not looks_at_padding and text_ids.device.type == "cpu":
            # Nobody looks at padding behind the longest text. (On a GPU, asking how long that is would stall it.)
            longest = max(1, int(mask_BL.sum(dim=1).max()))
            text_ids, mask_BL = text_ids[:, :longest], mask_BL[:, :longest]
        x_BLD = self.embed(text_ids)
        mask = None if config.causal or looks_at_padding else mask_BL[:, None, None]
        for block in self.blocks:
            x_BLD = block(x_BLD, mask, causal=config.causal)
        x_BLD = self.norm_post(x_BLD)
        pooled_BD = self.pool(x_BLD, mask_BL)
        return TextFeatures(x_BLD, F.normalize(self.projection(pooled_BD).float(), dim=-1), mask_BL)
