"""The parts that every tower is made of. Shapes: B batch, N tokens, D width, M heads."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]


def activate(x: Tensor, kind: Activation) -> Tensor:
    """CLIP was trained with `x * sigmoid(1.702 x)`; SigLIP with tanh-approximated GELU; UMT with exact GELU."""
    if kind == "quick_gelu":
        return F.silu(x * 1.702) * (1 / 1.702)  # the same function, one kernel less to differentiate
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention over `[B, M, N, d]`; `mask` is boolean, True = may be attended to.

    PyTorch's fused kernel, except where it was measured to lose: its CPU backward in bf16 takes 5 times as long
    as two batched products at 30 tokens and 3.4 times at 165, so training steps on a CPU use those.
    """
    if not (q.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=scores.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention through one fused projection and PyTorch's fused kernel."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """`mask` is boolean, True = may be attended to, of a shape that broadcasts to `[B, M, N, N]`."""
        B, N, D = x_BND.shape
        q, k, v = self.qkv(x_BND).view(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, mask, causal=causal)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))


class CrossAttention(nn.Module):
    """Queries of one width attend to keys and values made of tokens of another width."""

    def __init__(self, width: int, context_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, context_BKC: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        shape = (B, -1, self.num_heads, D // self.num_heads)
        q = self.query(x_BND).view(shape).transpose(1, 2)
        k, v = (part.reshape(shape).transpose(1, 2) for part in self.key_value(context_BKC).chunk(2, dim=-1))
        mixed = attend(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))


class MLP(nn.Module):
    def __init__(self, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.up(x), self.activation))


class Block(nn.Module):
    """Pre-norm transformer block: `x += attention(norm(x)); x += mlp(norm(x))`."""

    def __init__(
        self, width: int, num_heads: int, mlp_width: int, activation: Activation, norm_eps: float
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, norm_eps)
        self.attention = Attention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width, norm_eps)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x_BND: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        x_BND = x_BND + self.attention(self.norm_attention(x_BND), mask, causal=causal)
        return x_BND + self.mlp(self.norm_mlp(x_BND))


class AttentionPooling(nn.Module):
    """SigLIP's pooling head: one learned query attends to all tokens, then a residual MLP."""

    def __init__(
        self, width: int, num_heads: int, mlp_width: int, activation: Activation, norm_eps: float
    ) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(width) * width**-0.5)
        self.attention = CrossAttention(width, width, num_heads)
        self.norm = nn.LayerNorm(width, norm_eps)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x_BND: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, D]`."""
        pooled_BD = self.attention(self.probe.expand(x_BND.shape[0], 1, -1), x_BND)[:, 0]
        return pooled_BD + self.mlp(self.norm(pooled_BD))
