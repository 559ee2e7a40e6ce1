"""The stage on texts alone: opposites part, all else stays, and it is done once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import END, LENGTH, PAD, START, small_model
from torch import Tensor

from harvest.config import RunConfig
from harvest.interfaces import HarvestError
from harvest.model.importing.pretrained import load_pretrained
from harvest.objectives import text_tuning
from harvest.objectives.text_tuning import Sentences, TextTuningConfig, tune
from harvest.tokens.hard_negatives import false_sentences
from harvest.training.loop import train

_NOUNS = ("cat", "dog", "cow", "hen", "pig", "fox")
_WORDS = {word: 3 + n for n, word in enumerate(("a", "jumps", "before", "after", "then", "sleeps", *_NOUNS))}


def tokenizer(texts: list[str]) -> Tensor:
    ids = torch.full((len(texts), LENGTH), PAD)
    for row, text in zip(ids, texts, strict=True):
        words = [START, *(_WORDS[word] for word in text.split()), END]
        row[: len(words)] = torch.tensor(words)
    return ids


def _ordered(one: str, two: str) -> list[tuple[str, list[str]]]:
    texts = (f"a {one} jumps before a {two}", f"a {one} jumps then a {two}")
    return [(text, false_sentences(text, rules=("order",))) for text in texts]


_PAIRS = [(one, two) for one in _NOUNS for two in _NOUNS if one != two]
SENTENCES = Sentences(
    [_ordered(*pair) for pair in _PAIRS],
    [f"a {noun} {does}" for noun in _NOUNS for does in ("jumps", "sleeps")],
)
CONFIG = TextTuningConfig(steps=60, captions=16, lr=1e-2, blocks=1)


def test_opposites_part_and_other_sentences_stay() -> None:
    tower = small_model(fusion=False).text
    before = {name: weight.clone() for name, weight in tower.state_dict().items()}
    tuned = tune(tower, tokenizer, SENTENCES, CONFIG, seed=0)
    for name, weight in tower.state_dict().items():
        assert torch.equal(weight, before[name])  # a copy was tuned
        is_trained = name.startswith(("blocks.1.", "norm_post.", "projection."))
        assert torch.equal(tuned[name], weight) != is_trained, name
    again = tune(tower, tokenizer, SENTENCES, CONFIG, seed=0)
    assert all(torch.equal(again[name], weight) for name, weight in tuned.items())

    def near(one: list[str], other: list[str]) -> float:
        with torch.no_grad():
            return float((tower(tokenizer(one)).pooled * tower(tokenizer(other)).pooled).sum(1).mean())

    pairs = [(text, false[0]) for clip in SENTENCES.with_negative for text, false in clip]
    texts, negatives = zip(*pairs, strict=True)
    with torch.no_grad():
        others = tower(tokenizer(SENTENCES.others)).pooled
    apart = near([*texts], [*negatives])
    tower.load_state_dict(tuned)
    assert near([*texts], [*negatives]) < apart - 0.1
    with torch.no_grad():
        assert (tower(tokenizer(SENTENCES.others)).pooled * others).sum(1).mean() > 0.95


def test_a_run_starts_from_the_tuned_tower_and_a_later_one_takes_it(
    tiny_run: Callable[..., RunConfig], image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run("mini-harvest", loop={"steps": 1}, tuning={"steps": 0})
    tuning = TextTuningConfig(steps=2, captions=4, lr=1e-3, blocks=1)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, text_tuning=tuning))
    train(config, tmp_path / "first")
    (path,) = tmp_path.glob("text-tower-*.safetensors")
    tuned, start = load_file(path), load_pretrained(str(image_model))[0].text.state_dict()
    own = load_pretrained(str(tmp_path / "first" / "model"))[0].text.state_dict()
    del tuned["mask_embedding"]  # of hidden words, which the run trains
    assert all(torch.equal(own[name], weight) for name, weight in tuned.items())
    assert not torch.equal(tuned["projection.weight"], start["projection.weight"])

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the text tower is tuned again")

    monkeypatch.setattr(text_tuning, "tune", refused)
    train(config, tmp_path / "second")
    lines = [
        (tmp_path / run / "metrics.jsonl").read_text().split('"loss"')[1][:12] for run in ("first", "second")
    ]
    assert lines[0] == lines[1]
    # Other rules need other towers.
    other = dataclasses.replace(tuning, rules=("attribute",))
    objective = dataclasses.replace(config.objective, text_tuning=other)
    with pytest.raises(AssertionError, match="tuned again"):
        train(dataclasses.replace(config, objective=objective), tmp_path / "third")


def test_where_no_rule_knows_a_negative_the_tower_is_left(
    tiny_run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(text_tuning, "false_sentences", lambda text, rules: [])
    config = tiny_run("mini-harvest", loop={"steps": 1}, tuning={"steps": 0})
    objective = dataclasses.replace(config.objective, text_tuning=TextTuningConfig(steps=1))
    train(dataclasses.replace(config, objective=objective), tmp_path / "run")
    assert "left as it is, since no caption changes by the rules order" in capsys.readouterr().err
    assert not list(tmp_path.glob("text-tower-*"))
    with pytest.raises(HarvestError, match="rules is empty"):
        TextTuningConfig(steps=1, rules=())
