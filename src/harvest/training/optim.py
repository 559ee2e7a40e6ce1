"""AdamW with a learning rate that is a function of the step, and the groups it treats differently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-5
    lr_end: float = 0.0
    """Where the cosine ends."""
    warmup_steps: int = 4000
    weight_decay: float = 0.2
    """On matrices alone: norms, biases, positions, scales and single vectors are not decayed."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    max_grad_norm: float | None = None
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    """Parameters whose name contains the key learn at this multiple, e.g. `{"log_scale": 10}`. The first match counts."""


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


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train, grouped by decay and learning-rate factor; `group["factor"]` holds it."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = next((value for key, value in config.lr_factors.items() if key in name), 1.0)
        decay = config.weight_decay if is_decayed(name, parameter) else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "factor": factor}
            for (factor, decay), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
