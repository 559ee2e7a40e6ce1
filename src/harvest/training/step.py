"""One optimizer step: the one place in which weights change, for training and for what measures it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from harvest.interfaces import Batch, Losses
from harvest.parallel import Precision, autocast, clip_gradients
from harvest.training.average import WeightAverage
from harvest.training.optim import set_lr


@dataclass
class OptimizerStep:
    """Forward, backward, clipping, update and average; gradients are gone afterwards."""

    forward: nn.Module
    """The objective, or what wraps it (`parallel.wrap`)."""
    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: Precision
    max_grad_norm: float | None = None
    average: WeightAverage | None = None

    def __call__(self, batch: Batch, step: int, *, lr: float | None = None) -> Losses:
        """Take step number `step` on a batch; `lr` None leaves the optimizer's learning rates."""
        if lr is not None:
            set_lr(self.optimizer, lr)
        with autocast(self.device, self.precision):
            losses: Losses = self.forward(batch, step)
        losses.total.backward()  # type: ignore[no-untyped-call]
        if self.max_grad_norm is not None:
            clip_gradients(
                (p for group in self.optimizer.param_groups for p in group["params"]), self.max_grad_norm
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        return losses
