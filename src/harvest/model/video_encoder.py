"""The video tower.

Shapes: B clips, T frames, S tubelet times (T / tubelet_size), G patches a side, P = G * G patches of a frame, N = S * P
tubelets, K kept tubelets, R prefix tokens, D width, E shared width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harvest.interfaces import (
    Fit,
    Grid,
    HarvestError,
    Interpolation,
    Kept,
    Merged,
    Packed,
    Squares,
    VideoFeatures,
)
from harvest.model.layers import (
    MOST_DEPTH,
    MOST_WIDTH,
    Activation,
    AttentionPooling,
    Block,
    Norms,
    RotaryPositions,
    Segments,
    SinusoidPositions,
    resize_positions,
)
from harvest.model.token_merging import merge_plan, merge_tokens
from harvest.parallel import send
from harvest.ranges import Range, check_ranges


@dataclass(frozen=True)
class PoolConfig:
    """Sizes of a pooling query that are not its tower's."""

    width: Annotated[int, Range(least=1, most=MOST_WIDTH)]
    num_heads: Annotated[int, Range(least=1, most=1024)]
    mlp_width: Annotated[int, Range(least=0, most=8 * MOST_WIDTH)]
    """0: no MLP follows (CoCa)."""

    def __post_init__(self) -> None:
        check_ranges(self, "video.pool")
        if self.width % self.num_heads:
            raise HarvestError(
                f"video.pool.width {self.width} is not a multiple of num_heads {self.num_heads}"
            )


@dataclass(frozen=True)
class VideoEncoderConfig:
    """Sizes of a video tower. An image tower is one with `num_frames = 1`."""

    image_size: Annotated[int, Range(least=1, most=8192)] = 224
    """Where it is no multiple of `patch_size`, the last pixels of every row and column are not used, as in the peers."""
    patch_size: Annotated[int, Range(least=1, most=1024)] = 16
    tubelet_size: Annotated[int, Range(least=1, most=64)] = 1
    num_frames: Annotated[int, Range(least=1, most=4096)] = 8
    width: Annotated[int, Range(least=1, most=MOST_WIDTH)] = 768
    depth: Annotated[int, Range(least=1, most=MOST_DEPTH)] = 12
    num_heads: Annotated[int, Range(least=1, most=1024)] = 12
    mlp_width: Annotated[int, Range(least=1, most=8 * MOST_WIDTH)] = 3072
    embed_dim: Annotated[int, Range(least=1, most=MOST_WIDTH)] = 512
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    prefix: Literal["none", "clip", "frame"] = "frame"
    """Class tokens: none (SigLIP), one a clip (released ViCLIP), or one a frame. Only with one a frame do T equal
    frames give exactly the image's embedding: T copies of every patch would outweigh a single class token."""
    pooling: Literal["prefix", "attention", "mean"] = "prefix"
    """A clip's feature: its class tokens' mean (CLIP), a learned query's look at all tokens, those of the prefix too
    (SigLIP, PE), or all tokens' mean (UMT)."""
    pool: PoolConfig | None = None
    """None: the pooling query has the tower's own sizes."""
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
    rotary_grid: Annotated[int, Range(least=0, most=4096)] = 0
    """Besides, queries and keys are turned by the place (`RotaryPositions`), as if there were so many patches a side.
    0: they are not. Times turn nothing, so that a still clip stays an image."""
    rotary_start: float = 0.0
    norms: Norms = "before"
    gated_mlp: bool = False
    """EVA-02's SwiGLU."""
    inner_norms: bool = False
    """EVA-02's norms before the last layer of attention and of the MLP."""
    patch_bias: bool = False
    projection: bool = True
    projection_bias: bool = False
    time_positions: Literal["table", "gated"] = "table"
    """How tokens learn their time: a zero-initialised table (ViCLIP), or a fixed sinusoid times a zero-initialised
    gate per channel, which grows to a useful size in a short run. Both leave a still clip an image at the start."""
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    fit: Fit = "crop"
    """How a picture becomes a square, as the tower was trained: every reader follows it unless told otherwise."""
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        check_ranges(self, "video")
        if self.patch_size > self.image_size:
            raise HarvestError(
                f"video.patch_size {self.patch_size} is more than image_size {self.image_size}"
            )
        if self.width % self.num_heads:
            raise HarvestError(f"video.width {self.width} is not a multiple of num_heads {self.num_heads}")
        if (self.pooling == "prefix" and self.prefix == "none") or (
            self.attention == "frame" and self.prefix == "clip"
        ):
            raise HarvestError(
                f"video.pooling {self.pooling!r} and attention {self.attention!r} do not go with prefix {self.prefix!r}"
            )
        if self.norms == "after" or (self.rotary_grid and self.width // self.num_heads % 4):
            raise HarvestError(
                "video.norms: not 'after'; heads with rotary positions are a multiple of 4 wide"
            )
        if self.pool is not None and self.pooling != "attention":
            raise HarvestError("video.pool goes with pooling 'attention'")
        if self.pool_times and (self.pooling != "mean" or self.attention != "joint" or self.prefix != "none"):
            raise HarvestError("video.pool_times needs pooling 'mean', attention 'joint' and no prefix")

    @property
    def squares(self) -> Squares:
        """The pictures that it takes, as arguments of every reader."""
        return {"image_size": self.image_size, "fit": self.fit, "interpolation": self.interpolation}

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def pooled_width(self) -> int:
        """Of a clip's feature before its projection."""
        return self.pool.width if self.pool is not None else self.width

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
        self.config = config
        self.checkpointing = False
        D = config.width
        self.patches = nn.Linear(config.tubelet_size * 3 * config.patch_size**2, D, bias=config.patch_bias)
        num_tubelets = config.num_times * config.num_patches
        if config.positions == "factored":
            self.place_positions = nn.Parameter(nn.init.normal_(torch.empty(config.num_patches, D), std=0.02))
            self.time_positions = TimePositions(config.num_times, D, config.time_positions)
        elif config.positions == "joint":
            self.joint_positions = nn.Parameter(nn.init.normal_(torch.empty(num_tubelets, D), std=0.02))
        else:
            self.sinusoid = SinusoidPositions(num_tubelets, D)
        self.rotary = (
            RotaryPositions(
                math.isqrt(config.num_patches),
                D // config.num_heads,
                reference_grid=config.rotary_grid,
                start=config.rotary_start,
            )
            if config.rotary_grid
            else None
        )
        self.prefix = (
            nn.Parameter(nn.init.normal_(torch.empty(D), std=0.02)) if config.prefix != "none" else None
        )
        self.norm_pre = nn.LayerNorm(D, config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                D,
                config.num_heads,
                config.mlp_width,
                config.activation,
                config.norm_eps,
                key_bias=config.key_bias,
                norms=config.norms,
                gated=config.gated_mlp,
                inner_norms=config.inner_norms,
            )
            for _ in range(config.depth)
        )
        self.norm_post = nn.LayerNorm(D, config.norm_eps) if config.post_norm else nn.Identity()
        P = config.pooled_width
        self.norm_pooled = nn.LayerNorm(P, config.norm_eps) if config.pooled_norm else nn.Identity()
        pool = config.pool or PoolConfig(D, config.num_heads, config.mlp_width)
        self.pool = (
            AttentionPooling(
                D, pool.num_heads, pool.mlp_width, config.activation, config.norm_eps, pool_width=P
            )
            if config.pooling == "attention"
            else None
        )
        self.projection = (
            nn.Linear(P, config.embed_dim, bias=config.projection_bias)
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

        Frames are square; for another size than the model's own the positions of its patches are resized, bicubic.

        `keep` int64 `[B, K]` names the tubelets to see, in (time, row, column) order; None sees all. Where clips keep
        different numbers it is `Packed`: nothing is computed for padding, and only returned tokens have some (`mask`).
        `Merged` reads all and merges between blocks. `layers`, `attention` and `drop_path_scale` go with neither.
        Prefix tokens are always there. Returned tokens are in the order of `keep`. `layers` asks for the outputs of
        blocks, counted from 0, or from the last as -1, in that order, each after the final norm. `attention` asks for
        the last block's attention from the prefix (where there is none, the pooling query) to the tubelets, mean over
        heads. `drop_path_scale` `[depth, 2, B]` multiplies what each block's two branches add (stochastic depth).
        """
        features = self.features(
            video,
            keep,
            layers=layers,
            attention=attention,
            drop_path_scale=drop_path_scale,
            times_apart=self.config.pool_times and keep is None,
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
        self._check_choice(keep, bool(layers) or attention or drop_path_scale is not None)
        wanted = tuple(range(config.depth)[layer] for layer in layers)
        B, grid = video.shape[0], self.grid(video)
        per_frame = config.attention == "frame"
        x, R, rotation = self.enter(video, keep)
        plan = merge_plan(grid.num_tubelets, keep.budget, config.depth) if isinstance(keep, Merged) else None
        sizes = x.new_ones(B, grid.num_tubelets) if plan else None  # tubelets that each token stands for
        mask: Tensor | Segments | None = None
        if isinstance(keep, Packed):
            mask = Segments.of([(n, R + K) for n, K in keep.groups], x.device)
        if per_frame and drop_path_scale is not None:
            drop_path_scale = drop_path_scale.repeat_interleave(grid.num_times, dim=2)
        seen: dict[int, Tensor] = {}
        weights: Tensor | None = None
        for i, block in enumerate(self.blocks):
            scale = drop_path_scale[i] if drop_path_scale is not None else None
            if attention and i == config.depth - 1 and R:
                assert isinstance(block, Block)
                rows = block.first_rows(x, R, rotation)
                weights = rows[..., R:].mean(dim=1)
            if self.checkpointing:
                x = checkpoint(block, x, mask, rotation=rotation, drop_path_scale=scale, use_reentrant=False)
            else:
                x = block(x, mask, rotation=rotation, drop_path_scale=scale)
            if i in wanted and i < config.depth - 1:
                seen[i] = self.norm_post(x[:, R:]).reshape(B, -1, config.width)
            if plan and sizes is not None and i + 1 < config.depth:
                merged, sizes = merge_tokens(x[:, R:], sizes, plan[i] - plan[i + 1])
                x = torch.cat([x[:, :R], merged.to(x.dtype)], dim=1)
                # A merged token weighs in every softmax as much as what it stands for would together.
                mask = F.pad(sizes, (R, 0), value=1.0).log()[:, None, None]
        x = self.norm_post(x)
        if isinstance(keep, Packed):
            return self._unpack(x[0], R, grid, keep)
        if attention and weights is None and self.pool is not None:
            weights = self.pool.weights(x[:, R:])
        if attention and weights is None:
            raise ValueError(
                "this tower has neither a prefix nor a pooling query whose attention could be given"
            )
        pooled = self._pooled(x, R, grid, sizes=sizes, times_apart=times_apart)
        if per_frame:
            pooled = pooled.view(B, grid.num_times, -1).mean(dim=1)
        tokens = x[:, R:].reshape(B, -1, config.width) if per_frame else x[:, R:]
        seen[config.depth - 1] = tokens
        return VideoFeatures(
            tokens,
            self.norm_pooled(pooled),
            tuple(seen[i] for i in wanted),
            weights.reshape(B, -1) if weights is not None else None,
        )

    def _check_choice(self, keep: Kept, asks_for_more: bool) -> None:
        is_apart = self.config.attention == "frame"
        if isinstance(keep, Merged) and self.rotary is not None:
            raise HarvestError(
                "tokens of a tower with rotary positions cannot be merged: each has one place. Choose with "
                "selector motion or random"
            )
        if isinstance(keep, Packed) and is_apart:
            raise ValueError("attention 'frame' needs equally many kept tubelets of each time")
        if isinstance(keep, Packed) and asks_for_more:
            raise ValueError(
                "layers, attention and drop_path_scale need equally many kept tubelets of every clip"
            )
        if isinstance(keep, Merged) and (asks_for_more or is_apart):
            raise ValueError(
                "layers, attention, drop_path_scale and attention 'frame' do not go with merged tokens"
            )

    def _pooled(
        self,
        x_BND: Tensor,
        num_prefix: int,
        grid: Grid,
        *,
        sizes: Tensor | None = None,
        times_apart: bool = False,
    ) -> Tensor:
        """Each row's feature `[B, D]` of its tokens after the last norm; `times_apart`, of each time, `[B, S, D]`.

        Prefix tokens are averaged before the (linear) projection: the mean of the frames' embeddings.
        """
        tokens = x_BND[:, num_prefix:]
        if self.pool is not None:
            mask = F.pad(sizes, (num_prefix, 0), value=1.0).log() if sizes is not None else None
            return self.pool(x_BND, mask)
        if self.config.pooling == "prefix":
            return x_BND[:, :num_prefix].mean(dim=1)
        if times_apart:
            return tokens.view(tokens.shape[0], grid.num_times, -1, tokens.shape[-1]).mean(dim=2)
        if sizes is not None:
            return (tokens * sizes[..., None]).sum(dim=1) / grid.num_tubelets
        return tokens.mean(dim=1)

    def _unpack(self, x_TD: Tensor, num_prefix: int, grid: Grid, packed: Packed) -> VideoFeatures:
        """The features of clips whose tokens lie behind each other, in the clips' own order."""
        R, groups = num_prefix, packed.groups
        longest, tokens, pooled = max(K for _, K in groups), [], []
        for (n, K), part in zip(groups, torch.split(x_TD, [n * (R + K) for n, K in groups]), strict=True):
            seen = part.view(n, R + K, -1)
            pooled.append(self._pooled(seen, R, grid))
            tokens.append(F.pad(seen[:, R:], (0, 0, 0, longest - K)))
        counts = send(torch.tensor([K for n, K in groups for _ in range(n)]), packed.clips.device)
        mask = torch.arange(longest, device=counts.device) < counts[:, None]
        back = packed.clips.argsort()
        return VideoFeatures(
            torch.cat(tokens)[back], self.norm_pooled(torch.cat(pooled))[back], mask=mask[back]
        )

    def enter(self, video: Tensor, keep: Kept) -> tuple[Tensor, int, Tensor | None]:
        """What the first block gets, `[B, R + K, D]`; R, the number of prefix tokens in front; and the rotation that
        every block gets where positions are rotary.

        With attention "frame" every time is a row of its own, `[B * S, R + K / S, D]`. `Packed` clips lie behind each
        other in one row, each with its prefix tokens in front. `Merged` ones are all there.
        """
        config, grid = self.config, self.grid(video)
        S = grid.num_times
        times = self.time_positions(S) if config.positions == "factored" else None
        prefix_RD = self._prefix_tokens(S, times)
        if isinstance(keep, Packed):
            R, x_TD = len(prefix_RD), self._embed_packed(video, keep)
            parts = [
                torch.cat([prefix_RD.to(x_TD).expand(n, -1, -1), part.view(n, K, -1)], dim=1).flatten(0, 1)
                for (n, K), part in zip(
                    keep.groups, torch.split(x_TD, [n * K for n, K in keep.groups]), strict=True
                )
            ]
            return self.norm_pre(torch.cat(parts)[None]), R, self._rotation_packed(keep, grid, R)
        kept = None if isinstance(keep, Merged) else keep
        x_BKD, times_BK = self.embed_tubelets(video, kept)
        B, K, D = x_BKD.shape
        if times is not None:
            x_BKD = x_BKD + (
                times[times_BK] if kept is not None else times.repeat_interleave(grid.num_patches, 0)
            )
        rows = B
        if config.attention == "frame":
            if kept is not None:
                self._check_frames_apart(times_BK, S)
            rows = B * S
            x_BKD = x_BKD.reshape(rows, K // S, D)
        R = prefix_RD.shape[0] * B // rows
        if R:
            prefix = prefix_RD.expand(B, -1, -1).reshape(rows, R, D)
            x_BKD = torch.cat([prefix, x_BKD], dim=1)
        return self.norm_pre(x_BKD), R, self._rotation(kept, grid, R, rows)

    def _rotation(self, kept: Tensor | None, grid: Grid, num_prefix: int, rows: int) -> Tensor | None:
        """How the tokens of `rows` sequences are turned, `[rows or 1, R + K, 2, d / 2]`."""
        if self.rotary is None:
            return None
        P, table = grid.num_patches, self.rotary(math.isqrt(grid.num_patches))
        if kept is not None:
            patches = (kept % P).reshape(rows, -1)
        else:
            times = 1 if self.config.attention == "frame" else grid.num_times
            patches = torch.arange(P, device=table.device).repeat(times)[None]
        return table[F.pad(patches, (num_prefix, 0), value=P)]

    def _rotation_packed(self, packed: Packed, grid: Grid, num_prefix: int) -> Tensor | None:
        if self.rotary is None:
            return None
        P, table = grid.num_patches, self.rotary(math.isqrt(grid.num_patches))
        parts = torch.split(packed.keep % P, [n * K for n, K in packed.groups])
        patches = [
            F.pad(part.view(n, K), (num_prefix, 0), value=P).flatten()
            for (n, K), part in zip(packed.groups, parts, strict=True)
        ]
        return table[torch.cat(patches)][None]

    def _prefix_tokens(self, num_times: int, times_SD: Tensor | None) -> Tensor:
        """The class tokens of a clip with their positions in time, `[R, D]`."""
        if self.prefix is None:
            return self.patches.weight.new_empty(0, self.config.width)
        if self.config.prefix == "clip":
            return self.prefix[None]
        return self.prefix + times_SD if times_SD is not None else self.prefix.expand(num_times, -1)

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
        """Tokens `[B, K, D]` of the kept tubelets with their patches' positions, and their times `[B, K]`.

        Pixels are gathered before they are converted, normalised and multiplied, so the work is K's, not N's.
        """
        pixels = self._pixels(video)
        B, S, G = pixels.shape[:3]
        P = G * G
        if keep is None:
            keep = torch.arange(S * P, device=video.device).expand(B, -1)
            pixels = pixels.reshape(B, S * P, *pixels.shape[4:])
            positions = self._positions(S, P)
        else:
            patch = keep % P
            rows = torch.arange(B, device=video.device)[:, None]
            pixels = pixels[rows, keep // P, patch // G, patch % G]  # [B, K, t, 3, p, p]
            is_factored = self.config.positions == "factored"
            positions = self._positions(1, P)[patch] if is_factored else self._positions(S, P)[keep]
        return self.patches(self.normalise(pixels).flatten(2)) + positions, keep // P

    def _embed_packed(self, video: Tensor, packed: Packed) -> Tensor:
        """Tokens `[sum of K, D]` with their positions, in time the mean over the run that each stands for."""
        grid = self.grid(video)
        S, P, keep = grid.num_times, grid.num_patches, packed.keep
        counts = send(torch.tensor([K for n, K in packed.groups for _ in range(n)]), packed.clips.device)
        rows = packed.clips.repeat_interleave(counts, output_size=len(keep))
        pixels = self._pixels(video)[rows, keep // P, keep % P // (G := math.isqrt(P)), keep % P % G]
        x_TD = self.patches(self.normalise(pixels).flatten(1))
        if self.config.positions == "factored":
            x_TD = x_TD + self._positions(1, P)[keep % P]
            table_SPD = self.time_positions(S)[:, None]
            patch = torch.zeros_like(keep)
        else:
            table_SPD, patch = self._positions(S, P).view(S, P, -1), keep % P
        sums = F.pad(table_SPD.cumsum(dim=0), (0, 0, 0, 0, 1, 0))
        start, runs = keep // P, packed.runs
        return x_TD + (sums[start + runs, patch] - sums[start, patch]) / runs[:, None]

    def _pixels(self, video: Tensor) -> Tensor:
        """The pixels of every tubelet, a view `[B, S, G, G, t, 3, p, p]` of `[B, T, 3, H, W]`."""
        config = self.config
        p, t = config.patch_size, config.tubelet_size
        B, T, _, H, W = video.shape
        if H == W == config.image_size:
            H = W = H // p * p
            video = video[..., :H, :W]
        if H != W or H % p:
            raise ValueError(
                f"frames are {H}x{W}; the model takes {config.image_size}x{config.image_size}, or other squares whose "
                f"sides are multiples of {p}"
            )
        if T % t:  # an odd last frame, or a still image, fills its tubelet with itself
            video = torch.cat([video, video[:, -1:].expand(-1, t - T % t, -1, -1, -1)], dim=1)
        pixels = video.view(B, video.shape[1] // t, t, 3, H // p, p, W // p, p)
        return pixels.permute(0, 1, 4, 6, 2, 3, 5, 7)

    def _positions(self, num_times: int, num_patches: int) -> Tensor:
        """What tubelets get added before those of time, in their order: `[N, D]`."""
        config = self.config
        if config.positions == "factored":
            return resize_positions(self.place_positions, num_patches).repeat(num_times, 1)
        if config.positions == "sinusoid":
            table = self.sinusoid(num_times * config.num_patches)
        elif num_times == config.num_times:
            table = self.joint_positions
        else:
            times = self.joint_positions.view(config.num_times, -1).T[None]  # [1, P * D, S]
            times = F.interpolate(times, size=num_times, mode="linear", align_corners=False)
            table = times[0].T.reshape(-1, config.width)
        if num_patches == config.num_patches:
            return table
        return resize_positions(table, num_patches, num_times=num_times)
