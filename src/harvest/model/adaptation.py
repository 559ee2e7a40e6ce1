"""Fine-tuning few weights: low-rank changes of matrices, or a few more hidden units, merged away when a run ends.

Both are exact rewritings of the tower itself: a low-rank change is added to its matrix, and units beside those of an
MLP are a wider MLP. So a model folder never knows of them, and a finished model costs what its sizes say. We write
them ourselves, for `peft` replaces linear layers by modules of its own, and attention here reads `qkv.weight` in
places of its own too (without key biases; the guide of what to keep), which would silently leave such a change out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from harvest.interfaces import HarvestError
from harvest.model.layers import MLP, Block, activate
from harvest.model.video_text import VideoTextModel
from harvest.ranges import Range, check_ranges


@dataclass(frozen=True)
class AdaptConfig:
    """What of the towers trains; heads and fusion train in any case."""

    how: Literal["full", "lora", "adapter", "frozen"] = "full"
    """full: all that the objective trains. lora: a low-rank change of every matrix in the blocks (Hu et al. 2021).
    adapter: more hidden units beside those of the video tower's MLPs (AdaptFormer, Chen et al. 2022, with the tower's
    own activation); the text tower stays as it is. frozen: nothing."""
    rank: Annotated[int, Range(least=1)] = 8
    """Of a low-rank change, or the units of an adapter; AdaptFormer has 64."""
    strength: Annotated[float, Range(above=0)] = 2.0
    """A low-rank change is multiplied by it (alpha over rank)."""

    def __post_init__(self) -> None:
        check_ranges(self, "adapt")


class LowRank(nn.Module):
    """A matrix with a change of low rank, which is zero at the start."""

    def __init__(self, rows: int, columns: int, config: AdaptConfig) -> None:
        super().__init__()
        self.strength = config.strength
        self.down = nn.Parameter(torch.randn(config.rank, columns) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, config.rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.strength * (self.up @ self.down)


class WiderMLP(nn.Module):
    """An MLP and, beside its hidden units, some more, which say nothing at the start."""

    def __init__(self, own: MLP, num_units: int) -> None:
        super().__init__()
        width = own.up.in_features
        self.own = own
        self.into = nn.Linear(width, num_units)
        self.out = nn.Linear(num_units, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + self.out(activate(self.into(x), self.own.activation))

    @torch.no_grad()
    def merged(self) -> MLP:
        """The one MLP that computes the same."""
        own, units = self.own, self.into.out_features
        wide = MLP(own.up.in_features, own.up.out_features + units, own.activation).to(own.up.weight)
        wide.up.weight.copy_(torch.cat([own.up.weight, self.into.weight]))
        wide.up.bias.copy_(torch.cat([own.up.bias, self.into.bias]))
        wide.down.weight.copy_(torch.cat([own.down.weight, self.out.weight], dim=1))
        wide.down.bias.copy_(own.down.bias)
        return wide


def adapt(model: VideoTextModel, config: AdaptConfig) -> None:
    """Freeze the towers and put in their place what `config` trains. Towers that were frozen stay so."""
    if config.how == "full":
        return
    towers = {"video": model.video, "text": getattr(model, "text", None)}
    for name, tower in towers.items():
        if tower is None:
            continue
        blocks = [
            part
            for part in tower.modules()
            if isinstance(part, Block) and any(p.requires_grad for p in part.parameters())
        ]
        tower.requires_grad_(False)
        if config.how == "lora":
            for block in blocks:
                mlp = block.mlp
                gates = [mlp.gate] if mlp.gate is not None else []
                for linear in (block.attention.qkv, block.attention.out, mlp.up, mlp.down, *gates):
                    rows, columns = linear.weight.shape
                    parametrize.register_parametrization(linear, "weight", LowRank(rows, columns, config))
        elif config.how == "adapter" and name == "video":
            if model.config.video.gated_mlp or model.config.video.inner_norms:
                raise HarvestError(
                    "adapt.how adapter widens plain MLPs; those of this tower are gated: take lora"
                )
            for block in blocks:
                block.mlp = WiderMLP(block.mlp, config.rank)  # type: ignore[assignment]


@torch.no_grad()
def merge(model: VideoTextModel) -> None:
    """Make low-rank changes and adapters part of the weights: the same model, with plain layers."""
    for part in model.modules():
        if isinstance(part, nn.Linear) and parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    added = 0
    for block in model.video.blocks:
        assert isinstance(block, Block)
        if isinstance(block.mlp, WiderMLP):
            added = block.mlp.into.out_features
            block.mlp = block.mlp.merged()
    if not added:
        return
    pool = model.video.pool
    if (
        pool is not None and pool.mlp is not None and model.config.video.pool is None
    ):  # its MLP is as wide as those of the blocks: units that say nothing
        pool.mlp = WiderMLP(pool.mlp, added).to(pool.mlp.up.weight).merged()
    video = dataclasses.replace(model.config.video, mlp_width=model.config.video.mlp_width + added)
    model.config = dataclasses.replace(model.config, video=video)
    model.video.config = video
