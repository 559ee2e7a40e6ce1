"""VideoMAE (arXiv 2203.12602), a baseline: a video tower from scratch rebuilds the pixels of hidden tubes.

The tower sees a tenth of the clip, the same places at all times; a light decoder fills in the rest, whose pixels are
normalised in each patch. What UMT compares itself with.

Shapes: B clips, N tubelets, K kept ones, H hidden ones, D width of the decoder, X values of a tubelet.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from harvest.interfaces import Batch, HarvestError, Losses
from harvest.model.alignment import init_xavier
from harvest.model.layers import Block, SinusoidPositions
from harvest.model.video_text import VideoTextModel
from harvest.objectives.contract import Given, Needs
from harvest.objectives.reach import freeze_unreached
from harvest.objectives.seen import check_seen, drop_path_of, step_generator
from harvest.ranges import Range
from harvest.tokens import DropRatio, Selection, Selector, choose_equally

if TYPE_CHECKING:
    from harvest.config import RunConfig


@dataclass(frozen=True)
class PixelReconstructionConfig(Selection):
    drop_ratio: DropRatio = 0.9
    """Share of the tubelets hidden from the tower."""
    selector: Selector = "tube"
    decoder_width: Annotated[int, Range(least=1)] = 384
    decoder_depth: Annotated[int, Range(least=1)] = 4
    decoder_heads: int = 6
    normalise_pixels: bool = True
    """Rebuild each patch with its own mean taken off and divided by its own deviation."""
    drop_path: Annotated[float, Range(least=0, below=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_width % self.decoder_heads:
            raise HarvestError(
                f"objective.decoder_width: {self.decoder_heads} heads cannot share {self.decoder_width} channels"
            )
        if self.drop_ratio == 0 and self.budget is None:
            raise HarvestError("objective.drop_ratio: something must be hidden for it to be rebuilt")

    @property
    def needs(self) -> Needs:
        return Needs(self, text=False, check=self._check, check_seen=_check_hidden, tiny=self._tiny)

    def build(self, run: RunConfig, model: VideoTextModel, given: Given) -> PixelReconstruction:
        return PixelReconstruction(self, model, seed=run.loop.seed)

    def _check(self, run: RunConfig) -> None:
        if run.tuning.steps and run.tuning.drop_ratio == 0:
            raise HarvestError(
                "tuning.drop_ratio: the last stage, too, must hide something for it to be rebuilt: set it, or"
                " tuning.steps 0"
            )

    def _tiny(self, run: RunConfig) -> RunConfig:
        light = dataclasses.replace(self, decoder_width=32, decoder_depth=1, decoder_heads=2)
        return dataclasses.replace(run, objective=light)


def _check_hidden(selection: Selection, model: VideoTextModel, video: Tensor) -> None:
    if check_seen(selection, model, video, attention=False, equally=True) is None:
        raise HarvestError(
            f"pixel reconstruction needs hidden tubelets, and a stage of this run sees all {model.num_tubelets(video)}:"
            " lower vary.budgets, or hide more (drop_ratio)"
        )


class PixelDecoder(nn.Module):
    """Seen tokens and one vector for all hidden ones, each with its position; a few blocks; pixels of the hidden."""

    def __init__(
        self, config: PixelReconstructionConfig, *, width: int, num_positions: int, num_values: int
    ) -> None:
        super().__init__()
        D = config.decoder_width
        self.seen = nn.Linear(width, D, bias=False)
        self.hidden = nn.Parameter(torch.zeros(D))
        self.positions = SinusoidPositions(num_positions, D)
        self.blocks = nn.ModuleList(
            Block(D, config.decoder_heads, 4 * D, "gelu", 1e-6, key_bias=False)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(D, 1e-6)
        self.pixels = nn.Linear(D, num_values)
        init_xavier(self)
        nn.init.trunc_normal_(self.hidden, std=0.02)

    def forward(self, tokens_BKW: Tensor, keep: Tensor, hidden: Tensor, num_tubelets: int) -> Tensor:
        """Pixels `[B, H, X]` of the tubelets `hidden` `[B, H]`, from tokens of the tubelets `keep` `[B, K]`."""
        positions = self.positions(num_tubelets)
        seen = self.seen(tokens_BKW)
        x = torch.cat([seen + positions[keep], (self.hidden + positions[hidden]).to(seen.dtype)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(x[:, keep.shape[1] :]))


class PixelReconstruction(nn.Module):
    """Mean squared error of the hidden tubelets' pixels."""

    def __init__(self, config: PixelReconstructionConfig, model: VideoTextModel, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.seed = seed
        self.selection: Selection = config
        video = model.config.video
        self.decoder = PixelDecoder(
            config,
            width=video.width,
            num_positions=video.num_times * video.num_patches,
            num_values=video.tubelet_size * 3 * video.patch_size**2,
        )
        freeze_unreached(self)

    def forward(self, batch: Batch, step: int) -> Losses:
        generator = step_generator(self.seed, step, device=batch.video.device)
        video, model = batch.video, self.model
        grid = model.grid(video)
        keep = choose_equally(self.selection, video, grid, generator=generator)
        if keep is None:
            raise HarvestError("pixel reconstruction needs hidden tubelets: all are seen")
        drop_path_scale = drop_path_of(
            model, video, rate=self.config.drop_path, is_training=self.training, generator=generator
        )
        hidden = hidden_of(keep, grid.num_tubelets)
        tokens = model.encode_video(video, keep, drop_path_scale=drop_path_scale).tokens
        found = self.decoder(tokens, keep, hidden, grid.num_tubelets)
        wanted = tubelet_pixels(video, hidden, patch_size=grid.patch_size, tubelet_size=grid.tubelet_size)
        if self.config.normalise_pixels:
            wanted = normalised_patches(wanted)
        loss = (found.float() - wanted.flatten(2)).square().mean()
        return Losses(loss, {"pixels": loss.detach()})


def hidden_of(keep: Tensor, num_tubelets: int) -> Tensor:
    """The tubelets `[B, N - K]` that are not in `keep` `[B, K]`, ascending."""
    is_hidden = torch.ones(len(keep), num_tubelets, dtype=torch.bool, device=keep.device).scatter_(
        1, keep, False
    )
    size = len(keep) * (num_tubelets - keep.shape[1])
    return is_hidden.nonzero_static(size=size)[:, 1].view(len(keep), -1)


def tubelet_pixels(video: Tensor, chosen: Tensor, *, patch_size: int, tubelet_size: int) -> Tensor:
    """Pixels from 0 to 1, `[B, H, t * p * p, 3]`, of the `chosen` `[B, H]` tubelets of uint8 clips."""
    B, T, _, height, width = video.shape
    p, t = patch_size, tubelet_size
    if T % t:  # as the tower fills up an odd last frame
        video = torch.cat([video, video[:, -1:].expand(-1, t - T % t, -1, -1, -1)], dim=1)
    S, rows, columns = video.shape[1] // t, height // p, width // p
    grid = video.view(B, S, t, 3, rows, p, columns, p).permute(0, 1, 4, 6, 2, 5, 7, 3)
    place = chosen % (rows * columns)
    clips = torch.arange(B, device=video.device)[:, None]
    pixels = grid[clips, chosen // (rows * columns), place // columns, place % columns]  # [B, H, t, p, p, 3]
    return pixels.flatten(2, 4).float() / 255


def normalised_patches(pixels: Tensor) -> Tensor:
    """Each channel of a tubelet `[..., X, 3]` with mean 0 and deviation 1 (VideoMAE `normlize_target`)."""
    mean = pixels.mean(dim=-2, keepdim=True)
    deviation = pixels.var(dim=-2, unbiased=True, keepdim=True).sqrt()
    return (pixels - mean) / (deviation + 1e-6)
