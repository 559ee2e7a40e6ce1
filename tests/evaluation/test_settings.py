from __future__ import annotations

import pytest

from harvest.evaluation.detection import detection
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks import evaluate
from harvest.interfaces import HarvestError
from harvest.model.heads import BoxHead, HeadConfig
from harvest.tokens import Selection

from .conftest import World


def test_what_is_seen() -> None:
    assert EvalSettings().selection is None and EvalSettings(selector="tube").selection is None
    assert EvalSettings(budget=6).selection == Selection(budget=6, selector="motion")
    assert EvalSettings(selector="run_length").selection == Selection(selector="run_length")
    assert EvalSettings().mode == "video" and EvalSettings(image=True).mode == "image"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("num_frames", 0, "at least 1, got 0"),
        ("num_clips", 0, "at least 1, got 0"),
        ("batch_size", -2, "at least 1, got -2"),
        ("rerank_top_k", -1, "0 or more, got -1"),
        ("workers", -1, "0 or more, got -1"),
    ],
)
def test_numbers_that_cannot_be(name: str, value: int, says: str) -> None:
    with pytest.raises(HarvestError, match=f"{name}: expected {says}"):
        EvalSettings(**{name: value})


@pytest.mark.parametrize(
    ("task", "settings", "names"),
    [
        ("retrieval", EvalSettings(num_clips=4, num_crops=3), "num_clips, num_crops"),
        ("retrieval", EvalSettings(matching=True), "matching"),
        ("choice", EvalSettings(dual_softmax=True), "dual_softmax"),
        ("qa", EvalSettings(dim=8), "dim"),
        ("classification", EvalSettings(image=True), "image"),
    ],
)
def test_a_setting_without_a_use_is_refused(
    world: World, task: str, settings: EvalSettings, names: str
) -> None:
    with pytest.raises(HarvestError, match=f"{names}: not a setting of {task}"):
        evaluate(world.model, world.tokenizer, world.examples, task=task, settings=settings)  # type: ignore[arg-type]


def test_action_detection_sees_whole_clips(world: World) -> None:
    head = BoxHead(HeadConfig("boxes", ("a", "b"), world.model.config.video.width, several=True))
    with pytest.raises(HarvestError, match="image, budget: not a setting of detection"):
        detection(world.model, head, world.examples, settings=EvalSettings(image=True, budget=4))
