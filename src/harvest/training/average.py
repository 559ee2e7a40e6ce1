"""An exponential moving average of the weights that train: the model a run ends with, where one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """fp32 copies of the weights that train, moved by `1 - decay` towards them after every step.

    It is part of a run's state: checkpoints hold `tensors`, so that a resumed run ends with the same average.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        weights = [p.detach().float() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.tensors.values()), weights, 1 - self.decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the average of a checkpoint, whose names and shapes are these."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module with the average as its weights, and its own again afterwards."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._fill(self.tensors)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
