"""The parts that every tower is made of. Shapes: B batch, N tokens, D width, M heads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harvest.parallel import send

MOST_WIDTH, MOST_DEPTH = 65_536, 512
"""Of a tower: what claims more is a damaged or hostile file."""

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "silu", "relu", "tanh"]


def activate(x: Tensor, kind: Activation) -> Tensor:
    """CLIP was trained with `x * sigmoid(1.702 x)`; SigLIP with tanh-approximated GELU; UMT with exact GELU; gated MLPs
    with SiLU; tanh is that of BERT's pooler.

    Where no gradient is asked for, `x` may be overwritten.
    """
    if kind == "quick_gelu":
        if not torch.is_grad_enabled():
            return F.silu(x.mul_(1.702), inplace=True).mul_(1 / 1.702)
        return F.silu(x * 1.702) * (1 / 1.702)  # the same function, one kernel less to differentiate
    if kind in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
    if kind == "tanh":
        return torch.tanh(x)
    return F.silu(x) if kind == "silu" else F.relu(x)


def sinusoid(num_positions: int, width: int) -> Tensor:
    """Fixed positions `[num_positions, width]`: sine in even channels, cosine in odd ones (VideoMAE, UMT).

    A longer table begins with a shorter one. Exponents are in float64: in float32 they are off by 2e-6.
    """
    channels = torch.arange(width)
    rates = 10000.0 ** (-2.0 * (channels // 2).double() / width)
    angles = torch.arange(num_positions).double()[:, None] * rates
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()


def take(x_BND: Tensor, rows_BK: Tensor) -> Tensor:
    """The tokens `rows` of each sequence, `[B, K, D]`."""
    return x_BND.gather(1, rows_BK[..., None].expand(-1, -1, x_BND.shape[-1]))


def resize_positions(table_ND: Tensor, num_patches: int, *, num_times: int = 1) -> Tensor:
    """Positions `[num_times * P, D]` of square frames for another number of patches, bicubic (UMT, transformers)."""
    old, new = math.isqrt(table_ND.shape[0] // num_times), math.isqrt(num_patches)
    if num_times * old * old != table_ND.shape[0] or new * new != num_patches:
        raise ValueError(
            f"frames must be square: {table_ND.shape[0]} positions of {num_times} times to {num_patches}"
        )
    if old == new:
        return table_ND
    grids = table_ND.view(num_times, old, old, -1).permute(0, 3, 1, 2)
    grids = F.interpolate(grids, size=(new, new), mode="bicubic", align_corners=False)
    return grids.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


class SinusoidPositions(nn.Module):
    """A sinusoid table kept on the device, in no state dict; extended where more positions are asked for."""

    table: Tensor

    def __init__(self, num_positions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoid(num_positions, width), persistent=False)

    def forward(self, num_positions: int) -> Tensor:
        """`[num_positions, D]`."""
        if num_positions > self.table.shape[0]:
            with torch.inference_mode(False):  # it is kept for later, for training too
                self.table = send(sinusoid(num_positions, self.table.shape[1]), self.table.device)
        return self.table[:num_positions]


class RotaryPositions(nn.Module):
    """Rotary positions in two dimensions (EVA-02, arXiv 2303.11331): queries and keys are turned by where their patch is.

    Of a head's channels the first half is turned by the row, the second by the column, in pairs of neighbours. Patch i of
    G a side is at `(i + start) * reference_grid / G`. Patches alone are turned, prefix tokens are not.
    """

    table: Tensor

    def __init__(self, grid: int, head_width: int, *, reference_grid: int, start: float) -> None:
        super().__init__()
        self.head_width, self.reference_grid, self.start = head_width, reference_grid, start
        self.register_buffer("table", self._table(grid), persistent=False)

    def _table(self, grid: int) -> Tensor:
        bands = 10000.0 ** (-torch.arange(self.head_width // 4).double() / (self.head_width // 4))
        places = (torch.arange(grid).double() + self.start) * self.reference_grid / grid
        angles = places[:, None] * bands
        rows, columns = angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)
        both = F.pad(torch.cat([rows, columns], dim=-1).flatten(0, 1), (0, 0, 0, 1))
        return torch.stack([both.cos(), both.sin()], dim=1).float()

    def forward(self, grid: int) -> Tensor:
        """Cosine and sine for each patch, and behind the patches for what is not turned: `[G * G + 1, 2, d / 2]`."""
        is_own = self.table.shape[0] == grid * grid + 1
        return self.table if is_own else self._table(grid).to(self.table.device)


def rotate(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Queries or keys `[B, M, N, d]` turned by `rotation` `[B or 1, N, 2, d / 2]` (cosine, sine), in fp32."""
    if rotation is None:
        return x
    cos, sin = rotation[:, None].unbind(dim=3)
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(dim=-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class Segments(NamedTuple):
    """Where sequences of different lengths lie behind each other in one: (sequences, length of each), group by group.

    Tokens attend within their own sequence.
    """

    groups: tuple[tuple[int, int], ...]
    ends: Tensor  # int32 [sequences + 1]: 0 and where each ends

    @classmethod
    def of(cls, groups: Sequence[tuple[int, int]], device: torch.device) -> Segments:
        lengths = [length for count, length in groups for _ in range(count)]
        ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        return cls(tuple(groups), send(ends, device))


def attend_within(q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, dropout: float = 0.0) -> Tensor:
    """Attention within each of the sequences that lie behind each other in `[1, M, N, d]`.

    Flash attention for sequences of any length where there is such a kernel (a GPU, 16 bits), else sequences of equal
    length together. Nothing is padded either way.
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn  # imports torch._dynamo: a second

        longest = max(length for _, length in segments.groups)
        q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))  # [N, M, d]
        mixed = varlen_attn(q, k, v, segments.ends, segments.ends, longest, longest)
        assert isinstance(mixed, Tensor)
        return mixed.transpose(0, 1)[None]
    parts, start = [], 0
    for count, length in segments.groups:
        end = start + count * length
        shape = (q.shape[1], count, length, q.shape[3])
        alone = (part[0, :, start:end].reshape(shape).transpose(0, 1) for part in (q, k, v))
        parts.append(attend(*alone, dropout=dropout).transpose(0, 1).flatten(1, 2))
        start = end
    return torch.cat(parts, dim=1)[None]


def leave_uncompiled() -> None:
    """Keep `attend_within`, whose shapes change with every batch, out of what torch.compile compiles from now on.

    Not a decorator, as that imports torch._dynamo, which takes as long as PyTorch itself.
    """
    globals()["attend_within"] = torch.compiler.disable(attend_within)  # type: ignore[no-untyped-call]


SHORT = 512
"""Keys up to which two products beat the fused kernel on a CPU in bf16 without gradient; beyond, they cost memory."""
LONG = 1024
"""Tokens beyond which the backward pass computes their weights again: kept, they are 13 GB of four clips in ViT-L/14."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | Segments | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention over `[B, M, N, d]`; `mask` is boolean, True = may be attended to, or
    floating point, added to the scores, or says which sequences lie behind each other.

    `dropout` is the chance that a weight is left out.

    PyTorch's fused kernel, except where it was measured to lose to two batched products: on a CPU in bf16, where its
    forward takes 2.1 times as long at 197 tokens and as long at 785, its backward 5 times at 30 and 3.4 times at 165,
    and both together 1.8 times at 1,577, where the weights are computed twice.
    """
    if isinstance(mask, Segments):
        return attend_within(q, k, v, mask, dropout=dropout)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    is_bf16 = q.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if not (q.is_cpu and is_bf16 and (torch.is_grad_enabled() or k.shape[-2] <= SHORT)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
    if torch.is_grad_enabled() and q.shape[-2] * k.shape[-2] > LONG**2:
        mixed = checkpoint(_by_products, q, k, v, mask, causal, dropout, use_reentrant=False)
        assert isinstance(mixed, Tensor)
        return mixed
    return _by_products(q, k, v, mask, causal, dropout)


def _by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1, dtype=scores.dtype)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


class Attention(nn.Module):
    """Multi-head self-attention through one fused projection and PyTorch's fused kernel."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        key_bias: bool = True,
        dropout: float = 0.0,
        norm_eps: float | None = None,
    ) -> None:
        """With `norm_eps` what the heads say is normalised before the last projection (EVA-02's sub-norm)."""
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
        # A bias of the keys shifts every score of a query alike: it changes nothing, and its gradient is rounding
        # noise, which AdamW would blow up to full steps. Where the reference has none, there is none.
        self.query_value_bias = None if key_bias else nn.Parameter(torch.zeros(2 * width))
        self.norm = nn.LayerNorm(width, norm_eps) if norm_eps is not None else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x_BND: Tensor,
        mask: Tensor | Segments | None = None,
        *,
        causal: bool = False,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """`mask` is boolean, True = may be attended to, of a shape that broadcasts to `[B, M, N, N]`; `rotation` is
        `rotate`'s."""
        B, N, D = x_BND.shape
        qkv = (
            self.qkv(x_BND)
            if self.query_value_bias is None
            else F.linear(x_BND, self.qkv.weight, self.bias())
        )
        q, k, v = qkv.view(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attend(q, k, v, mask, causal=causal, dropout=self.dropout if self.training else 0.0)
        return self.out(self.norm(mixed.transpose(1, 2).reshape(B, N, D)))

    def at(self, x_BND: Tensor, rows_BK: Tensor, rotation: Tensor | None = None) -> Tensor:
        """What `forward` gives at the tokens `rows` alone, `[B, K, D]`; the others are only looked at."""
        (B, N, D), K = x_BND.shape, rows_BK.shape[1]
        weight, bias = self.qkv.weight, self.bias()
        q = F.linear(take(x_BND, rows_BK), weight[:D], bias[:D])
        key_value = F.linear(x_BND, weight[D:], bias[D:]).view(B, N, 2, self.num_heads, -1)
        k, v = key_value.permute(2, 0, 3, 1, 4)
        q = q.view(B, K, self.num_heads, -1).transpose(1, 2)
        if rotation is not None:
            each = rotation.expand(B, -1, -1, -1).flatten(2)
            at_rows = take(each, rows_BK).view(B, K, 2, -1)
            q, k = rotate(q, at_rows), rotate(k, rotation)
        mixed = attend(q, k, v)
        return self.out(self.norm(mixed.transpose(1, 2).reshape(B, K, D)))

    def bias(self) -> Tensor:
        """Of queries, keys and values, `[3 D]`."""
        if self.query_value_bias is None:
            return self.qkv.bias
        query, value = self.query_value_bias.chunk(2)
        return torch.cat([query, torch.zeros_like(query), value])

    def first_rows(self, x_BND: Tensor, num_rows: int, rotation: Tensor | None = None) -> Tensor:
        """Attention of the first `num_rows` tokens to all, mean over heads, fp32 `[B, num_rows, N]`.

        Keys are not computed: a query times the key weights is multiplied with the tokens themselves; except keys that
        are turned (the first tokens, of the prefix, are not).
        """
        B, N, D = x_BND.shape
        bias = self.bias()
        with torch.autocast(x_BND.device.type, enabled=False):
            x_BND, weight = x_BND.float(), self.qkv.weight.float()
            q = F.linear(x_BND[:, :num_rows], weight[:D], bias[:D].float())
            q = q.view(B, num_rows, self.num_heads, -1) * (D // self.num_heads) ** -0.5
            if rotation is not None:
                k = F.linear(x_BND, weight[D : 2 * D], bias[D : 2 * D].float())
                k = rotate(k.view(B, N, self.num_heads, -1).transpose(1, 2), rotation)
                return (q.transpose(1, 2) @ k.transpose(2, 3)).softmax(dim=-1).mean(dim=1)
            key_weight = weight[D : 2 * D].view(self.num_heads, -1, D)
            queries = torch.einsum("brmd,mdc->brmc", q, key_weight)
            scores = queries.flatten(1, 2) @ x_BND.transpose(1, 2)  # [B, R * M, N]
            return scores.softmax(dim=-1).view(B, num_rows, self.num_heads, N).mean(dim=2)


class CrossAttention(nn.Module):
    """Queries of one width attend to keys and values made of tokens of another width."""

    def __init__(self, width: int, context_width: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """`context` `[V, K, C]`, `mask` bool `[V, K]`, True where it may be attended to.

        Where V is less than B, the rows of x are V groups of neighbours that share a context: its keys and values
        are computed once for the whole group, and nothing is copied.
        """
        B, N, D = x_BND.shape
        V = context.shape[0]
        if B % V:
            raise ValueError(f"{B} rows cannot share {V} contexts equally")
        shape = (V, -1, self.num_heads, D // self.num_heads)
        q = self.query(x_BND).view(shape).transpose(1, 2)
        k, v = (part.reshape(shape).transpose(1, 2) for part in self.key_value(context).chunk(2, dim=-1))
        mask = mask[:, None, None] if mask is not None else None
        mixed = attend(q, k, v, mask, dropout=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))

    def weights(self, x_BND: Tensor, context_BKC: Tensor) -> Tensor:
        """Attention of the queries to the context, mean over heads, fp32 `[B, N, K]`."""
        B, N, D = x_BND.shape
        with torch.autocast(x_BND.device.type, enabled=False):
            context_BKC = context_BKC.float()
            q = self.query(x_BND.float()).view(B, N, self.num_heads, -1).transpose(1, 2)
            key_weight, key_bias = self.key_value.weight[:D], self.key_value.bias[:D]
            k = F.linear(context_BKC, key_weight, key_bias).view(B, -1, self.num_heads, D // self.num_heads)
            scores = q * q.shape[-1] ** -0.5 @ k.permute(0, 2, 3, 1)
            return scores.softmax(dim=-1).mean(dim=1)


class MLP(nn.Module):
    """Two layers; gated, the activation of a third multiplies the hidden units (SwiGLU). With `norm_eps` the hidden
    units are normalised (EVA-02's sub-norm)."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        activation: Activation,
        *,
        gated: bool = False,
        norm_eps: float | None = None,
        out_width: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, mlp_width, bias=bias)
        self.gate = nn.Linear(width, mlp_width, bias=bias) if gated else None
        self.norm = nn.LayerNorm(mlp_width, norm_eps) if norm_eps is not None else nn.Identity()
        self.down = nn.Linear(mlp_width, out_width or width, bias=bias)
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if self.gate is None:
            hidden = activate(hidden, self.activation)
        else:
            hidden = activate(self.gate(x), self.activation) * hidden
        return self.down(self.norm(hidden))


Norms = Literal["before", "after", "branch"]
"""Where a block's norms stand: `x + branch(norm(x))`, as in CLIP; `norm(x + branch(x))`, as in BERT; or
`x + norm(branch(x))`, as in EVA-02's largest model."""


class Block(nn.Module):
    """Transformer block: attention, then an MLP, each with a norm and added to what came in."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        activation: Activation,
        norm_eps: float,
        *,
        key_bias: bool = True,
        norms: Norms = "before",
        dropout: float = 0.0,
        gated: bool = False,
        inner_norms: bool = False,
    ) -> None:
        super().__init__()
        self.norms = norms
        self.dropout = dropout
        inner_eps = norm_eps if inner_norms else None
        self.norm_attention = nn.LayerNorm(width, norm_eps)
        self.attention = Attention(width, num_heads, key_bias=key_bias, dropout=dropout, norm_eps=inner_eps)
        self.norm_mlp = nn.LayerNorm(width, norm_eps)
        self.mlp = MLP(width, mlp_width, activation, gated=gated, norm_eps=inner_eps)

    def forward(
        self,
        x_BND: Tensor,
        mask: Tensor | Segments | None = None,
        *,
        causal: bool = False,
        rotation: Tensor | None = None,
        drop_path_scale: Tensor | None = None,
    ) -> Tensor:
        """`drop_path_scale` `[2, B]` multiplies what attention and MLP add to each row (stochastic depth; not with norms
        after). `rotation` is `rotate`'s."""
        if self.norms == "after":
            attended = F.dropout(self.attention(x_BND, mask, causal=causal), self.dropout, self.training)
            x_BND = self.norm_attention(x_BND + attended)
            return self.norm_mlp(x_BND + F.dropout(self.mlp(x_BND), self.dropout, self.training))
        attended = self.attention(self._read(x_BND), mask, causal=causal, rotation=rotation)
        if self.norms == "branch":
            attended = self.norm_attention(attended)
        x_BND = x_BND + (
            attended
            if drop_path_scale is None
            else attended * drop_path_scale[0, :, None, None].to(attended.dtype)
        )
        computed = self._thought(x_BND)
        return x_BND + (
            computed
            if drop_path_scale is None
            else computed * drop_path_scale[1, :, None, None].to(computed.dtype)
        )

    def at(self, x_BND: Tensor, rows_BK: Tensor, rotation: Tensor | None = None) -> Tensor:
        """What `forward` gives at the tokens `rows` alone, `[B, K, D]` (not with norms after)."""
        attended = self.attention.at(self._read(x_BND), rows_BK, rotation)
        x_BKD = take(x_BND, rows_BK) + (self.norm_attention(attended) if self.norms == "branch" else attended)
        return x_BKD + self._thought(x_BKD)

    def first_rows(self, x_BND: Tensor, num_rows: int, rotation: Tensor | None = None) -> Tensor:
        """`Attention.first_rows` of what this block gets."""
        return self.attention.first_rows(self._read(x_BND), num_rows, rotation)

    def _read(self, x_BND: Tensor) -> Tensor:
        """What attention gets."""
        return x_BND if self.norms == "branch" else self.norm_attention(x_BND)

    def _thought(self, x_BND: Tensor) -> Tensor:
        """What the MLP adds."""
        return self.norm_mlp(self.mlp(x_BND)) if self.norms == "branch" else self.mlp(self.norm_mlp(x_BND))


class AttentionPooling(nn.Module):
    """A learned query of width P attends to all tokens; then, with an `mlp_width`, a residual MLP (SigLIP)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        activation: Activation,
        norm_eps: float,
        *,
        pool_width: int | None = None,
    ) -> None:
        """`pool_width` None: as wide as the tokens."""
        super().__init__()
        P = pool_width or width
        self.probe = nn.Parameter(nn.init.normal_(torch.empty(P), std=P**-0.5))
        self.attention = CrossAttention(P, width, num_heads)
        self.norm = nn.LayerNorm(P, norm_eps) if mlp_width else nn.Identity()
        self.mlp = MLP(P, mlp_width, activation) if mlp_width else None

    def forward(self, x_BND: Tensor, mask: Tensor | None = None) -> Tensor:
        """`[B, N, D]` to `[B, P]`; `mask` `[B, N]` as in `attend`."""
        pooled_BP = self.attention(self.probe.expand(x_BND.shape[0], 1, -1), x_BND, mask)[:, 0]
        return pooled_BP + self.mlp(self.norm(pooled_BP)) if self.mlp is not None else pooled_BP

    def weights(self, x_BND: Tensor) -> Tensor:
        """How much the probe attends to each token, mean over heads, fp32 `[B, N]`."""
        return self.attention.weights(self.probe.expand(x_BND.shape[0], 1, -1), x_BND)[:, 0]
