"""Re-ranking as it is done here against the straightforward loop: a query at a time, with its k nearest items."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harvest.evaluation.clips import evaluating
from harvest.evaluation.embed import Embeddings, cosines, embed_texts
from harvest.evaluation.matching import best, reranked
from harvest.evaluation.metrics import ranks
from harvest.evaluation.task import Evaluation
from harvest.evaluation.tasks.retrieval import reranked_ranks
from harvest.interfaces import TextFeatures, VideoFeatures
from harvest.model.fusion import FusionConfig
from harvest.model.text_encoder import TextEncoderConfig
from harvest.model.tokenizer import Tokenizer, train_tokenizer
from harvest.model.video_encoder import VideoEncoderConfig
from harvest.model.video_text import ModelConfig, VideoTextModel

WORDS = [
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "star",
    "left",
    "right",
    "up",
    "down",
    "turns",
    "grows",
    "big",
    "small",
    "fast",
]
TOKENS = 256  # of a video: 4 times of 8 x 8 places


def captions(num: int) -> list[str]:
    drawn = torch.randint(len(WORDS), (2 * num, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return list(dict.fromkeys(" ".join(WORDS[word] for word in row) for row in drawn))[:num]


def tiny_model(vocab_size: int) -> VideoTextModel:
    """The sizes of the mini-world's models."""
    sizes = {"width": 128, "depth": 2, "num_heads": 4, "mlp_width": 512, "embed_dim": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VideoTextModel(
            ModelConfig(
                video=VideoEncoderConfig(image_size=64, patch_size=8, num_frames=4, **sizes),
                text=TextEncoderConfig(
                    vocab_size=vocab_size, context_length=16, start_id=0, end_id=1, pad_id=2, **sizes
                ),
                fusion=FusionConfig(depth=2, num_heads=4, matches=True),
            )
        ).eval()


def by_queries(
    model: VideoTextModel,
    tokenizer: Tokenizer,
    texts: list[str],
    videos: Embeddings,
    cosine: Tensor,
    k: int,
    queries: range,
) -> tuple[Tensor, Tensor]:
    """Scores of some texts against their k nearest videos `[q, n]`, and of some videos against their texts."""
    assert videos.tokens is not None
    t2v, v2t = (torch.zeros(len(queries), len(texts)) for _ in range(2))
    with evaluating(model, "fp32"):
        parts = [model.encode_text(tokenizer(texts[i : i + 256])) for i in range(0, len(texts), 256)]
        text = TextFeatures(*(torch.cat(part) for part in zip(*parts, strict=True)))
        for row, query in enumerate(queries):
            near = cosine[query].topk(k).indices
            one = TextFeatures(*(part[query : query + 1].expand(k, *part.shape[1:]) for part in text))
            shown = VideoFeatures(videos.tokens[near], videos.pooled[near])
            t2v[row, near] = model.match(model.fuse(shown, one), one)[:, 1]
            near = cosine[:, query].topk(k).indices
            asked = TextFeatures(*(part[near] for part in text))
            tokens = videos.tokens[query : query + 1].expand(k, -1, -1).contiguous()
            shown = VideoFeatures(tokens, videos.pooled[query : query + 1].expand(k, -1))
            v2t[row, near] = model.match(model.fuse(shown, asked), asked)[:, 1]
    return t2v, v2t


@pytest.mark.slow  # HARVEST_RERANK=1000 for the row in docs/results.md, with -s to see the figures
def test_re_ranking_is_faster_than_a_loop_and_finds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """All queries here; of the loop as many as take part of a minute, since each costs the same."""
    num = int(os.environ.get("HARVEST_RERANK", "24"))
    k = 128 if num >= 1000 else num // 3
    texts = captions(num)
    tokenizer = train_tokenizer(texts, vocab_size=300, context_length=16)
    model = tiny_model(tokenizer.core.get_vocab_size())
    generator = torch.Generator().manual_seed(1)
    pooled = F.normalize(torch.randn(num, 64, generator=generator), dim=-1)
    tokens = torch.randn(num, TOKENS, 128, generator=generator)
    videos = Embeddings(pooled, torch.arange(num), torch.arange(num), {}, tokens)
    text_pooled = embed_texts(model, tokenizer, texts)
    given = Evaluation(model, tokenizer, [])
    queries = range(min(num, 100))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.process_time()
        with FlopCounterMode(display=False) as ours:
            found = reranked_ranks(given, texts, videos, text_pooled, torch.arange(num), top_k=k)
        ours_s = time.process_time() - began
        cosine = cosines(text_pooled, pooled)
        began = time.process_time()
        with FlopCounterMode(display=False) as theirs:
            matches = by_queries(model, tokenizer, texts, videos, cosine, k, queries)
        loop_s = (time.process_time() - began) * num / len(queries)
    finally:
        torch.set_num_threads(threads)
    for own, way, read in zip(found, (cosine, cosine.T), matches, strict=True):
        some = way[: len(queries)]
        is_right = torch.eye(num, dtype=torch.bool)[: len(queries)]
        expected = ranks(reranked(some, read, best(some, k)), is_right)
        assert own.expected()[: len(queries)].tolist() == expected.expected().tolist()
    with capsys.disabled():
        print(
            f"\n{num} x {num}, k {k}: {ours_s:.1f} s, a loop over queries {loop_s:.1f} s: {loop_s / ours_s:.1f} times"
        )
    if num >= 1000:
        assert loop_s > 5 * ours_s
    else:  # too few for a time to say anything
        assert theirs.get_total_flops() > 1.5 * ours.get_total_flops()
