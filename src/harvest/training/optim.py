"""AdamW with a learning rate that is a function of the step, and the groups it treats differently."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import nn

from harvest.parallel import is_shard
from harvest.ranges import Range, check_ranges


@dataclass(frozen=True)
class OptimConfig:
    lr: Annotated[float, Range(least=0)] = 1e-5
    lr_end: Annotated[float, Range(least=0)] = 0.0
    """Where the cosine ends."""
    warmup_steps: Annotated[int, Range(least=0)] = 4000
    weight_decay: Annotated[float, Range(least=0)] = 0.2
    """On matrices alone: norms, biases, positions, scales and single vectors are not decayed."""
    betas: Annotated[tuple[float, float], Range(least=0, below=1)] = (0.9, 0.98)
    eps: Annotated[float, Range(least=0)] = 1e-8
    max_grad_norm: Annotated[float | None, Range(above=0)] = None
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    """Parameters whose name contains the key learn at this multiple, e.g. `{"log_scale": 10}`. The first match counts."""
    layer_decay: Annotated[float, Range(above=0, most=1)] = 1.0
    """Each block of a tower learns at this multiple of the one behind it, its patches and positions (or words) at that
    of the first block; what follows the last block, heads among it, learns at `lr` (BEiT, VideoMAE, UMT)."""

    def __post_init__(self) -> None:
        check_ranges(self, "optim")


def lr_at(
    step: int, *, config: OptimConfig, steps: int, tuning_from: int | None = None, tuning_lr: float = 0.0
) -> float:
    """Linear warm-up, then a cosine to `lr_end` at `steps`; from `tuning_from` on, a cosine from `tuning_lr` to 0.

    >>> lr_at(0, config=OptimConfig(lr=1.0, warmup_steps=4), steps=10)
    0.25
    """
    main_steps = steps if tuning_from is None else tuning_from
    if step >= main_steps:
        return tuning_lr * _cosine((step - main_steps) / max(1, steps - main_steps))
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, main_steps - config.warmup_steps)
    return config.lr_end + (config.lr - config.lr_end) * _cosine(share)


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Matrices are decayed; positions and embeddings that stand for one thing are not, whatever their shape."""
    return parameter.ndim >= 2 and not name.endswith(("positions", "positions.table"))


_TOWER = re.compile(r"(?:^|\.)(video|text)\.(?:blocks\.(\d+)\.)?")
_BEHIND = ("norm_post.", "norm_pooled.", "projection.", "pool.")  # the last block, in a tower


def layer_factors(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """`layer_decay` to the power of how many blocks stand between a parameter and the end of its tower.

    >>> layer_factors(["video.patches.weight", "video.blocks.0.mlp.up.weight", "head.bias"], 0.5)
    {'video.patches.weight': 0.25, 'video.blocks.0.mlp.up.weight': 0.5, 'head.bias': 1.0}
    """
    found = {name: _TOWER.search(name) for name in names}
    depth: dict[str, int] = {}
    for match in found.values():
        if match and match[2]:
            depth[match[1]] = max(depth.get(match[1], 0), int(match[2]) + 1)
    factors: dict[str, float] = {}
    for name, match in found.items():
        if match is None or (match[2] is None and name[match.end() :].startswith(_BEHIND)):
            factors[name] = 1.0
        else:
            layer = 0 if match[2] is None else int(match[2]) + 1
            factors[name] = layer_decay ** (depth.get(match[1], 0) + 1 - layer)
    return factors


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train, grouped by decay and learning-rate factor; `group["factor"]` holds it."""
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    by_layer = layer_factors((name for name, _ in model.named_parameters()), config.layer_decay)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = next((value for key, value in config.lr_factors.items() if key in name), 1.0)
        factor *= by_layer[name]
        decay = config.weight_decay if is_decayed(name, parameter) else 0.0
        # one fused step takes either shares or whole tensors
        groups.setdefault((factor, decay, is_shard(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "factor": factor}
            for (factor, decay, _), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
