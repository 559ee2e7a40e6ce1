"""Hard texts: negatives of their own clip alone, drawn where captions are, and trained on end to end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harvest.config import RunConfig
from harvest.data.dataset import ClipDataset, DataConfig, _Draw, _Drawn
from harvest.interfaces import Example, HardTextSource, HarvestError
from harvest.objectives.contrast import HardTexts, contrast, paraphrase
from harvest.objectives.image_text import ImageTextConfig
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.tokens.hard_negatives import RULES, false_sentences
from harvest.training.loop import train

SCALE = 7.0


def score(videos: Tensor, texts: Tensor) -> Tensor:
    return SCALE * texts @ videos.T


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, HardTexts]:
    draws = torch.Generator().manual_seed(0)
    videos, texts = (F.normalize(torch.randn(4, 8, generator=draws), dim=-1) for _ in range(2))
    hard = F.normalize(torch.randn(4, 2, 8, generator=draws), dim=-1)
    return videos, texts, HardTexts(hard, torch.tensor([[1, 1], [1, 0], [0, 0], [0, 1]]).bool())


def test_softmax_of_each_clip_has_its_own_hard_texts(rows: tuple[Tensor, Tensor, HardTexts]) -> None:
    videos, texts, hard = rows
    expected = []
    for clip in range(4):
        others = torch.cat([texts, hard.pooled[clip][hard.mask[clip]]])
        expected.append(-F.log_softmax(SCALE * others @ videos[clip], dim=0)[clip])
    t2v = F.cross_entropy(SCALE * texts @ videos.T, torch.arange(4))
    loss = contrast(score, videos, texts, example=torch.arange(4), hard=hard)
    torch.testing.assert_close(loss, (torch.stack(expected).mean() + t2v) / 2)


def test_sigmoid_judges_each_hard_text_with_its_own_clip(rows: tuple[Tensor, Tensor, HardTexts]) -> None:
    videos, texts, hard = rows
    plain = contrast(score, videos, texts, example=torch.arange(4), loss="sigmoid")
    own = SCALE * (hard.pooled * videos[:, None]).sum(-1)[hard.mask]
    loss = contrast(score, videos, texts, example=torch.arange(4), loss="sigmoid", hard=hard)
    torch.testing.assert_close(loss, plain - F.logsigmoid(-own).sum() / 4)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_clips_without_hard_texts_lose_nothing(rows: tuple[Tensor, Tensor, HardTexts], loss: str) -> None:
    videos, texts, hard = rows
    none = hard._replace(mask=torch.zeros(4, 2, dtype=torch.bool))
    leaf = videos.clone().requires_grad_()
    with_none = contrast(score, leaf, texts, example=torch.arange(4), loss=loss, hard=none)
    torch.testing.assert_close(with_none, contrast(score, videos, texts, example=torch.arange(4), loss=loss))
    with_none.backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    near = {"example": torch.arange(4), "temperature": 0.1}
    torch.testing.assert_close(
        paraphrase(texts, videos, hard=none, **near), paraphrase(texts, videos, **near)
    )


def test_hard_texts_are_drawn_from_the_caption_of_the_step() -> None:
    examples = [
        Example("0", "a.mp4", texts=("a dog runs left", "it barks before it eats")),
        Example("1", "b.mp4", texts=("a cat",)),
    ]
    spoken: list[str] = []

    def encode(texts: list[str]) -> Tensor:
        spoken.extend(texts)
        return torch.tensor([[len(text), 1] for text in texts])

    source = HardTextSource(partial(false_sentences, rules=("direction", "order")), 2)
    dataset = ClipDataset(
        examples, DataConfig(workers=0), image_size=8, encode_text=encode, seed=0, hard_texts=source
    )
    rows = [
        _Drawn(sample, 0, _Draw([caption], False, torch.Generator()), None)
        for sample, caption in ((0, 0), (1, 2), (0, 1))
    ]
    ids = dataset._hard_ids(source, rows)
    assert ids[:, :, 0].tolist() == [[16, -1], [-1, -1], [22, -1]]
    assert spoken == ["a dog runs right", "it barks after it eats"]
    assert torch.equal(ids, dataset._hard_ids(source, rows))


@pytest.mark.parametrize("kind", [PostPretrainingConfig, ImageTextConfig])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hard_negatives": 1, "hard_rules": ()}, "hard_rules is empty"),
        ({"hard_rules": ("order",)}, "does nothing without objective.hard_negatives"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(kind: Any, settings: dict, message: str) -> None:
    with pytest.raises(HarvestError, match=message):
        RunConfig("x", kind(**settings))


@pytest.mark.parametrize("name", ["mini-harvest", "mini-image"])
def test_a_run_with_hard_texts(name: str, runs: Path, tiny_run: Callable[..., RunConfig]) -> None:
    """It trains, and differs from a run without from the first step on."""

    def first_loss(num: int) -> float:
        config = tiny_run(name, loop={"steps": 1}, tuning={"steps": 0})
        objective = dataclasses.replace(config.objective, hard_negatives=num, hard_rules=RULES)
        run = runs / f"hard-{name}-{num}"
        train(dataclasses.replace(config, objective=objective), run)
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        assert line.get("with_hard_text", 0) > 0 if num else "with_hard_text" not in line
        return line["loss"]

    assert first_loss(2) > first_loss(0)
