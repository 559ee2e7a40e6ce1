"""The text tower. Shapes: B texts, L words, D width, E shared width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harvest.interfaces import HarvestError, TextFeatures
from harvest.model.layers import MLP, MOST_DEPTH, MOST_WIDTH, Activation, Block, Norms
from harvest.ranges import Range, check_ranges


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of a text tower and what its tokenizer's special ids mean."""

    vocab_size: Annotated[int, Range(least=1, most=4_000_000)] = 49408
    context_length: Annotated[int, Range(least=1, most=131_072)] = 77
    width: Annotated[int, Range(least=1, most=MOST_WIDTH)] = 512
    depth: Annotated[int, Range(least=0, most=MOST_DEPTH)] = 12
    num_heads: Annotated[int, Range(least=1, most=1024)] = 8
    mlp_width: Annotated[int, Range(least=1, most=8 * MOST_WIDTH)] = 2048
    embed_dim: Annotated[int, Range(least=1, most=MOST_WIDTH)] = 512
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    norms: Norms = "before"
    """BERT's norms stand behind each branch and behind the word vectors, and none follows the last block."""
    last_norm: bool = False
    """A norm behind the last block all the same (AltCLIP)."""
    dropout: float = 0.0
    """In training: of word vectors, of attention and of what each branch adds (BERT)."""
    pooling: Literal["end", "last", "first", "mean"] = "end"
    """CLIP reads its text feature at the first end token, SigLIP at the last position, padding included, BERT at the
    first position, OpenCLIP's RoBERTa as the mean of its words. Only SigLIP's words attend to padding."""
    class_token: bool = False
    """CoCa reads it at a token behind all words, which no word sees."""
    projection: bool = True
    projection_bias: bool = False
    projection_width: Annotated[int | None, Range(least=1, most=MOST_WIDTH)] = None
    """Hidden units of a projection of two layers; None: it is one matrix."""
    projection_activation: Activation = "gelu"
    end_id: int | None = 49407
    """None: texts end without a mark of their own (UMT's BERT)."""
    pad_id: int = 49407
    start_id: int | None = 49406
    mask_id: int | None = None
    """The word that stands for hidden ones. None: one learnable vector does, and its id is `vocab_size`."""

    def __post_init__(self) -> None:
        check_ranges(self, "text")
        if self.class_token and not self.causal:
            raise HarvestError("text.class_token goes with causal texts")
        if self.width % self.num_heads:
            raise HarvestError(f"text.width {self.width} is not a multiple of num_heads {self.num_heads}")


def bert_text(**settings: Any) -> TextEncoderConfig:
    """A BERT's text tower with a projection: `settings` are its sizes and ids, and what differs from BERT-base."""
    bert = {
        "activation": "gelu",
        "norm_eps": 1e-12,
        "causal": False,
        "norms": "after",
        "dropout": 0.1,
        "pooling": "first",
        "projection_bias": True,
    }
    return TextEncoderConfig(**{**bert, **settings})


class TextEncoder(nn.Module):
    """A transformer over words, in which hidden words can be marked."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        D, is_bert = config.width, config.norms == "after"
        self.words = nn.Embedding(config.vocab_size, D)
        self.mask_embedding = (
            nn.Parameter(nn.init.normal_(torch.empty(D), std=0.02)) if config.mask_id is None else None
        )
        num_positions = config.context_length + config.class_token
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(num_positions, D), std=0.01))
        self.class_token = (
            nn.Parameter(nn.init.normal_(torch.empty(D), std=0.01)) if config.class_token else None
        )
        self.norm_pre = nn.LayerNorm(D, config.norm_eps) if is_bert else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                D,
                config.num_heads,
                config.mlp_width,
                config.activation,
                config.norm_eps,
                norms=config.norms,
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        has_norm = config.last_norm or not is_bert
        self.norm_post = nn.LayerNorm(D, config.norm_eps) if has_norm else nn.Identity()
        self.projection: nn.Module = nn.Identity()
        if config.projection and config.projection_width is None:
            self.projection = nn.Linear(D, config.embed_dim, bias=config.projection_bias)
        elif config.projection and config.projection_width is not None:
            self.projection = MLP(
                D,
                config.projection_width,
                config.projection_activation,
                out_width=config.embed_dim,
                bias=config.projection_bias,
            )
        nn.init.normal_(self.words.weight, std=0.02)

    @property
    def mask_id(self) -> int:
        return self.config.vocab_size if self.config.mask_id is None else self.config.mask_id

    def word_mask(self, text_ids: Tensor) -> Tensor:
        """Bool `[B, L]`: True up to and with the first end token; where a text has none, where there is no pad."""
        is_word = text_ids != self.config.pad_id
        if self.config.end_id is None:
            return is_word
        is_end = text_ids == self.config.end_id
        ends_before = is_end.cumsum(dim=1) - is_end.long()
        has_end = is_end.any(dim=1, keepdim=True)
        return (has_end & (ends_before == 0)) | (~has_end & is_word)

    def maskable(self, text_ids: Tensor) -> Tensor:
        """Bool `[B, L]`: words that may be hidden, which start, end and padding may not."""
        is_word = self.word_mask(text_ids)
        for special in (self.config.start_id, self.config.end_id):
            if special is not None:
                is_word = is_word & (text_ids != special)
        return is_word

    def embed(self, text_ids: Tensor) -> Tensor:
        """Word vectors with their positions, `[B, L, D]`."""
        positions = self.positions[: text_ids.shape[1]]
        if self.mask_embedding is None:
            x_BLD = self.words(text_ids) + positions
        else:
            is_hidden = text_ids == self.mask_id
            x_BLD = self.words(text_ids.masked_fill(is_hidden, 0))
            x_BLD = torch.where(is_hidden[..., None], self.mask_embedding, x_BLD) + positions
        return F.dropout(self.norm_pre(x_BLD), self.config.dropout, self.training)

    def pool(self, x_BLD: Tensor, word_mask_BL: Tensor) -> Tensor:
        """The state `[B, D]` at which a text is read as a whole."""
        if self.config.pooling == "first":
            return x_BLD[:, 0]
        if self.config.pooling == "last":
            return x_BLD[:, -1]
        if self.config.pooling == "mean":
            counts = word_mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
            return (x_BLD * word_mask_BL[..., None]).sum(dim=1) / counts
        # The end token is the last of the unmasked positions; a text cut short is read at its last word.
        last = word_mask_BL.long().sum(dim=1).clamp(min=1) - 1
        return x_BLD[torch.arange(last.shape[0], device=last.device), last]

    def _with_class_token(self, x_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Words and the class token behind them, and what attends to what, `[B, 1, L + 1, L + 1]`.

        Released CoCa was trained with a mask of keys that is shifted by one: its class token attends to one position of
        padding behind the words, and to itself only where there is none.
        """
        assert self.class_token is not None
        B = x_BLD.shape[0]
        x_BLD = torch.cat([x_BLD, (self.class_token + self.positions[-1]).expand(B, 1, -1)], dim=1)
        keys = F.pad(mask_BL, (1, 0), value=True)
        N = keys.shape[1]
        causal = torch.ones(N, N, dtype=torch.bool, device=keys.device).tril()
        return x_BLD, causal & keys[:, None, None]

    def forward(self, text_ids: Tensor) -> TextFeatures:
        """Encode int64 `[B, L]`, L at most `context_length`. Returned tokens may leave out padding common to all."""
        config = self.config
        if text_ids.shape[1] > config.context_length:
            raise ValueError(
                f"texts have {text_ids.shape[1]} ids, the tower takes at most {config.context_length}"
            )
        mask_BL = self.word_mask(text_ids)
        looks_at_padding = config.pooling == "last"
        if not (looks_at_padding or text_ids.device.type != "cpu" or torch.compiler.is_exporting()):
            # Nobody looks at padding behind the longest text. (Asking how long that is would stall a GPU.)
            longest = max(1, int(mask_BL.sum(dim=1).max()) + config.class_token)
            text_ids, mask_BL = text_ids[:, :longest], mask_BL[:, :longest]
        x_BLD = self.embed(text_ids)
        mask = None if config.causal or looks_at_padding else mask_BL[:, None, None]
        if self.class_token is not None:
            x_BLD, mask = self._with_class_token(x_BLD, mask_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, mask, causal=config.causal and mask is None)
        x_BLD = self.norm_post(x_BLD)
        if self.class_token is not None:
            x_BLD, pooled_BD = x_BLD[:, :-1], x_BLD[:, -1]
        else:
            pooled_BD = self.pool(x_BLD, mask_BL)
        return TextFeatures(x_BLD, F.normalize(self.projection(pooled_BD).float(), dim=-1), mask_BL)
