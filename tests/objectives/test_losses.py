"""Losses against numbers worked by hand and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harvest.objectives.contrast import Bank, contrast, paraphrase
from harvest.objectives.losses import contrastive_rows, masked_words, sigmoid_rows


def contrastive(scores: Tensor, video: Tensor, text: Tensor) -> Tensor:
    """Both ways of a table of texts by videos."""
    t2v, v2t = contrastive_rows(scores, text, video), contrastive_rows(scores.T, video, text)
    return (t2v.mean() + v2t.mean()) / 2


def by_loops(scores: Tensor, video: Tensor, text: Tensor) -> float:
    """-log of softmax at each positive, averaged over the positives of a row, then over rows, then both ways."""
    ways = []
    for table, rows, columns in ((scores, text, video), (scores.T, video, text)):
        losses = []
        for r in range(table.shape[0]):
            log_sum = math.log(sum(math.exp(float(x)) for x in table[r]))
            positive = [float(table[r, c]) - log_sum for c in range(table.shape[1]) if columns[c] == rows[r]]
            losses.append(-sum(positive) / len(positive))
        ways.append(sum(losses) / len(losses))
    return sum(ways) / 2


def test_two_pairs_by_hand() -> None:
    """Rows (2, 0) and (0, 1): t2v is the mean of log(1 + e^-2) and log(1 + e^-1), and so is v2t."""
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    pairs = torch.arange(2)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert contrastive(scores, pairs, pairs).item() == pytest.approx(expected, abs=1e-6)


def test_two_captions_of_one_video_are_both_positives_by_hand() -> None:
    """Three texts, two videos, the first two texts are of video 0; all scores equal.

    Texts to videos: log 2 each. Videos to texts: log 3 each, whatever the number of positives.
    """
    scores = torch.zeros(3, 2)
    loss = contrastive(scores, torch.tensor([0, 1]), torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2, abs=1e-6)


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 10_000))
def test_against_loops(videos: int, captions: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(
        0, max(1, videos - 1), (videos,), generator=generator
    )  # some videos are there twice
    text = video.repeat_interleave(captions)
    scores = torch.randn(videos * captions, videos, generator=generator, dtype=torch.float64) * 3
    assert contrastive(scores, video, text).item() == pytest.approx(by_loops(scores, video, text), rel=1e-9)


def test_no_positive_is_pushed_away() -> None:
    """At equal scores the gradient lifts every positive and lowers every other."""
    scores = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    video, text = torch.tensor([5, 9]), torch.tensor([5, 5, 9, 9])
    contrastive(scores, video, text).backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad < 0, text[:, None] == video[None])


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    video = torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(lambda s: contrastive(s, video, video.repeat_interleave(2)), (scores,))
    logits = torch.randn(4, 5, generator=generator, requires_grad=True)
    masked_words(logits, torch.tensor([0, 4, 2, 2])).backward()
    expected = (logits.detach().softmax(1) - torch.eye(5)[[0, 4, 2, 2]]) / 4
    torch.testing.assert_close(logits.grad, expected)


def test_sigmoid_by_hand() -> None:
    """Two texts, two videos: own pairs at 2 and 1, others at 0 and -1."""
    scores = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    rows = sigmoid_rows(scores, torch.tensor([4, 9]), torch.tensor([4, 9]))
    expected = [
        math.log1p(math.exp(-2)) + math.log(2),
        math.log1p(math.exp(-1)) + math.log1p(math.exp(-1)),
    ]
    assert rows.tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 5), st.integers(0, 10_000))
def test_sigmoid_against_loops(clips: int, captions: int, bank: int, seed: int) -> None:
    """SigLIP's sum over all pairs, divided by the captions of the batch; what of a bank is a clip's own is right."""
    generator = torch.Generator().manual_seed(seed)
    example = torch.randint(0, max(1, clips - 1), (clips,), generator=generator)
    further = torch.randint(0, clips + 2, (bank,), generator=generator)
    videos, texts, others = (
        torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (clips, clips * captions, bank)
    )

    def score(v: Tensor, t: Tensor) -> Tensor:
        return 3 * t @ v.T - 2

    found = contrast(score, videos, texts, example=example, loss="sigmoid", bank=Bank(others, further))
    total = 0.0
    owners = [*example.repeat_interleave(captions).tolist(), *further.tolist()]
    for text, owner in zip([*texts, *others], owners, strict=True):
        for video, whose in zip(videos, example.tolist(), strict=True):
            z = 1 if whose == owner else -1
            total += math.log1p(math.exp(-z * (3 * float(text @ video) - 2)))
    assert found.item() == pytest.approx(total / (clips * captions), rel=1e-9)


def test_masked_words_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # probabilities 3/4 1/4, 1/2 1/2
    targets = torch.tensor([0, 1])
    total = math.log(4 / 3) + math.log(2)
    assert masked_words(logits, targets).item() == pytest.approx(total / 2, abs=1e-6)
    assert masked_words(logits, targets, num_hidden=torch.tensor(8.0)).item() == pytest.approx(
        total / 8, abs=1e-6
    )


def test_nothing_hidden_is_no_loss() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = masked_words(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


def test_paraphrase_keeps_sentences_apart() -> None:
    """One-hot sentences, each its own paraphrase, at temperature 1: log(e + 2) - 1. Swapped ones cost more."""
    sentences = torch.eye(3)
    clips = torch.arange(3)
    loss = paraphrase(sentences, sentences, example=clips, temperature=1.0).item()
    assert loss == pytest.approx(math.log(math.e + 2) - 1, abs=1e-6)
    assert paraphrase(sentences, sentences.roll(1, 0), example=clips, temperature=1.0).item() > loss
    colder = paraphrase(sentences, sentences, example=clips, temperature=0.1).item()
    assert colder == pytest.approx(math.log1p(2 * math.exp(-10)), abs=1e-6)


def test_paraphrase_is_exact_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=1) for _ in "ab")
    plain = paraphrase(a, b, example=torch.arange(5), temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(paraphrase(a, b, example=torch.arange(5), temperature=0.05), plain)
