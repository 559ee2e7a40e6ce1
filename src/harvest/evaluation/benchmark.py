"""A benchmark scored by its protocol, or not at all: never silently over a smaller set."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from harvest.data.benchmarks import BenchmarkData, Missing, missing
from harvest.data.labels import check_same_names
from harvest.data.sampling import FrameOrder
from harvest.evaluation.detection import detection
from harvest.evaluation.probe import probe
from harvest.evaluation.result import Result
from harvest.evaluation.settings import DEFAULT, EvalSettings
from harvest.evaluation.tasks import Task, evaluate
from harvest.interfaces import Box, HarvestError, OnProgress
from harvest.model.heads import BoxHead, Head
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel


def check_complete(data: BenchmarkData, *, allow_missing: bool = False) -> Missing:
    """What is missing of a split; HarvestError where it cannot be scored, or not without `allow_missing`."""
    if data.unscored is not None:
        raise HarvestError(f"{data.name} {data.split} cannot be scored: {data.unscored}")
    absent = missing(data)
    if absent.rows == absent.num_rows:
        raise HarvestError(f"{absent}: there is nothing to score")
    if absent and not allow_missing:
        raise HarvestError(f"{absent}. {_refusal(data, absent.share)}")
    return absent


def score_benchmark(
    model: VideoTextModel,
    tokenizer: Tokenizer | None,
    data: BenchmarkData,
    *,
    allow_missing: bool = False,
    head: Head | None = None,
    detected: dict[str, tuple[Box, ...]] | None = None,
    settings: EvalSettings = DEFAULT,
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None = None,
) -> Result:
    """Evaluate by the benchmark's protocol, zero-shot or with the head of a fine-tuned model.

    `detected` are the boxes of a detector for action detection (`detection.read_boxes`), which without it is on the
    annotated ones.

    Raises HarvestError where rows are missing, from the annotation files or because their video is not there or
    cannot be read. `allow_missing` scores what is there instead: `metrics["share_of_rows"]` is then the share of
    the benchmark that was scored, and `missing` names the rest.
    """
    if detected is not None and data.task != "detection":
        raise HarvestError(
            f"detected: boxes of persons for action detection; {data.name} is a benchmark of {data.task}"
        )
    absent = check_complete(data, allow_missing=allow_missing)
    task = cast(Task, "qa" if data.task == "count" else data.task)  # other tasks are unscored
    of_task: dict[str, Any] = {}
    if data.task == "detection":
        if not isinstance(head, BoxHead):
            raise HarvestError(
                f"{data.name} needs a model that was fine-tuned to detect actions (recipe ft-ava-b16)"
            )
        found = detection(
            model,
            head,
            data.examples,
            names=data.action_names,
            detected=detected,
            settings=settings,
            frame_order=frame_order,
            progress=progress,
        )
        return _of_the_whole(data, found, absent, allow_missing=allow_missing)
    if task == "recognition" and head is not None:
        task = "classification"
        of_task = {"class_names": data.class_names, "head": head}
    elif task == "recognition":
        of_task = {"class_names": data.class_names, "templates": data.templates}
    elif task == "retrieval":
        of_task = {"shared_captions": data.shared_captions}
    elif task == "qa":
        of_task = {"answers": data.answers, "head": head}
    result = evaluate(
        model,
        tokenizer,
        data.examples,
        task=task,
        settings=settings,
        frame_order=frame_order,
        progress=progress,
        **of_task,
    )
    return _of_the_whole(data, result, absent, allow_missing=allow_missing)


def probe_benchmark(
    model: VideoTextModel,
    train: BenchmarkData,
    test: BenchmarkData,
    *,
    allow_missing: bool = False,
    **settings: Any,
) -> Result:
    """A probe of the frozen tower trained on one split of a benchmark and scored on another; see `probe`.

    What is missing of the test split is refused or told as in `score_benchmark`; of the training split it is counted.
    """
    if train.task != "recognition" or train.name != test.name or train.class_names is None:
        raise HarvestError(
            f"a probe needs two splits of a recognition benchmark, got {train.name} and {test.name}"
        )
    check_same_names(train.class_names, test.class_names or ())
    gone = check_complete(train, allow_missing=allow_missing)
    absent = check_complete(test, allow_missing=allow_missing)
    result = probe(model, train.examples, test.examples, class_names=train.class_names, **settings)
    lacking = f" Of the training split {train.split} {gone.rows:,} rows are missing." if gone else ""
    result = dataclasses.replace(result, protocol=result.protocol + lacking)
    return _of_the_whole(test, result, absent, allow_missing=allow_missing)


def _of_the_whole(data: BenchmarkData, result: Result, absent: Missing, *, allow_missing: bool) -> Result:
    """The result with the benchmark's protocol and its share of the rows, or HarvestError for less than all."""
    whole = max(absent.num_rows, absent.published_rows or 0)
    scored = absent.num_rows - len(result.missing)
    if scored < whole and not allow_missing:
        name, reason = next(iter(result.missing.items()))
        raise HarvestError(
            f"{data.name} {data.split}: the videos of {len(result.missing):,} of {absent.num_rows:,} rows cannot be"
            f" read (first: {name}: {reason}). {_refusal(data, scored / whole)}"
        )
    share = {} if scored == whole else {"share_of_rows": scored / whole}
    said = "" if scored == whole else f" Only {scored:,} of {whole:,} rows were scored."
    return dataclasses.replace(
        result,
        protocol=f"{data.protocol} {result.protocol}{said}",
        metrics={**result.metrics, **share},
        counts={**result.counts, "rows_scored": scored, "rows": whole},
    )


def _refusal(data: BenchmarkData, share: float) -> str:
    return (
        f"A score over the rest is not a score on {data.name}: with missing rows allowed (--allow-missing) it is given"
        f" with its share of the rows, {100 * share:.1f} %"
    )
