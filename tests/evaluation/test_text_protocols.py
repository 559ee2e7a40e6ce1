"""Whose test reads texts how: the table, the published lists, and what a class scores."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from harvest.data.benchmarks import BENCHMARKS
from harvest.evaluation import evaluate
from harvest.evaluation.embed import embed_texts, embed_videos
from harvest.evaluation.tasks.recognition import RecognitionTask, embed_classes
from harvest.evaluation.text_protocols import (
    CLIP_KINETICS,
    CLIP_UCF101,
    TEXTS,
    VICLIP_16,
    VICLIP_28,
    texts_of,
)
from harvest.interfaces import HarvestError
from harvest.model.text_cleaning import umt_text

from .conftest import World

PROMPTS = Path(__file__).parents[3] / "shared/annotations/prompts/prompts.md"
NAMES = ["red circle", "blue square", "green star", "white ring"]


@pytest.mark.parametrize(
    ("templates", "number"), [(CLIP_KINETICS, 28), (CLIP_UCF101, 48), (VICLIP_28, 28), (VICLIP_16, 16)]
)
def test_prompts_are_as_many_as_published_and_name_the_class_once(
    templates: tuple[str, ...], number: int
) -> None:
    assert len(templates) == len(set(templates)) == number
    assert all(one.count("{}") == 1 and "  " not in one for one in templates)


@pytest.mark.skipif(not PROMPTS.exists(), reason="CLIP's list of prompts is not here")
@pytest.mark.parametrize(("section", "templates"), [("Kinetics700", CLIP_KINETICS), ("UCF101", CLIP_UCF101)])
def test_clips_prompts_are_those_of_its_file(section: str, templates: tuple[str, ...]) -> None:
    part = PROMPTS.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    assert re.findall(r"'(.*)',", part.split("templates = [")[1]) == list(templates)


def test_the_table_names_benchmarks_and_every_recognition_has_prompts() -> None:
    for found in TEXTS.values():
        assert found.keys() <= BENCHMARKS.keys()
    recognition = {name for name, one in BENCHMARKS.items() if one.task == "recognition"}
    assert TEXTS["model"].keys() == recognition
    for protocol in ("viclip", "viclip-16"):
        for name, texts in TEXTS[protocol].items():
            assert bool(texts.templates) == (name in recognition), name


def test_protocols_by_benchmark() -> None:
    assert (texts_of("umt", "msrvtt").context_length, texts_of("umt", "msrvtt").clean) == (32, "umt")
    assert texts_of("umt", "activitynet").context_length == 150
    viclip = texts_of("viclip", "k400")
    assert (viclip.clean, viclip.context_length, len(viclip.templates), viclip.average) == (
        "umt",
        32,
        28,
        "cosines",
    )
    assert texts_of("viclip-16", "k400").templates[7] == "{}"
    assert umt_text(viclip.templates[4].replace("{}", "air drumming")) == "look the human is air drumming"
    assert texts_of("model", "msrvtt").clean is None and texts_of("model", "k400").average == "vectors"
    with pytest.raises(HarvestError, match="umt has no test on vatex; it has on msrvtt"):
        texts_of("umt", "vatex")


def test_averaged_cosines_are_the_mean_of_each_prompts_cosine(world: World) -> None:
    """ViCLIP's `get_sim` with `agg_method="mean"`: unit vectors, a cosine a prompt, their mean."""
    templates = ("a video of {}", "{} moves to the left", "{}")
    classes = embed_classes(world.model, world.tokenizer, NAMES, templates=templates, average="cosines")
    videos = embed_videos(world.model, world.examples).pooled
    one_by_one = torch.stack(
        [
            videos @ embed_texts(world.model, world.tokenizer, [t.replace("{}", n) for n in NAMES]).T
            for t in templates
        ]
    )
    assert torch.allclose(videos @ classes.T, one_by_one.mean(dim=0), atol=1e-6)
    lengths = classes.norm(dim=1)
    assert (lengths < 1).all()  # so that the two ways of averaging may name different classes
    plain = embed_classes(world.model, world.tokenizer, NAMES, templates=templates)
    assert torch.allclose(plain, classes / lengths[:, None], atol=1e-6)

    labels = (videos @ classes.T).argmax(dim=1).tolist()
    examples = [dataclasses.replace(e, label=n) for e, n in zip(world.examples, labels, strict=True)]
    task = RecognitionTask(templates=templates, average="cosines")
    result = evaluate(world.model, world.tokenizer, examples, task=task, names=NAMES)
    assert result.metrics["top1"] == 1 and "their cosines averaged" in result.protocol
    short = embed_classes(world.model, world.tokenizer, NAMES, templates=templates, average="cosines", dim=7)
    assert short.shape == (4, 7)
