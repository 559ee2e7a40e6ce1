"""One optimizer step: the one place in which weights change, for training and for what measures it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harvest.interfaces import Batch, Losses
from harvest.parallel import Precision, autocast, clip_gradients
from harvest.training.average import WeightAverage
from harvest.training.optim import set_lr


class LossScale(nn.Module):
    """The factor of losses in fp16, whose gradients would underflow: `torch.amp.GradScaler`, without a word of the host.

    It doubles after 2,000 steps without an overflow, and halves at each. Scale and count are buffers, so that checkpoints
    hold them.
    """

    scale: Tensor  # fp32, scalar
    good_steps: Tensor  # fp32, scalar: since the last overflow or doubling

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0**16))
        self.register_buffer("good_steps", torch.tensor(0.0))

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> Tensor:
        """Divide gradients by the scale, in place, and set the next one. Gives an fp32 scalar, 1 where one was not finite."""
        overflow = torch.zeros((), device=self.scale.device)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, self.scale.reciprocal())
        count = self.good_steps.int()
        torch._amp_update_scale_(self.scale, count, overflow, 2.0, 0.5, 2000)
        self.good_steps.copy_(count)
        return overflow


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
    loss_scale: LossScale | None = None
    """In fp16."""

    def __call__(self, batch: Batch, step: int, *, lr: float | None = None) -> Losses:
        """Take step number `step` on a batch; `lr` None leaves the optimizer's learning rates."""
        if lr is not None:
            set_lr(self.optimizer, lr)
        with autocast(self.device, self.precision):
            losses: Losses = self.forward(batch, step)
        scale = self.loss_scale
        total = losses.total if scale is None else losses.total * scale.scale
        total.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if (
            scale is not None
        ):  # what PyTorch's fused optimizers look for: where it is not 0, they change nothing
            self.optimizer.found_inf = scale.unscale([p.grad for p in parameters if p.grad is not None])  # type: ignore[attr-defined]
        if self.max_grad_norm is not None:
            clip_gradients(parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        return losses
