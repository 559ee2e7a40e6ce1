"""The tasks, and the one door to every evaluation. A new task is a file here and its name in `TASKS`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from harvest.data.sampling import FrameOrder
from harvest.evaluation.result import Result
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.task import Evaluation, Task
from harvest.evaluation.tasks.classification import ClassificationTask
from harvest.evaluation.tasks.detection import DetectionTask
from harvest.evaluation.tasks.masked_words import MaskedWordsTask
from harvest.evaluation.tasks.multiple_choice import MultipleChoiceTask
from harvest.evaluation.tasks.question_answering import QuestionAnsweringTask
from harvest.evaluation.tasks.recognition import RecognitionTask
from harvest.evaluation.tasks.retrieval import RetrievalTask
from harvest.interfaces import Example, HarvestError, OnProgress
from harvest.model.heads import Head
from harvest.model.tokenizer import Tokenizer
from harvest.model.video_text import VideoTextModel
from harvest.progress import bar
from harvest.tokens import described

TASKS: tuple[type[Task], ...] = (
    RetrievalTask,
    MultipleChoiceTask,
    RecognitionTask,
    QuestionAnsweringTask,
    MaskedWordsTask,
    ClassificationTask,
    DetectionTask,
)


def task_named(name: str) -> type[Task]:
    """The task of this name; HarvestError with the known ones."""
    known = {task.name: task for task in TASKS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise HarvestError(
            f"unknown task {name!r}; {f'did you mean {near[0]!r}? ' if near else ''}there are {', '.join(known)}"
        )
    return known[name]


def evaluate(
    model: VideoTextModel,
    tokenizer: Tokenizer | None,
    examples: Sequence[Example],
    *,
    task: Task | str,
    settings: EvalSettings | None = None,
    names: Sequence[str] | None = None,
    groups: Mapping[str, str] | None = None,
    head: Head | None = None,
    frame_order: FrameOrder = "forward",
    left_out: Mapping[str, str] | None = None,
    progress: OnProgress | None = None,
) -> Result:
    """Score a model on a manifest, on the device that the model is on.

    `task` is the name of one of `TASKS`, or a task with settings of its own, e.g. `RetrievalTask(rerank_top_k=128)`.
    `names`, `groups` and `head` are explained at `Evaluation`; the first two are refused by tasks that have no use for
    them. `left_out` are rows that are not among the examples, as they could not be read, and why: they are counted with
    the missing. `progress` None shows a bar on a terminal.
    """
    if isinstance(task, str):
        task = task_named(task)()
    if names is not None and not task.names_in:
        raise HarvestError(f"names: {task.name} has no use for names of classes or answers")
    if groups is not None and not task.reads_groups:
        raise HarvestError(f"groups: {task.name} gives no figures of groups")
    with ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(bar(f"evaluating {task.name}"))
        given = Evaluation(
            model,
            tokenizer,
            examples,
            settings or EvalSettings(),
            names,
            groups,
            head if task.reads_head else None,
            frame_order,
            progress,
        )
        task.check(given)
        result = task.score(given)
    return _complete(result, given, task, left_out or {})


def _complete(result: Result, given: Evaluation, task: Task, left_out: Mapping[str, str]) -> Result:
    """The result with what is the same for every task: rows counted, settings, and sentences about what was seen."""
    missing = {**left_out, **result.missing}
    rows = len(given.examples) + len(left_out)
    own = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}  # type: ignore[arg-type]
    selection = given.settings.selection
    seen = None if selection is None else described(selection)
    sentences = [result.protocol]
    if cut := result.counts.get("texts_cut"):
        longest = given.words.config.context_length
        sentences.append(
            f"Of {cut:,} texts only the first {longest} tokens are seen: the text tower takes no more."
        )
    if seen is not None:
        sentences.append(f"Of each clip {seen}.")
    if own.get("dim") is not None:
        sentences.append(f"The first {own['dim']} entries of each embedding.")
    return dataclasses.replace(
        result,
        scored_by=task.scored_by,
        protocol=" ".join(sentences),
        counts={**result.counts, "rows": rows, "rows_scored": rows - len(missing)},
        missing=missing,
        settings={**given.conditions(), **own, "seen": seen, **result.settings},
    )
