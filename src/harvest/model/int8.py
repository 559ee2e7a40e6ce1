"""Matrices of a frozen tower in 8 bits: about twice the products a second of bf16, where a machine multiplies so.

Weights are rounded once, with a scale for each output; tokens are rounded as they come, with a scale for each
("vector-wise", LLM.int8, arXiv 2208.07339, section 3.1). So an outlier costs its own token precision, and no other.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from harvest.model.layers import Block

LARGEST = 127
"""Of 8 bits; -128 is left out, so that both signs round alike."""


class Int8Linear(nn.Module):
    """What `nn.Linear` computes, for inference: `x` `[..., in]` to `[..., out]`."""

    rounded: Tensor
    scale: Tensor
    bias: Tensor

    @torch.no_grad()
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Of a weight `[out, in]`, as exact as it is to be had: rounded to bf16 before, it is rounded twice."""
        super().__init__()
        rounded, scale = round_rows(weight.float())
        self.register_buffer("rounded", rounded)
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rounded, scale = round_rows(x.reshape(-1, x.shape[-1]).float())
        sums = torch._int_mm(rounded, self.rounded.t())  # exact, in int32
        found = sums.float() * scale * self.scale + self.bias
        return found.to(dtype).view(*x.shape[:-1], -1)


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 rows and the fp32 scale of each, `[rows, 1]`, whose product is nearest to fp32 `x` `[rows, columns]`."""
    scale = x.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (x / scale).round().to(torch.int8), scale


def in_8_bits(blocks: Iterable[nn.Module]) -> None:
    """Replace the matrices of each transformer block, for good."""
    for block in blocks:
        assert isinstance(block, Block)
        attention, mlp = block.attention, block.mlp
        for parent, name, bias in (
            (attention, "qkv", attention.bias()),
            (attention, "out", attention.out.bias),
            (mlp, "up", mlp.up.bias),
            (mlp, "down", mlp.down.bias),
            *([(mlp, "gate", mlp.gate.bias)] if mlp.gate is not None else []),
        ):
            setattr(parent, name, Int8Linear(getattr(parent, name).weight, bias))
        attention.query_value_bias = None  # it is in the one bias now
