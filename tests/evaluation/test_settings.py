from __future__ import annotations

import dataclasses

import pytest

from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.task import Task
from harvest.evaluation.tasks import TASKS, evaluate
from harvest.evaluation.tasks.classification import ClassificationTask
from harvest.evaluation.tasks.masked_words import MaskedWordsTask
from harvest.evaluation.tasks.retrieval import RetrievalTask
from harvest.interfaces import HarvestError
from harvest.model.heads import HeadConfig, build_head
from harvest.tokens import Selection

from .conftest import World


def test_what_is_seen() -> None:
    assert EvalSettings().selection is None and EvalSettings(selector="tube").selection is None
    assert EvalSettings(budget=6).selection == Selection(budget=6, selector="motion")
    assert EvalSettings(selector="run_length").selection == Selection(selector="run_length")
    assert EvalSettings().mode == "video" and EvalSettings(image=True).mode == "image"


@pytest.mark.parametrize(
    ("kind", "name", "value", "says"),
    [
        (EvalSettings, "num_frames", 0, "at least 1, got 0"),
        (EvalSettings, "batch_size", -2, "at least 1, got -2"),
        (EvalSettings, "workers", -1, "at least 0, got -1"),
        (ClassificationTask, "num_clips", 0, "at least 1, got 0"),
        (RetrievalTask, "rerank_top_k", -1, "at least 0, got -1"),
        (MaskedWordsTask, "mask_ratio", 0.0, "more than 0 and at most 1, got 0.0"),
    ],
)
def test_numbers_that_cannot_be(kind: type, name: str, value: float, says: str) -> None:
    with pytest.raises(HarvestError, match=f"{name}: expected {says}"):
        kind(**{name: value})


def test_the_image_baseline_sees_whole_frames() -> None:
    with pytest.raises(HarvestError, match="budget: choosing tubelets"):
        EvalSettings(image=True, budget=4)


@pytest.mark.parametrize("task", TASKS)
def test_a_setting_is_of_one_task_or_of_all(task: type[Task]) -> None:
    shared = {field.name for field in dataclasses.fields(EvalSettings)}
    own = {field.name for field in dataclasses.fields(task)}
    assert not own & shared and task() == task()


@pytest.mark.parametrize(
    ("task", "kind", "settings", "names"),
    [
        ("classification", "linear", EvalSettings(image=True), "image"),
        ("qa", "answers", EvalSettings(image=True), "image"),
        ("detection", "boxes", EvalSettings(budget=4), "budget"),
    ],
)
def test_a_head_reads_whole_videos(
    world: World, task: str, kind: str, settings: EvalSettings, names: str
) -> None:
    config = HeadConfig(kind, ("a", "b"), world.model.config.video.width, several=kind == "boxes")
    with pytest.raises(HarvestError, match=f"{names}: not a setting of {task}"):
        evaluate(
            world.model,
            world.tokenizer,
            world.examples,
            task=task,
            settings=settings,
            head=build_head(config),
        )
