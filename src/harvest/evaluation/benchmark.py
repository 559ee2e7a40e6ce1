"""A benchmark scored by its protocol, or not at all: never silently over a smaller set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harvest.data.benchmarks import BenchmarkData, Missing, missing
from harvest.data.labels import check_same_names
from harvest.data.sampling import FrameOrder
from harvest.evaluation.probe import ProbeConfig, probe
from harvest.evaluation.result import Result
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.task import Task
from harvest.evaluation.tasks import TASKS, evaluate
from harvest.evaluation.text_protocols import TextProtocol, Texts, texts_of
from harvest.interfaces import HarvestError, OnProgress
from harvest.model.heads import Head
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


def task_for(kind: str, *, has_head: bool) -> type[Task]:
    """The task that scores benchmarks of this kind, with the head of a fine-tuned model where one can."""
    able = [task for task in TASKS if kind in task.benchmarks]
    if not able:
        raise HarvestError(f"no task scores benchmarks of {kind}")
    return next((task for task in able if task.reads_head == has_head), able[0])


def score_benchmark(
    model: VideoTextModel,
    tokenizer: Tokenizer | None,
    data: BenchmarkData,
    *,
    task: Task | None = None,
    texts: TextProtocol = "model",
    allow_missing: bool = False,
    head: Head | None = None,
    settings: EvalSettings | None = None,
    frame_order: FrameOrder = "forward",
    progress: OnProgress | None = None,
) -> Result:
    """Evaluate by the benchmark's protocol, zero-shot or with the head of a fine-tuned model.

    `task` has the settings that the protocol leaves free, such as `RetrievalTask(rerank_top_k=128)`; None: `task_for`.
    `texts` says whose prompts and averaging are taken; the tokenizer cleans and cuts as it was loaded (`texts_of`).

    Raises HarvestError where rows are missing, from the annotation files or because their video is not there or
    cannot be read. `allow_missing` scores what is there instead: `metrics["share_of_rows"]` is then the share of
    the benchmark that was scored, and `missing` names the rest.
    """
    absent = check_complete(data, allow_missing=allow_missing)
    task = task_for(data.task, has_head=head is not None)() if task is None else task
    if data.task not in task.benchmarks:
        raise HarvestError(f"{task.name}: {data.name} is a benchmark of {data.task}")
    names: Sequence[str] | None = getattr(data, task.names_in) if task.names_in else None
    result = evaluate(
        model,
        tokenizer,
        data.examples,
        task=_by_protocol(task, data, texts_of(texts, data.name)),
        names=names,
        head=head,
        settings=settings,
        frame_order=frame_order,
        progress=progress,
    )
    return _of_the_whole(data, result, absent, allow_missing=allow_missing)


def _by_protocol(task: Task, data: BenchmarkData, texts: Texts) -> Task:
    """The task with the settings that the benchmark or its text protocol has under their names, such as prompts."""
    own = {field.name for field in dataclasses.fields(task)}  # type: ignore[arg-type]
    fixed = {name: getattr(data, name) for name in own if getattr(data, name, ()) != ()}
    if texts.templates and "templates" in own:
        fixed |= {"templates": texts.templates, "average": texts.average}
    plain = type(task)()
    for name, value in fixed.items():
        if getattr(task, name) not in (getattr(plain, name), value):
            raise HarvestError(f"{name}: the protocol of {data.name} says {value}; leave it out")
    return dataclasses.replace(task, **fixed)  # type: ignore[type-var]


def probe_benchmark(
    model: VideoTextModel,
    train: BenchmarkData,
    test: BenchmarkData,
    *,
    config: ProbeConfig | None = None,
    allow_missing: bool = False,
    progress: OnProgress | None = None,
) -> Result:
    """A probe of the frozen tower trained on one split of a benchmark and scored on another; see `probe`.

    Missing rows of the test split are refused or reported as in `score_benchmark`; those of the training split are counted.
    """
    if train.task != "recognition" or train.name != test.name or train.class_names is None:
        raise HarvestError(
            f"a probe needs two splits of a recognition benchmark, got {train.name} and {test.name}"
        )
    check_same_names(train.class_names, test.class_names or ())
    gone = check_complete(train, allow_missing=allow_missing)
    absent = check_complete(test, allow_missing=allow_missing)
    result = probe(
        model, train.examples, test.examples, class_names=train.class_names, config=config, progress=progress
    )
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
